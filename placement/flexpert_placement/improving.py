"""Improves all layers of a placement within the budgets and the memory they share; `solver` calls it.

Every layer is searched for itself; then the moves there are go to the layers that gain most by them.
"""

import numpy as np

from flexpert_placement import evaluate, feasibility
from flexpert_placement.bounds import Bounds
from flexpert_placement.instance import Bools, Floats, Instance, Ints
from flexpert_placement.layer import Layer, layer_of
from flexpert_placement.memory import share_by_gain
from flexpert_placement.search import Limits, Stage, improve, without_idle_moves
from flexpert_placement.timing import Timer
from flexpert_placement.weighing import Scale

MOST_STEPS = 400
SHARPNESS = 40.0
"""Of scores (see `weighing.Scale`): about one worker in forty as busy as the busiest counts like 2 % of makespan."""

GOOD_ENOUGH = 3e-4
"""A layer this near to its bound, as a fraction, is not searched."""


def improve_layers(
    instance: Instance, known: Bounds, layers: list[Bools], timer: Timer, until: float = 1.0
) -> list[Bools]:
    """A placement that is at least as good, with no more moves than the budgets allow.

    Args:
        instance: The problem.
        known: Its bounds.
        layers: For each layer the replicas [experts, workers]; they keep all rules.
        timer: Of the solve.
        until: The fraction of the time that may be used.
    """
    prices = evaluate.move_prices(instance)
    needed = feasibility.required(instance)
    room = instance.slots - np.sum([held.sum(axis=0) for held in layers], axis=0)
    scale = Scale(instance.speeds, SHARPNESS)
    stages: list[list[Stage]] = [[] for _ in layers]
    rows = [layer_of(instance, n, held.sum(axis=0), prices[n]) for n, held in enumerate(layers)]
    for number in _most_to_gain_first(instance, layers):
        held = layers[number]
        before = held.sum(axis=0)
        layer = rows[number] = rows[number].with_slots(np.minimum(before + room, instance.layer_slots))
        limits = Limits(
            steps=MOST_STEPS,
            moves=_most_moves(instance, layer, held),
            weight=instance.problem.weights.makespan,
            good=float(known.least[number]) * (1 + GOOD_ENOUGH),
            stop=lambda: timer(until),
        )
        found = improve(layer, held, needed[number], scale, limits)
        stages[number] = found
        room = room - np.max([stage.held.sum(axis=0) for stage in found] - before, axis=0)
    chosen = _within_budget(instance, stages)
    return [
        without_idle_moves(rows[n], stage, needed[n], scale, instance.problem.weights.makespan).held
        if instance.current.any()
        else stage.held
        for n, stage in enumerate(chosen)
    ]


def _most_to_gain_first(instance: Instance, layers: list[Bools]) -> Ints:
    held = np.stack(layers)
    loads = (held * (instance.loads / held.sum(axis=2))[:, :, None]).sum(axis=1)
    return np.argsort(-(loads / instance.speeds).max(axis=1) / instance.even, kind="stable")


def _most_moves(instance: Instance, layer: Layer, held: Bools) -> int | None:
    """Moves a layer may take, those it takes already included; at most what the start takes where that is more."""
    budget, size = instance.problem.budget, instance.problem.expert_bytes
    limits = [budget.moves_per_layer, budget.moves, None if budget.bytes is None else budget.bytes // size]
    known = [limit for limit in limits if limit is not None]
    return max(min(known), layer.moves(held)) if known and instance.current.any() else None


def _within_budget(instance: Instance, stages: list[list[Stage]]) -> list[Stage]:
    """For each layer the stage to stop at: the best, or what the common budget buys, by gain per move."""
    weight = instance.problem.weights.makespan
    budget, size = instance.problem.budget, instance.problem.expert_bytes
    common = [budget.moves, None if budget.bytes is None else budget.bytes // size]
    known = [limit for limit in common if limit is not None]

    def value(stage: Stage) -> float:
        return weight * stage.makespan + stage.cost

    best = [min(found, key=value) for found in stages]
    start = sum(found[0].moves for found in stages)
    if not known or not instance.current.any() or sum(stage.moves for stage in best) <= min(known):
        return best
    trails: list[Floats] = []
    for found in stages:
        most = max(stage.moves for stage in found) - found[0].moves
        trail = np.full(max(most, 0) + 1, np.inf)
        for stage in found:
            at = max(stage.moves - found[0].moves, 0)
            trail[at] = min(trail[at], value(stage))
        trails.append(np.minimum.accumulate(trail))
    given = share_by_gain([list(trail) for trail in trails], max(min(known) - start, 0))
    return [
        min((stage for stage in found if stage.moves <= found[0].moves + extra), key=value)
        for found, extra in zip(stages, given, strict=True)
    ]
