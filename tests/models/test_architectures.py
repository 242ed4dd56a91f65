"""Walks every architecture of the pinned transformers that could be served; the record and docs/models.md are fresh."""

from pathlib import Path

import pytest

from flexpert_workers.checkpoint import architectures
from flexpert_workers.checkpoint.architectures import recorded_outcomes
from flexpert_workers.checkpoint.walk import candidates, try_architecture
from flexpert_workers.checkpoint.walk.report import models_page

RENEW = "run `python -m flexpert_workers.checkpoint.walk` and commit what it writes"
RECORDED = {outcome.architecture: outcome for outcome in recorded_outcomes()}


@pytest.mark.parametrize("candidate", candidates(), ids=lambda candidate: candidate.architecture)
def test_outcome_is_as_recorded(candidate, tmp_path, record_property):
    outcome, comparison = try_architecture(candidate, tmp_path)
    if comparison is not None:
        record_property("near_ties", comparison.near_ties)
    assert outcome == RECORDED[candidate.architecture], RENEW


def test_every_architecture_is_recorded():
    assert list(RECORDED) == [candidate.architecture for candidate in candidates()], RENEW


def test_all_model_modules_are_walked():
    assert len({candidate.module for candidate in candidates()}) == 64


def test_the_page_is_fresh():
    page = Path(__file__).parents[2] / "docs" / "models.md"
    assert page.read_text() == models_page(recorded_outcomes()), RENEW


def test_the_record_is_written_as_read():
    file = Path(architectures.__file__).parent / architectures.OUTCOMES_FILE
    assert file.read_text() == architectures.encode_outcomes(recorded_outcomes())
