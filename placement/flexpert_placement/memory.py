"""Memory is per worker and shared by all layers: which layer gets how many of a worker's slots.

`construction` asks how many replicas each layer is worth, and has workers change places within layers until the layers'
needs add up; layers that cannot change places get a fair part of every worker.
"""

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flexpert_placement.instance import Bools, Instance, Ints
from flexpert_placement.relabel import nearest_places


def fair_slots(slots: Ints, num_layers: int) -> Ints:
    """[layers, workers] parts of `slots` [workers] that add up to it, as even over the layers as whole numbers are.

    What a layer gets of all workers together is the average, rounded down or up.
    """
    parts = np.zeros((num_layers, len(slots)), dtype=np.int64)
    given = np.zeros(len(slots), dtype=np.int64)
    for layer in range(num_layers):
        due = slots * (layer + 1) / num_layers - given
        row = np.maximum(np.floor(due + 1e-9).astype(np.int64), 0)
        extra = int(np.floor(slots.sum() * (layer + 1) / num_layers + 1e-9)) - int(given.sum() + row.sum())
        if extra > 0:
            row[np.argsort(row - due, kind="stable")[:extra]] += 1
        parts[layer] = row
        given += row
    return parts


def share_by_gain(trails: Sequence[Sequence[float]], total: int) -> list[int]:
    """How many units each trail gets of `total`, so that the sum of what the trails come down to is least.

    Exact for trails whose gains fall from step to step; for others their lower convex hull is followed.

    Args:
        trails: For each, the cost with 0, 1, 2, … units; never rising.
        total: Units there are.
    """
    heap: list[tuple[float, int, int, int]] = []
    for number, trail in enumerate(trails):
        _push_best_step(heap, trail, number, 0)
    given, left = [0] * len(trails), total
    while heap and left > 0:
        _, number, start, end = heapq.heappop(heap)
        if end - start > left:
            continue
        left -= end - start
        given[number] = end
        _push_best_step(heap, trails[number], number, end)
    return given


def _push_best_step(heap: list[tuple[float, int, int, int]], trail: Sequence[float], number: int, start: int) -> None:
    rest = np.asarray(trail[start:])
    if len(rest) < 2:
        return
    gains = (rest[0] - rest[1:]) / np.arange(1, len(rest))
    step = int(np.argmax(gains))
    if gains[step] > 0:
        heapq.heappush(heap, (-float(gains[step]), number, start, start + step + 1))


def fit_together(layers: list[Bools], instance: Instance) -> list[Bools] | None:
    """Let workers of one speed change places within layers, so that all layers fit their memory together.

    Where experts are resident already, each worker takes what it holds most of; else the one that has least so far
    takes the largest part.

    Args:
        layers: For each layer, the replicas [experts, workers].
        instance: Says what workers hold at most, how fast they are and what is there.

    Returns:
        The layers with their columns permuted, or None when that does not suffice.
    """
    counts = np.array([held.sum(axis=0) for held in layers])
    kept = np.matmul(instance.current.transpose(0, 2, 1).astype(np.float32), np.stack(layers).astype(np.float32))
    places = _nearest(layers, instance) if instance.current.any() else _levelled(counts, instance)
    used = np.take_along_axis(counts, places, axis=1).sum(axis=0)
    if not _even_out(counts, places, used, instance, kept):
        return None
    return [held[:, places[layer]] for layer, held in enumerate(layers)]


def most_kept(layers: list[Bools], instance: Instance) -> int:
    """Replicas that stay where they are, at most, if workers of one speed change places and memory is no matter."""
    places = _nearest(layers, instance)
    rows = (held[:, places[n]] & instance.current[n] for n, held in enumerate(layers))
    return sum(int(row.sum()) for row in rows)


def _nearest(layers: list[Bools], instance: Instance) -> Ints:
    speeds = instance.speeds
    return np.array([nearest_places(held, instance.current[layer], speeds) for layer, held in enumerate(layers)])


def _levelled(counts: Ints, instance: Instance) -> Ints:
    """[layers, workers] places by which workers of one speed hold about equally many replicas."""
    used = np.zeros(counts.shape[1])
    places = np.tile(np.arange(counts.shape[1]), (len(counts), 1))
    for layer in np.argsort(-counts.std(axis=1), kind="stable"):
        for speed in np.unique(instance.speeds):
            alike = np.flatnonzero(instance.speeds == speed)
            heaviest = alike[np.argsort(-counts[layer, alike], kind="stable")]
            idlest = alike[np.argsort((used - instance.slots)[alike], kind="stable")]
            places[layer, idlest] = heaviest
        used += counts[layer, places[layer]]
    return places


def _even_out(counts: Ints, places: Ints, used: Ints, instance: Instance, kept: NDArray[np.float32]) -> bool:
    """Swap two workers' places in one layer, at the least loss of what is resident, while one holds too much.

    Where no worker has room for what the full one has too much, it is passed on to one that has not had it yet.
    """
    slots, speeds = instance.slots, instance.speeds
    rows = np.arange(len(counts))
    had = np.zeros(len(slots), dtype=bool)
    for _ in range(int(counts.sum())):
        over = int(np.argmax(used - slots))
        excess = int(used[over] - slots[over])
        if excess <= 0:
            return True
        mine = np.take_along_axis(counts, places, axis=1)
        relief = mine[:, [over]] - mine
        fits = (relief > 0) & (relief <= np.maximum(slots - used, 0)[None, :])
        passed = (relief > 0) & (relief <= (slots - used + excess)[None, :]) & ~had[None, :]
        passed[:, over] = False
        usable = np.where(fits.any(), fits, passed) & (speeds == speeds[over])[None, :]
        if not usable.any():
            return False
        had = had & ~fits.any()
        had[over] = True
        stays = np.take_along_axis(kept, places[:, :, None], axis=2)[:, :, 0]
        taken = kept[rows[:, None], over, places] + kept[rows[:, None], np.arange(len(slots)), places[:, [over]]]
        loss = np.where(usable, stays[:, [over]] + stays - taken, np.inf)
        layer, under = (int(value) for value in np.unravel_index(int(np.argmin(loss)), loss.shape))
        moved = int(relief[layer, under])
        places[layer, over], places[layer, under] = places[layer, under], places[layer, over]
        used[over] -= moved
        used[under] += moved
    return False
