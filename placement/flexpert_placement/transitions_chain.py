"""The best placement of small shapes by transitions, by dynamic programming over the partitions of each layer.

Where workers are alike their names mean nothing: a layer's placement is a partition of its experts into as many sets
as there are workers, and between two layers the sets may be matched in any way. So the best placement is the longest
path through the layers' partitions, a step being worth the best matching of two partitions. With 8 experts there are
105 partitions into 4 sets and 1 into 8. `transitions_model` calls it before it tries an integer program.
"""

from collections.abc import Iterator
from itertools import combinations, permutations
from math import factorial

import numpy as np
from scipy.optimize import linear_sum_assignment

from flexpert_placement.instance import Floats, Instance, Ints

MOST_MATCHINGS = 4096
"""Between two layers that are computed one by one."""

MOST_PARTITIONS = 128
"""Of a layer where all matchings of up to 4 sets are tried together."""


def fits_chain(instance: Instance) -> bool:
    """Whether workers are alike and there are few enough partitions of a layer into even sets."""
    _, experts, workers = instance.shape
    if experts % workers or np.ptp(instance.speeds) > 0 or experts > 16:
        return False
    partitions = factorial(experts) // (factorial(experts // workers) ** workers * factorial(workers))
    return partitions**2 <= MOST_MATCHINGS or (workers <= 4 and partitions <= MOST_PARTITIONS)


def longest_chain(instance: Instance, steps: Floats, limits: Floats, price: float = 0.0) -> Ints | None:
    """[layers, experts] workers of the placement in which steps that stay are worth most, less what makespans cost.

    Args:
        instance: A problem that `fits_chain`.
        steps: [layers - 1, experts, experts] what a pair is worth that stays on its worker.
        price: Of a unit of a layer's makespan.
        limits: [layers] time that no worker may exceed.

    Returns:
        None when no placement keeps to the limits.
    """
    layers, experts, workers = instance.shape
    sets = np.array(list(combinations(range(experts), experts // workers)))
    member = np.zeros((len(sets), experts))
    np.put_along_axis(member, sets, 1.0, axis=1)
    number = {tuple(members): index for index, members in enumerate(sets.tolist())}
    states = np.array([[number[part] for part in parts] for parts in _partitions(tuple(range(experts)), workers)])
    times = (instance.loads @ member.T / instance.speeds[0])[:, states].max(axis=2)
    own = np.where(times > limits[:, None] * (1 + 1e-9), -np.inf, -price * times)
    value, came = own[0], []
    for layer, flow in enumerate(steps):
        worth = _matchings(member @ flow @ member.T, states)
        total = value[:, None] + worth
        came.append(total.argmax(axis=0))
        value = own[layer + 1] + total.max(axis=0)
    if not np.isfinite(value.max()):
        return None
    path = [int(value.argmax())]
    for back in reversed(came):
        path.append(int(back[path[-1]]))
    return _homes(states[path[::-1]], sets, steps, member, (layers, experts))


def _partitions(experts: tuple[int, ...], parts: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """All partitions into `parts` even sets, each set ascending, by its smallest expert."""
    if parts == 0:
        yield ()
        return
    first, rest = experts[0], experts[1:]
    for others in combinations(rest, len(experts) // parts - 1):
        left = tuple(expert for expert in rest if expert not in others)
        for more in _partitions(left, parts - 1):
            yield ((first, *others), *more)


def _matchings(worth: Floats, states: Ints) -> Floats:
    """[states, states] the most that two partitions keep, from [sets, sets] what two sets keep together."""
    workers = states.shape[1]
    if workers > 4:
        table = [[worth[np.ix_(one, other)] for other in states] for one in states]
        return np.array([[cell[linear_sum_assignment(cell, maximize=True)].sum() for cell in row] for row in table])
    best = np.full((len(states), len(states)), -np.inf)
    for order in permutations(range(workers)):
        np.maximum(best, sum(worth[states[:, [g]], states[None, :, order[g]]] for g in range(workers)), out=best)
    return best


def _homes(chosen: Ints, sets: Ints, steps: Floats, member: Floats, shape: tuple[int, int]) -> Ints:
    """[layers, experts] from the set numbers [layers, workers] of each layer, matched from layer to layer."""
    homes, names = np.zeros(shape, dtype=np.int64), np.arange(chosen.shape[1])
    for layer, row in enumerate(chosen):
        if layer:
            before = member[chosen[layer - 1]] @ steps[layer - 1] @ member[row].T
            old, new = linear_sum_assignment(before, maximize=True)
            names = names[old][np.argsort(new)]
        for name, part in zip(names, row, strict=True):
            homes[layer, sets[part]] = name
    return homes
