"""Logs as text and as JSON, with what they are about."""

import asyncio
import json
import logging
import sys
from pathlib import Path

import pytest

from flexpert_proto import logs, names


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """What a log of this format has written to standard error."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])

    def read(log_format: str) -> list[str]:
        root.handlers.clear()
        logs.configure(log_format)
        with logs.saying(operation="op-7", moedeployment="tiny"):
            logging.getLogger("here").warning("moved %d experts", 3)
            asyncio.run(in_a_task())
        logging.getLogger("here").info("later")
        sys.stderr.flush()
        return capsys.readouterr().err.splitlines()

    before = root.level
    yield read
    root.setLevel(before)


async def in_a_task() -> None:
    async def work() -> None:
        logging.getLogger("task").info("from a thread of its own, for op-7")

    await asyncio.create_task(work())
    await asyncio.to_thread(logging.getLogger("thread").info, "from a thread")


def test_json_has_one_object_a_line_with_fields(written: object) -> None:
    lines = [json.loads(line) for line in written("json")]  # type: ignore[operator]
    assert lines[0]["message"] == "moved 3 experts"
    assert {"time", "level", "logger"} <= set(lines[0])
    assert (lines[0]["level"], lines[0]["logger"]) == ("WARNING", "here")
    assert [line.get("operation") for line in lines] == ["op-7", "op-7", "op-7", None]
    assert lines[1]["moedeployment"] == "tiny"


def test_each_line_says_which_process_wrote_it(capsys: pytest.CaptureFixture[str], written: object) -> None:
    environment = {
        names.ENV_POOL: '{"uid": "u", "name": "tiny", "namespace": "default"}',
        names.ENV_POD: "tiny-engines-0",
    }
    logging.getLogger().handlers.clear()
    logs.configure("json", own=logs.of_pool("engine", environment))
    with logs.saying(operation="op-7"):
        logging.getLogger("here").warning("hello")
    said = json.loads(capsys.readouterr().err)
    own = {"part": "engine", "namespace": "default", "moedeployment": "tiny", "pod": "tiny-engines-0"}
    assert own.items() <= said.items()
    assert said["operation"] == "op-7"
    assert logs.of_pool("engine", {names.ENV_POOL: "{"}) == {"part": "engine"}


def test_every_process_that_is_started_writes_its_log_so() -> None:
    root = Path(__file__).parents[1]
    mains = [
        "operator/flexpert_operator/__main__.py",
        "operator/flexpert_operator/local/runtime/__main__.py",
        *(f"workers/flexpert_workers/{one}/__main__.py" for one in ("engine", "expert", "ingress", "memory/owner")),
        *(f"workers/flexpert_workers/{one}.py" for one in ("serving/head", "sources/fetch", "pool/controller_actor")),
        *(f"workers/flexpert_workers/serving/{one}.py" for one in ("engines", "fetch_actor", "owner_actor")),
        "workers/flexpert_workers/serving/worker_actor.py",
    ]
    for main in mains:
        assert "logs.configure(" in (root / main).read_text(), main
    packages = (root / package for package in ("operator", "workers", "proto", "placement"))
    sources = (path for package in packages for path in package.rglob("*.py"))
    assert not [path for path in sources if "basicConfig" in path.read_text()]


def test_text_names_the_operation_once(written: object) -> None:
    lines = written("text")  # type: ignore[operator]
    assert lines[0].endswith("WARNING here moved 3 experts [op-7]")
    assert [line.count("op-7") for line in lines] == [1, 1, 1, 0]


def test_an_unknown_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.ENV_FORMAT, "xml")
    with pytest.raises(ValueError, match="FLEXPERT_LOG_FORMAT is 'xml': it is text or json"):
        logs.configure()
