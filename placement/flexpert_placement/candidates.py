"""Small changes to a layer's replicas that may relieve its busiest workers; `search` weighs them.

Changes are rows of an array with the columns (e, u, w, f, v): expert `e` gets a replica on worker `w`, and gives up the
one on `u` (-1: none); in its place on `w`, expert `f` (-1: none) goes from `w` to `v` (-1: it is dropped there).
"""

from dataclasses import dataclass

import numpy as np

from flexpert_placement.instance import Bools, Floats, Ints
from flexpert_placement.layer import Layer

E, U, W, F, V = range(5)
NONE = -1

MOST_EXPERTS = 48
MOST_TARGETS = 16
MOST_ON_TARGET = 32


@dataclass(frozen=True, eq=False)
class Occupancy:
    """Replicas of a layer as they stand.

    Attributes:
        held: [E, W].
        copies: [E].
        free: [W] slots left.
    """

    held: Bools
    copies: Ints
    free: Ints


def occupancy_of(layer: Layer, held: Bools) -> Occupancy:
    """The replicas of [E, W] `held`."""
    return Occupancy(held, held.sum(axis=1), layer.slots - held.sum(axis=0))


def relieving(layer: Layer, now: Occupancy, busy: Bools, needed: Ints, order: Ints) -> Ints:
    """Changes [n, 5] that let load leave a set of workers.

    Args:
        layer: The layer.
        now: Its replicas.
        busy: [W] the workers that are too busy; load has to leave them all.
        needed: [E] replicas that an expert must keep.
        order: [W] workers, the idlest first.
    """
    inside = (~now.held | busy[None, :]).all(axis=1) & (layer.loads > 0)
    experts = np.flatnonzero(inside)
    if len(experts) > MOST_EXPERTS:
        by_load = experts[np.argsort(-layer.loads[experts], kind="stable")]
        experts = by_load[np.linspace(0, len(by_load) - 1, MOST_EXPERTS).astype(int)]
    pairs = _departures(layer, now, experts)
    targets = [int(w) for w in order if not busy[w]][:MOST_TARGETS]
    found = [_onto(layer, now, pairs, target, needed) for target in targets]
    return np.concatenate(found) if found else np.zeros((0, 5), dtype=np.int64)


def _departures(layer: Layer, now: Occupancy, experts: Ints) -> Ints:
    """[n, 2] (expert, worker that it leaves, or NONE where it gets one replica more)."""
    growing = experts[now.copies[experts] < layer.most[experts]]
    rows, leaving = np.nonzero(now.held[experts] & ~layer.pinned[experts])
    more = np.stack([growing, np.full(len(growing), NONE)], axis=1)
    return np.concatenate([more, np.stack([experts[rows], leaving], axis=1)])


def _onto(layer: Layer, now: Occupancy, pairs: Ints, target: int, needed: Ints) -> Ints:
    pairs = pairs[~now.held[pairs[:, 0], target]]
    found = []
    if now.free[target] > 0:
        found.append(_rows(pairs, target, NONE, NONE))
    others = np.flatnonzero(now.held[:, target] & ~layer.pinned[:, target])
    if len(others) > MOST_ON_TARGET:
        others = others[np.argsort(layer.loads[others], kind="stable")][:MOST_ON_TARGET]
    for other in others:
        if now.copies[other] > needed[other]:
            found.append(_rows(pairs, target, int(other), NONE))
        swaps = pairs[(pairs[:, 1] != NONE)]
        swaps = swaps[~now.held[other, swaps[:, 1]]]
        rows = _rows(swaps, target, int(other), NONE)
        rows[:, V] = swaps[:, 1]
        found.append(rows)
        if now.free[target] <= 0:
            elsewhere = np.flatnonzero((now.free > 0) & ~now.held[other])[:2]
            found += [_rows(pairs, target, int(other), int(worker)) for worker in elsewhere if worker != target]
    return np.concatenate(found) if found else np.zeros((0, 5), dtype=np.int64)


def _rows(pairs: Ints, target: int, other: int, goes: int) -> Ints:
    rows = np.empty((len(pairs), 5), dtype=np.int64)
    rows[:, :2] = pairs
    rows[:, 2:] = (target, other, goes)
    return rows


def extra_moves(layer: Layer, changes: Ints) -> Ints:
    """[n] replicas to be copied that each change adds; negative where it takes moves back."""
    return _added(changes, (~layer.current).astype(np.float64)).astype(np.int64)


def extra_cost(layer: Layer, changes: Ints) -> Floats:
    """[n] price of the replicas to be copied that each change adds."""
    return _added(changes, np.where(layer.current, 0.0, layer.prices[None, :]))


def _added(changes: Ints, of_replica: Floats) -> Floats:
    """[n] sum of what the replicas count that a change makes, less that of those which it gives up."""
    total = of_replica[changes[:, E], changes[:, W]]
    total = total - np.where(changes[:, U] != NONE, of_replica[changes[:, E], changes[:, U]], 0.0)
    total = total - np.where(changes[:, F] != NONE, of_replica[changes[:, F], changes[:, W]], 0.0)
    goes = (changes[:, F] != NONE) & (changes[:, V] != NONE)
    return np.asarray(total + np.where(goes, of_replica[changes[:, F], changes[:, V]], 0.0))


def apply(held: Bools, change: Ints) -> Bools:
    """[E, W] the replicas after one change."""
    expert, leaves, target, other, goes = (int(value) for value in change)
    after = held.copy()
    if leaves != NONE:
        after[expert, leaves] = False
    if other != NONE:
        after[other, target] = False
        if goes != NONE:
            after[other, goes] = True
    after[expert, target] = True
    return after


def keeps_apart(layer: Layer, held: Bools, change: Ints) -> bool:
    """Whether the changed experts' replicas lie in failure domains enough."""
    if layer.min_domains <= 1:
        return True
    after = apply(held, change)
    changed = [int(change[E])] + ([int(change[F])] if change[F] != NONE else [])
    return all(len(np.unique(layer.domains[after[expert]])) >= layer.min_domains for expert in changed)
