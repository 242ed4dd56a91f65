"""docs/runbook.md has an entry for every reason and every Event, and for none that does not exist."""

import re
from pathlib import Path

import pytest

from flexpert_operator.api.reasons import CONDITIONS, POLICY_CONDITIONS, EventReason, PolicyEventReason

ALL = {**CONDITIONS, **POLICY_CONDITIONS}
RUNBOOK = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text()


def section(title: str) -> str:
    """The text under a heading of the second level."""
    parts = re.split(r"^## ", RUNBOOK, flags=re.MULTILINE)
    found = [part for part in parts if part.splitlines()[0].strip() == title]
    assert len(found) == 1, f"docs/runbook.md has no section {title}"
    return found[0]


def entries(title: str) -> dict[str, list[str]]:
    """The rows of the section's table, by reason."""
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", section(title), flags=re.MULTILINE)
    assert len({reason for reason, _ in rows}) == len(rows), "a reason has two rows"
    return {reason: [cell.strip() for cell in cells.split("|")] for reason, cells in rows}


@pytest.mark.parametrize("condition", ALL)
def test_every_reason_of_a_condition_has_an_entry(condition: str) -> None:
    assert set(entries(condition)) == set(ALL[condition][1])


def test_every_event_has_an_entry() -> None:
    assert set(entries("Events")) == {str(reason) for reason in EventReason}
    assert set(entries("Events about a policy")) == {str(reason) for reason in PolicyEventReason}


@pytest.mark.parametrize("title", [*ALL, "Events", "Events about a policy"])
def test_an_entry_says_what_it_means_and_what_to_do(title: str) -> None:
    for reason, cells in entries(title).items():
        assert len(cells) == 2, reason
        assert all(len(cell) > 5 for cell in cells), reason
