"""What the parts of a live pool write into their logs while they reconfigure, as collectors get it."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
from observed_pool import ObservedPool

from flexpert_proto import logs


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    root, lines = logging.getLogger(), io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(logs.formatter_of(logs.JSON))
    handler.addFilter(logs.AboutFilter({"part": "test"}))
    before = root.level
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    yield lines
    root.removeHandler(handler)
    root.setLevel(before)


def test_lines_about_a_reconfiguration_carry_its_id(pool: ObservedPool, written: io.StringIO) -> None:
    pool.move("followed by its id", 0)
    pool.move("another", 1)
    found = [json.loads(line) for line in written.getvalue().splitlines()]
    about = [line for line in found if line.get("operation") == "followed by its id"]
    told = [line["message"] for line in about if line["logger"] == "flexpert_workers.pool.operations"]
    for phase in ("prepare", "commit", "retire", "succeeded"):
        assert any(f"(rebalance): {phase}" in one for one in told), told
    prepared = [line["message"] for line in about if line["logger"] == "flexpert_workers.expert.prepare"]
    assert prepared, "workers say what they made resident"
    assert all(one.startswith("prepared experts: ") for one in prepared)
