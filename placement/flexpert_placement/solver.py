"""Places a model's experts on workers; the operator calls `solve` and turns the answer into a plan.

A placement stands within milliseconds and only ever gets better: `construction` makes several, the best of them is
improved layer by layer (`search`), and `bounds` says how far from the best possible it can be at most.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flexpert_placement import construction, evaluate, feasibility
from flexpert_placement.bounds import Bounds
from flexpert_placement.evaluate import imbalance
from flexpert_placement.improving import improve_layers
from flexpert_placement.instance import Bools, Dense, Instance, dense_of, instance_of, placement_of
from flexpert_placement.keeping import keep_current
from flexpert_placement.other_terms import improve_other_terms
from flexpert_placement.shares import share_out
from flexpert_placement.timing import Timer
from flexpert_placement.types import (
    ExpertId,
    InfeasiblePlacement,
    Placement,
    PlacementProblem,
    PlacementResult,
    SolveStatus,
)
from flexpert_placement.weighing import MOST_WORKERS

__all__ = ["imbalance", "solve"]

PROVEN = 1e-3
"""An answer this near to its bound, as a fraction, counts as optimal."""

WORTH_A_PROGRAM = 1e-2
"""Gap, as a fraction, for which integer programs are tried."""

HOPELESS = 1.5
"""What is there is not worth improving where something else is better by this factor, as after growth."""

SEARCH_UNTIL = 0.85
"""Part of the time after which no layer is searched any more."""

NUM_NAMED = 5
"""Hottest experts and limiting workers that an answer names."""


def solve(
    problem: PlacementProblem,
    clock: Callable[[], float] = time.monotonic,
    cancelled: Callable[[], bool] = lambda: False,
    start: Placement | None = None,
) -> PlacementResult:
    """Decide which worker holds which expert, and with which share of its traffic.

    Args:
        problem: What is to be placed.
        clock: Seconds that never go back.
        cancelled: Asked between steps; once it says True, the best placement so far is the answer.
        start: A placement that the answer must not be worse than, where it keeps the problem's rules.

    Raises:
        InfeasiblePlacement: There is no answer; the message says by how much and what to change.
    """
    timer = Timer(problem.time_limit_s, clock, cancelled)
    feasibility.check_workers(problem)
    instance = instance_of(problem)
    feasibility.check(instance)
    known = Bounds(instance)
    answer = _best_answer(instance, known, start, timer)
    if answer is None:
        raise InfeasiblePlacement("no placement was found that keeps all rules: give workers more memory or drop pins")
    bound = known.objective
    if answer.objective > bound * (1 + WORTH_A_PROGRAM) and not timer() and not _is_urgent(instance):
        from flexpert_placement.models import improve_by_programs

        layers, proven = improve_by_programs(instance, known, answer.layers, timer.seconds_left, timer)
        answer = min(answer, _answer(instance, layers), key=_objective)
        bound = max(bound, float(proven.sum()))
    followed = improve_other_terms(
        instance, answer.dense, timer.seconds_left, lambda found: keeps_rules(instance, list(found.held))
    )
    bound += problem.weights.transitions * float(instance.even.sum()) * followed.transitions_bound
    bound = max(bound, followed.bound) if np.isfinite(followed.bound) else bound
    return _result(instance, known, followed.dense, bound, timer.seconds())


@dataclass(frozen=True, eq=False)
class _Answer:
    """A placement, with the best shares."""

    layers: list[Bools]
    dense: Dense
    objective: float


def _answer(instance: Instance, layers: list[Bools]) -> _Answer:
    dense = dense_shares(instance, layers)
    return _Answer(layers, dense, evaluate.objective_of(instance, dense))


def _objective(answer: _Answer) -> float:
    return answer.objective


def _is_urgent(instance: Instance) -> bool:
    """Whether workers came or replicas were lost, so that a pool waits for the answer: no time for programs."""
    there = instance.current.any(axis=(0, 1))
    return bool(there.any() and (not there.all() or feasibility.forced_moves(instance).any()))


def _best_answer(instance: Instance, known: Bounds, start: Placement | None, timer: Timer) -> _Answer | None:
    """The best placement found: what is there is improved first, then whatever stands before it."""
    candidates = [_answer(instance, layers) for layers in _candidates(instance, known, start, timer)]
    if not candidates:
        return None
    best = min(candidates, key=_objective)
    for number, before in enumerate(candidates):
        hopeless = before.objective > best.objective * (HOPELESS if number == 0 else 1.0)
        if hopeless or best.objective <= known.objective * (1 + PROVEN) or timer():
            continue
        if number + 1 == len(candidates) and instance.shape[2] > MOST_WORKERS and construction.is_plain(instance):
            continue  # it was made by groups; a search among many workers has not been seen to gain anything on it
        until = SEARCH_UNTIL * (number + 1) / len(candidates)
        improved = improve_layers(instance, known, before.layers, timer, until)
        if keeps_rules(instance, improved):
            best = min(best, _answer(instance, improved), key=_objective)
    return best


def _candidates(instance: Instance, known: Bounds, start: Placement | None, timer: Timer) -> list[list[Bools]]:
    """Placements that keep all rules; the one nearest to what is there first."""
    answers = [keep_current(instance)] if instance.current.any() else []
    if start is not None:
        answers.append(list(dense_of(start, instance.problem).held))
    new = construction.from_nothing(instance, known, timer)
    if new is None or instance.current.any():
        answers.append(construction.near_current(instance))
    answers.append(new)
    return [layers for layers in answers if layers is not None and keeps_rules(instance, layers)]


def keeps_rules(instance: Instance, layers: list[Bools]) -> bool:
    """Whether replicas [experts, workers] for each layer are an answer to the problem."""
    held = np.stack(layers)
    copies = held.sum(axis=2)
    moved = (held & ~instance.current).sum(axis=(1, 2))
    budget = instance.problem.budget
    if instance.current.any() and (
        (budget.moves is not None and moved.sum() > budget.moves)
        or (budget.bytes is not None and moved.sum() * instance.problem.expert_bytes > budget.bytes)
        or (budget.moves_per_layer is not None and moved.max(initial=0) > budget.moves_per_layer)
    ):
        return False
    apart = np.stack([held[:, :, instance.domains == d].any(axis=2) for d in np.unique(instance.domains)])
    return bool(
        (copies >= np.maximum(instance.fewest, 1)).all()
        and (copies <= instance.most).all()
        and (held.sum(axis=(0, 1)) <= instance.slots).all()
        and (held.sum(axis=1) <= instance.layer_slots).all()
        and (held | ~instance.pinned).all()
        and (apart.sum(axis=0) >= instance.problem.min_failure_domains).all()
    )


def dense_shares(instance: Instance, layers: list[Bools]) -> Dense:
    """Replicas with the shares by which the busiest worker of every layer is as idle as can be."""
    shares = np.full(instance.shape, np.nan)
    for number, held in enumerate(layers):
        loads = instance.loads[number]
        served = share_out(held, loads, instance.speeds).served
        even = held / np.maximum(held.sum(axis=1, keepdims=True), 1)
        parts = np.divide(served, loads[:, None], out=even, where=loads[:, None] > 0)
        shares[number] = np.where(held, parts, np.nan)
    return Dense(shares)


def _result(instance: Instance, known: Bounds, dense: Dense, bound: float, seconds: float) -> PlacementResult:
    objective = evaluate.objective_of(instance, dense)
    makespans = evaluate.makespans(instance, dense)
    bound = min(bound, objective)
    terms = evaluate.terms_of(instance, dense)
    return PlacementResult(
        status=SolveStatus.OPTIMAL if objective - bound <= PROVEN * objective else SolveStatus.FEASIBLE,
        placement=placement_of(dense, instance.problem),
        objective=objective,
        bound=bound,
        makespan=float(makespans.sum()),
        imbalance=terms.makespan,
        solve_seconds=seconds,
        makespan_bound=min(known.makespan, float(makespans.sum())),
        terms=terms,
        hottest=_hottest(instance),
        limiting=_limiting(instance, dense),
        notes=_notes(instance, dense),
        arrivals={
            worker.id: int(count)
            for worker, count in zip(
                instance.problem.workers, (dense.held & ~instance.current).sum(axis=(0, 1)), strict=True
            )
        },
    )


def _notes(instance: Instance, dense: Dense) -> tuple[str, ...]:
    """Why the answer is as it is, for people."""
    times = evaluate.worker_times(instance, dense)
    relative = times.max(axis=1) / instance.even
    layer = int(np.argmax(relative))
    worker = int(np.argmax(times[layer]))
    ids = [one.id for one in instance.problem.workers]
    notes = [f"layer {layer} is balanced worst: worker {ids[worker]} takes {relative[layer]:.3f} of the even time"]
    lone = (dense.held[layer].sum(axis=1) == 1) & dense.held[layer][:, worker]
    if lone.any() and relative[layer] > 1 + PROVEN:
        expert = int(np.argmax(np.where(lone, instance.loads[layer], -1.0)))
        part = instance.loads[layer, expert] / (instance.even[layer] * instance.speeds[worker])
        notes.append(f"expert {expert}, which has no other replica, is {part:.3f} of that worker's even load")
    free = instance.slots - dense.held.sum(axis=(0, 1))
    if (free <= 0).all():
        notes.append("all memory is used: more would allow more replicas")
    moves = (dense.held & ~instance.current).sum(axis=(0, 1))
    if instance.current.any() and moves.any():
        busiest = int(np.argmax(moves))
        most = int(moves[busiest]) * instance.problem.expert_bytes / 2**20
        notes.append(f"{int(moves.sum())} replicas are copied; {ids[busiest]} gets most, {most:.1f} MiB")
    if instance.problem.caution and instance.traffic.deviation is not None:
        notes.append(
            f"every load counts {instance.problem.caution:g} standard deviations above its mean: makespan and bound "
            f"are those of a bad interval"
        )
    budget = instance.problem.budget
    if instance.current.any() and budget.moves is not None and int(moves.sum()) >= budget.moves:
        notes.append(f"the budget of {budget.moves} moves is used up")
    return tuple(notes)


def _hottest(instance: Instance) -> tuple[ExpertId, ...]:
    relative = instance.loads / np.maximum(instance.even[:, None], 1e-300)
    order = np.argsort(-relative, axis=None, kind="stable")[:NUM_NAMED]
    return tuple(ExpertId(int(flat) // instance.shape[1], int(flat) % instance.shape[1]) for flat in order)


def _limiting(instance: Instance, dense: Dense) -> tuple[str, ...]:
    busiest = evaluate.worker_times(instance, dense).argmax(axis=1)
    return tuple(instance.problem.workers[worker].id for worker, _ in Counter(map(int, busiest)).most_common(NUM_NAMED))
