"""Places a model's experts on workers; the operator calls `solve` and turns the answer into a plan.

A placement stands within milliseconds and only ever gets better: `construction` makes several, the best of them is
improved layer by layer (`search`), and `bounds` says how far from the best possible it can be at most.
"""

import time
from collections import Counter
from collections.abc import Callable

import numpy as np

from flexpert_placement import bounds, construction, evaluate, feasibility
from flexpert_placement.evaluate import imbalance
from flexpert_placement.instance import Bools, Dense, Instance, dense_of, instance_of, placement_of
from flexpert_placement.shares import share_out
from flexpert_placement.types import (
    ExpertId,
    InfeasiblePlacement,
    Placement,
    PlacementProblem,
    PlacementResult,
    SolveStatus,
)

__all__ = ["imbalance", "solve"]

PROVEN = 1e-3
"""An answer this near to its bound, as a fraction, counts as optimal."""

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
    started = clock()
    feasibility.check_workers(problem)
    instance = instance_of(problem)
    feasibility.check(instance)

    def stop(fraction: float = 1.0) -> bool:
        return cancelled() or clock() - started > problem.time_limit_s * fraction

    best = min(
        _candidates(instance, start, stop), key=lambda dense: evaluate.objective_of(instance, dense), default=None
    )
    if best is None:
        raise InfeasiblePlacement("no placement was found that keeps all rules: give workers more memory or drop pins")
    return _result(instance, best, clock() - started)


def _candidates(instance: Instance, start: Placement | None, stop: construction.Stop) -> list[Dense]:
    prices = evaluate.move_prices(instance)
    answers = [construction.from_nothing(instance, stop)]
    if answers[0] is None or instance.current.any():
        answers.append(construction.near_current(instance, prices))
    if start is not None:
        answers.append(list(dense_of(start, instance.problem).held))
    return [dense_shares(instance, held) for held in answers if held is not None and keeps_rules(instance, held)]


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


def _result(instance: Instance, dense: Dense, seconds: float) -> PlacementResult:
    objective = evaluate.objective_of(instance, dense)
    makespans = evaluate.makespans(instance, dense)
    bound = min(bounds.objective_bound(instance), objective)
    terms = evaluate.terms_of(instance, dense)
    return PlacementResult(
        status=SolveStatus.OPTIMAL if objective - bound <= PROVEN * objective else SolveStatus.FEASIBLE,
        placement=placement_of(dense, instance.problem),
        objective=objective,
        bound=bound,
        makespan=float(makespans.sum()),
        imbalance=terms.makespan,
        solve_seconds=seconds,
        makespan_bound=min(bounds.makespan_bound(instance), float(makespans.sum())),
        terms=terms,
        hottest=_hottest(instance),
        limiting=_limiting(instance, dense),
    )


def _hottest(instance: Instance) -> tuple[ExpertId, ...]:
    relative = instance.loads / np.maximum(instance.even[:, None], 1e-300)
    order = np.argsort(-relative, axis=None, kind="stable")[:NUM_NAMED]
    return tuple(ExpertId(int(flat) // instance.shape[1], int(flat) % instance.shape[1]) for flat in order)


def _limiting(instance: Instance, dense: Dense) -> tuple[str, ...]:
    busiest = evaluate.worker_times(instance, dense).argmax(axis=1)
    return tuple(instance.problem.workers[worker].id for worker, _ in Counter(map(int, busiest)).most_common(NUM_NAMED))
