"""The expert worker: holds experts, computes them for engines, copies them from peers or from the file."""

from flexpert_workers.expert.config import WorkerConfig
from flexpert_workers.expert.worker import ExpertWorker

__all__ = ["ExpertWorker", "WorkerConfig"]
