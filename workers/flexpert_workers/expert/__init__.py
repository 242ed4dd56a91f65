"""The expert worker: holds experts, computes them for engines, copies them from peers or from the file."""

from typing import TYPE_CHECKING, Any

from flexpert_workers.expert.config import WorkerConfig

if TYPE_CHECKING:
    from flexpert_workers.expert.worker import ExpertWorker

__all__ = ["ExpertWorker", "WorkerConfig"]


def __getattr__(name: str) -> Any:
    """Import `ExpertWorker` when it is first used: it brings torch, which a pool controller does without."""
    if name != "ExpertWorker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flexpert_workers.expert.worker import ExpertWorker

    return ExpertWorker
