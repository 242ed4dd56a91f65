"""Integer programs over parts of a placement: a layer, the busiest and an idle worker, or all replicas of some experts.

`solver` calls `improve_by_programs` where a gap is left, and stops as soon as it is closed or programs no longer help.
"""

import time
from collections.abc import Callable, Iterator

import numpy as np

from flexpert_placement.bounds import Bounds
from flexpert_placement.evaluate import move_prices
from flexpert_placement.instance import Bools, Floats, Instance, Ints
from flexpert_placement.models.program import Neighbourhood, is_proof, solve_exactly
from flexpert_placement.shares import share_out

MOST_FREE = 1024
"""Replicas that may be free in one program; larger ones do not beat the search in any time one would wait."""

MOST_IN_VAIN = 3
"""Programs without a gain after which improvement has stalled."""

PROGRAM_S = 1.5
"""Wall time of one program."""

PART_OF_TIME = 0.25
"""Part of the time left that programs may take together: a pool that is to grow waits for them."""

WORTH = 5e-3
"""Gap of a layer, as a fraction, that a program is tried for."""

GAP = 1e-4


def improve_by_programs(
    instance: Instance,
    known: Bounds,
    layers: list[Bools],
    seconds_left: Callable[[], float],
    stop: Callable[[], bool],
) -> tuple[list[Bools], Floats]:
    """Solve programs around a placement while they help.

    Args:
        instance: The problem.
        known: Its bounds.
        layers: For each layer the replicas [experts, workers]; they keep all rules.
        seconds_left: Wall time that may still be used.
        stop: Whether all is to end.

    Returns:
        A placement that is at least as good, and [layers] proven lower bounds of what each adds to the objective.
    """
    held = np.stack(layers)
    proven = known.objectives.copy()
    values = np.array([_value(instance, m, held[m]) for m in range(len(layers))])
    in_vain = 0
    deadline = time.monotonic() + PART_OF_TIME * seconds_left()
    for around in _neighbourhoods(instance, held, values, proven):
        limit = min(PROGRAM_S, deadline - time.monotonic(), seconds_left())
        if in_vain >= MOST_IN_VAIN or limit < 0.05 or stop():
            break
        touched = around.layers
        around = Neighbourhood(held, around.free)
        found, outcome = solve_exactly(instance, around, known.least, limit, GAP, stop)
        after = values if found is None else np.array([_value(instance, m, found[m]) for m in range(len(layers))])
        gained = found is not None and after.sum() < values.sum() * (1 - 1e-9)
        if found is not None and gained:
            held, values = found, after
        if is_proof(outcome) and outcome.bound is not None and _is_alone(instance, held, around):
            proven[touched] = np.maximum(proven[touched], values[touched] * (1 - GAP))
        in_vain = 0 if gained or (values[touched] <= proven[touched] * (1 + 2 * GAP)).all() else in_vain + 1
    return list(held), proven


def _value(instance: Instance, layer: int, held: Bools) -> float:
    makespan = share_out(held, instance.loads[layer], instance.speeds).makespan
    moved = ((held & ~instance.current[layer]) * move_prices(instance)[layer]).sum()
    return float(instance.problem.weights.makespan * makespan + moved)


def _neighbourhoods(instance: Instance, held: Bools, values: Floats, proven: Floats) -> Iterator[Neighbourhood]:
    """What to free, the layers with the largest gaps first."""
    _, num_experts, num_workers = instance.shape
    for layer in np.argsort(proven - values, kind="stable"):
        if values[layer] <= proven[layer] * (1 + WORTH):
            continue
        if num_experts * num_workers <= MOST_FREE:
            yield _free(held, int(layer), np.arange(num_workers))
        else:
            shared = share_out(held[layer], instance.loads[layer], instance.speeds)
            order = np.argsort(shared.loads / instance.speeds, kind="stable")
            for number, idle in enumerate(order[: max(1, min(3, num_workers - 1))]):
                yield _free(held, int(layer), np.array([int(order[-1]), int(idle)]))
                if number == 0:
                    yield replica_set(instance, held, int(layer), shared.limiting, order)


def replica_set(instance: Instance, held: Bools, layer: int, limiting: Bools, order: Ints) -> Neighbourhood:
    """All replicas of some experts: which of the slots that they have together, and of the free ones, each gets.

    Half of them are the heaviest on the limiting workers, which are to be relieved; the rest are the lightest of the
    idlest workers, which give up slots.

    Args:
        instance: The problem.
        held: [L, E, W].
        layer: The layer.
        limiting: [W] workers whose experts are too many (`shares.Shared.limiting`).
        order: [W] workers, the idlest first.
    """
    most = max(2, MOST_FREE // held.shape[2])
    loads = instance.loads[layer]
    burden = np.flatnonzero(held[layer][:, limiting].any(axis=1))
    chosen = list(burden[np.argsort(-loads[burden], kind="stable")][: most // 2])
    for worker in order:
        if limiting[worker] or len(chosen) >= most:
            continue
        mine = np.setdiff1d(np.flatnonzero(held[layer][:, worker]), chosen)
        chosen += list(mine[np.argsort(loads[mine], kind="stable")][: most - len(chosen)])
    free = np.zeros_like(held)
    free[layer, chosen] = True
    return Neighbourhood(held, free)


def _free(held: Bools, layer: int, workers: np.typing.NDArray[np.int64]) -> Neighbourhood:
    free = np.zeros_like(held)
    free[layer][:, workers] = True
    return Neighbourhood(held, free)


def _is_alone(instance: Instance, held: Bools, around: Neighbourhood) -> bool:
    """Whether a layer was free as a whole, and neither memory nor budgets tie it to the others."""
    budget = instance.problem.budget
    if len(around.layers) != 1 or (budget.moves, budget.bytes) != (None, None):
        return instance.shape[0] == 1 and bool(around.free.all())
    layer = around.layers[0]
    others = held.sum(axis=(0, 1)) - held[layer].sum(axis=0)
    roomy = (instance.slots - others >= instance.layer_slots).all() or instance.shape[0] == 1
    return bool(around.free[layer].all() and roomy)
