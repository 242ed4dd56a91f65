"""Improves a layer's replicas change by change, paying for moves; `solver` calls it, and chooses how far to go.

Deterministic: the best change is made, counted in steps, as long as one gains more than its moves cost.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flexpert_placement.candidates import apply, extra_cost, extra_moves, keeps_apart, occupancy_of, relieving
from flexpert_placement.instance import Bools, Ints
from flexpert_placement.layer import Layer
from flexpert_placement.weighing import Scale, Weighed

LEAST_GAIN = 1e-7
"""Part of the even time below which a gain is rounding."""

FEW_MOVES = 0.25
"""What a change without moves counts as, where gain per move decides."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A layer on the way.

    Attributes:
        moves: Replicas to be copied so far.
        cost: Price of them.
        makespan: The busiest worker's time.
        held: [E, W].
    """

    moves: int
    cost: float
    makespan: float
    held: Bools


@dataclass(frozen=True)
class Limits:
    """How far a search may go.

    Attributes:
        steps: Changes.
        moves: Replicas to be copied, those included that the start already takes; None is no limit.
        weight: Of the makespan, against the prices of moves.
        good: A makespan that needs no improvement.
        stop: Asked between steps.
    """

    steps: int
    moves: int | None
    weight: float
    good: float
    stop: Callable[[], bool]


def improve(layer: Layer, start: Bools, needed: Ints, scale: Scale, limits: Limits) -> list[Stage]:
    """Change after change, each the one that gains most for its moves.

    Args:
        layer: The layer; its slots are those that the search may fill.
        start: [E, W] replicas that keep all rules.
        needed: [E] replicas that an expert must keep.
        scale: Weighs.
        limits: How far to go.

    Returns:
        The start, and what stood after each change.
    """
    held = start
    now = scale.weigh(layer, held)
    stages = [Stage(layer.moves(held), layer.cost(held), now.makespan, held)]
    for _ in range(limits.steps):
        if now.makespan <= limits.good or limits.stop():
            break
        change = _best_change(layer, held, needed, scale, now, limits, stages[-1].moves)
        if change is None:
            break
        held = apply(held, change)
        now = scale.weigh(layer, held)
        stages.append(Stage(layer.moves(held), layer.cost(held), now.makespan, held))
    return stages


def _best_change(
    layer: Layer, held: Bools, needed: Ints, scale: Scale, now: Weighed, limits: Limits, moves: int
) -> Ints | None:
    order = np.argsort(now.loads / layer.speeds, kind="stable")
    changes = relieving(layer, occupancy_of(layer, held), now.busy, needed, order)
    extra = extra_moves(layer, changes)
    if limits.moves is not None:
        allowed = extra <= max(limits.moves - moves, 0)
        changes, extra = changes[allowed], extra[allowed]
    if not len(changes):
        return None
    rows, scores = scale.scores(layer, held, now, changes)
    net = limits.weight * (now.score - scores) - extra_cost(layer, changes[rows])
    worth = net / np.maximum(extra[rows], FEW_MOVES) if layer.current.any() else net
    for at in np.argsort(-worth, kind="stable"):
        if net[at] <= LEAST_GAIN * layer.even:
            return None
        if keeps_apart(layer, held, changes[rows[at]]):
            return np.asarray(changes[rows[at]])
    return None


def without_idle_moves(layer: Layer, stage: Stage, needed: Ints, scale: Scale, weight: float) -> Stage:
    """Take back the moves that gain less than they cost, and replicas that nothing is gained by."""
    for expert, worker in np.argwhere(stage.held & ~layer.current):
        if layer.pinned[expert, worker]:
            continue
        for held in _taken_back(layer, stage.held, int(expert), int(worker), needed):
            makespan = scale.weigh(layer, held).makespan
            saved = stage.cost - layer.cost(held)
            if weight * (makespan - stage.makespan) <= saved + 1e-12 * layer.even:
                stage = Stage(layer.moves(held), layer.cost(held), makespan, held)
                break
    return stage


def _taken_back(layer: Layer, held: Bools, expert: int, worker: int, needed: Ints) -> list[Bools]:
    """The replicas without one of them, or with it back where it was."""
    options = []
    without = held.copy()
    without[expert, worker] = False
    if without[expert].sum() >= needed[expert]:
        options.append(without)
    room = layer.slots - held.sum(axis=0)
    for home in np.flatnonzero(layer.current[expert] & ~held[expert] & (room > 0)):
        back = without.copy()
        back[expert, home] = True
        options.append(back)
    return [one for one in options if len(np.unique(layer.domains[one[expert]])) >= layer.min_domains]
