"""One pool for every test of the folder, and one report of what they find."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults_report import Report
from faults_world import World


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="fxfaults") as folder:
        made = World(Path(folder))
        try:
            made.start()
            yield made
        finally:
            made.close()


@pytest.fixture(scope="session")
def report() -> Report:
    return Report.begin()
