"""Tries one architecture: refused by facts, or written as a tiny checkpoint, served and compared."""

from pathlib import Path
from typing import Any

from flexpert_workers.checkpoint import architectures
from flexpert_workers.checkpoint.architectures import Outcome
from flexpert_workers.checkpoint.walk.compare import Comparison, compare
from flexpert_workers.checkpoint.walk.discover import Candidate
from flexpert_workers.checkpoint.walk.tiny import tiny_config, tiny_model
from flexpert_workers.errors import UnsupportedArchitecture


def try_architecture(candidate: Candidate, folder: Path) -> tuple[Outcome, Comparison | None]:
    """What becomes of an architecture, and how its text compared if it came to that.

    Args:
        candidate: Which.
        folder: An empty folder for its checkpoint.
    """
    try:
        comparison = _serve(candidate, folder)
    except UnsupportedArchitecture as error:
        reason = str(error).removeprefix(f"{candidate.architecture} is not served: ")
        return Outcome(candidate.module, candidate.architecture, reason), None
    reason = "" if comparison.is_identical else "its text differs from that of transformers' generate"
    return Outcome(candidate.module, candidate.architecture, reason), comparison


def _serve(candidate: Candidate, folder: Path) -> Comparison:
    architectures.check_name(candidate.architecture)
    model_class: Any = candidate.load_class()
    architectures.check_config(tiny_config(model_class), candidate.architecture)
    tiny_model(model_class).save_pretrained(folder)
    return compare(folder.as_uri())
