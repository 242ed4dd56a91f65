"""Walks every architecture of the pinned transformers that could be served, and records which ones are.

`python -m flexpert_workers.checkpoint.walk` renews `outcomes.json` and `docs/models.md`; the tests under `tests/models`
fail when either is stale. Each architecture is written as a tiny checkpoint, served by our engine through expert
workers, and its greedy fp32 text compared with that of transformers' `generate`.
"""

from flexpert_workers.checkpoint.walk.compare import Comparison, compare
from flexpert_workers.checkpoint.walk.discover import Candidate, candidates
from flexpert_workers.checkpoint.walk.outcome import try_architecture
from flexpert_workers.checkpoint.walk.pool import dispatch_pool, process_worker, thread_worker
from flexpert_workers.checkpoint.walk.tiny import tiny_config, tiny_model

__all__ = [
    "Candidate",
    "Comparison",
    "candidates",
    "compare",
    "dispatch_pool",
    "process_worker",
    "thread_worker",
    "tiny_config",
    "tiny_model",
    "try_architecture",
]
