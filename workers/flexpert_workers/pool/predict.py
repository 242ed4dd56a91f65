"""The dry run of a plan: what it would copy, how long, how much memory, and why it could not be done. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flexpert_workers.pool.exceptions import InvalidPlan
from flexpert_workers.pool.state import ModelFacts, Request, Worker
from flexpert_workers.pool.tables import check_placement

OVERHEAD_S = 0.05
"""Of a reconfiguration that copies nothing: a few round trips to every worker and engine."""


@dataclass(frozen=True)
class Prediction:
    """What a plan would do; `refusal` is why it could not be carried out, or empty."""

    moved_bytes: int
    moved_experts: int
    seconds: float
    peak_bytes: Mapping[str, int]
    refusal: str


def predict(request: Request, model: ModelFacts, workers: Sequence[Worker], bytes_per_second: float) -> Prediction:
    """Predict what `request` would do to `workers` as they are.

    `bytes_per_second` is how fast one worker has lately brought experts in; targets work side by side.
    """
    live = {worker.id: worker for worker in workers if worker.live}
    incoming = Counter(
        move.target for move in request.moves if move.target in live and move.expert not in live[move.target].experts
    )
    peaks = {name: _resident(worker) + incoming[name] * model.expert_bytes for name, worker in live.items()}
    busiest = max(incoming.values(), default=0)
    return Prediction(
        moved_bytes=incoming.total() * model.expert_bytes,
        moved_experts=incoming.total(),
        seconds=OVERHEAD_S + busiest * model.expert_bytes / bytes_per_second,
        peak_bytes=peaks,
        refusal=_refusal(request, model, live, peaks),
    )


def check_request(request: Request, model: ModelFacts, workers: Sequence[Worker]) -> None:
    """Check that a plan can be carried out on the pool as it is.

    Raises:
        InvalidPlan: The message says what is wrong with it.
    """
    refusal = predict(request, model, workers, bytes_per_second=1.0).refusal
    if refusal:
        raise InvalidPlan(refusal)


def _resident(worker: Worker) -> int:
    return worker.state.resident_bytes if worker.state is not None else 0


def _refusal(request: Request, model: ModelFacts, live: Mapping[str, Worker], peaks: Mapping[str, int]) -> str:
    try:
        check_placement(request.target, model, frozenset(name for name, worker in live.items() if worker.placeable))
    except InvalidPlan as wrong:
        return str(wrong)
    moved = {(move.expert, move.target) for move in request.moves}
    for expert, shares in request.target.items():
        for worker in shares:
            if expert not in live[worker].experts and (expert, worker) not in moved:
                return f"layer {expert[0]} expert {expert[1]} is to be on {worker}, but no move brings it there"
    return _overfull(model, live, moved, peaks)


def _overfull(
    model: ModelFacts,
    live: Mapping[str, Worker],
    moved: set[tuple[tuple[int, int], str]],
    peaks: Mapping[str, int],
) -> str:
    for expert, target in sorted(moved):
        if expert not in model.all_experts() or target not in live:
            return f"a move of layer {expert[0]} expert {expert[1]} to {target}: no such expert or live worker"
    for name, worker in sorted(live.items()):
        budget = worker.state.memory_bytes if worker.state is not None else 0
        if peaks[name] > max(budget, _resident(worker)):
            return f"{name} would hold {peaks[name]} bytes of experts, its memory is {budget}; raise memoryPerWorker"
    return ""
