"""The table of docs/reliability.md; behind the tests whose findings it has."""

import pytest
from faults_report import IMPOSSIBLE, PHASES, VICTIMS, Report, documented

pytestmark = pytest.mark.local


def test_the_document_tells_of_every_cell(report: Report) -> None:
    report.write()
    told = documented()
    assert set(told) == {(phase, victim) for phase in PHASES for victim in VICTIMS}
    assert {cell for cell, text in told.items() if not text.startswith("✓")} == set(IMPOSSIBLE)
