"""The dry run of a plan: what it would copy, how long, how much memory, and why it could not be done. Pure."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from flexpert_workers.pool.exceptions import InvalidPlan
from flexpert_workers.pool.state import Expert, ModelFacts, Placement, Prediction, Request, Worker
from flexpert_workers.pool.tables import check_placement
from flexpert_workers.pool.waves import split

OVERHEAD_S = 0.05
"""Of a reconfiguration that copies nothing: a few round trips to every worker and engine."""


@dataclass(frozen=True)
class Planned:
    """A request worked out: the waves to carry out in order, and what is expected of them all."""

    waves: tuple[Request, ...]
    prediction: Prediction


def plan(
    request: Request, model: ModelFacts, workers: Sequence[Worker], base: Placement, bytes_per_second: float
) -> Planned:
    """Work out the waves of `request`, and predict what they would do to `workers` as they are.

    Args:
        request: What is asked for.
        model: Whose experts are placed.
        workers: As they are.
        base: Placement of the table in force.
        bytes_per_second: How fast one worker has lately brought experts in; targets work side by side.
    """
    live = {worker.id: worker for worker in workers if worker.live}
    waves = split(request, model, tuple(workers), base)
    holding: Mapping[str, Set[Expert]] = {name: worker.experts for name, worker in live.items()}
    copied, attached, seconds = 0, 0, 0.0
    peaks = {name: _resident(worker) for name, worker in live.items()}
    for wave in waves:
        coming = {(move.expert, move.target) for move in wave.moves if move.target in live}
        new = Counter(target for expert, target in coming if expert not in holding[target])
        at_hand = _at_hand(live, holding)
        dear = Counter(target for expert, target in coming if expert not in at_hand[target])
        for name, experts in holding.items():
            peaks[name] = max(peaks[name], (len(experts) + new[name]) * model.expert_bytes)
        copied, attached = copied + dear.total(), attached + new.total() - dear.total()
        seconds += OVERHEAD_S + max(dear.values(), default=0) * model.expert_bytes / bytes_per_second
        holding = _held_after(wave, live)
    prediction = Prediction(
        moved_bytes=copied * model.expert_bytes,
        moved_experts=copied + attached,
        attached_experts=attached,
        seconds=seconds,
        peak_bytes=peaks,
        refusal=_refusal(request, model, live, peaks),
        waves=len(waves),
    )
    return Planned(waves, prediction)


def _held_after(wave: Request, live: Mapping[str, Worker]) -> dict[str, Set[Expert]]:
    """What each live worker holds once a wave has been retired."""
    held: dict[str, set[Expert]] = {name: set() for name in live}
    for expert, shares in wave.target.items():
        for name in shares.keys() & held.keys():
            held[name].add(expert)
    return dict(held)


def _at_hand(live: Mapping[str, Worker], holding: Mapping[str, Set[Expert]]) -> Mapping[str, Set[Expert]]:
    """What each worker holds, or can attach because a worker of the same page owner holds it."""
    lent: dict[str, set[Expert]] = defaultdict(set)
    for name, experts in holding.items():
        lent[live[name].domain] |= experts
    return {name: lent[live[name].domain] if live[name].domain else holding[name] for name in holding}


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
    known = model.all_experts()
    for expert, target in sorted(moved):
        if expert not in known or target not in live:
            return f"a move of layer {expert[0]} expert {expert[1]} to {target}: no such expert or live worker"
    for name, worker in sorted(live.items()):
        budget = worker.state.memory_bytes if worker.state is not None else 0
        if peaks[name] > max(budget, _resident(worker)):
            return f"{name} would hold {peaks[name]} bytes of experts, its memory is {budget}; raise memoryPerWorker"
    return ""
