"""A first placement that keeps every rule: each expert's fewest replicas, longest loads first, and what is there stays.

`construction` deals where experts are to stay near where they are, and where rules beyond slots (pins, failure domains,
several replicas) say who may be where.
"""

import numpy as np

from flexpert_placement.feasibility import required
from flexpert_placement.instance import Bools, Floats, Instance, Ints
from flexpert_placement.layer import Layer, layer_of


def deal_layers(instance: Instance, prices: Floats) -> list[Bools] | None:
    """Deal layer after layer; each gets its part of the memory, and more of workers that hold more of it already.

    Args:
        instance: The problem.
        prices: [layers, workers] of copying a replica to a worker, in units of time.

    Returns:
        For each layer the replicas [experts, workers], or None when the rules leave a layer no room.
    """
    num_layers = instance.shape[0]
    counts = required(instance)
    room = instance.slots.copy()
    reserved = instance.pinned.sum(axis=1).cumsum(axis=0)
    dealt = []
    for number in range(num_layers):
        later = reserved[-1] - reserved[number]
        open_ = room - later
        left = num_layers - number
        fair = np.maximum(-(-room // left), instance.current[number].sum(axis=0))
        held = None
        for slots in (np.minimum(fair, open_), open_):
            held = deal(layer_of(instance, number, slots, prices[number]), counts[number])
            if held is not None:
                break
        if held is None:
            return None
        dealt.append(held)
        room -= held.sum(axis=0)
    return dealt


def deal(layer: Layer, counts: Ints) -> Bools | None:
    """Give every expert its replicas: pins first, then the longest loads, each where it is served soonest.

    A worker that does not hold the expert yet costs the price of the move. Where balance leaves no room, workers with
    the most free slots are taken instead, which finds room whenever slots alone decide.

    Args:
        layer: What is to be placed.
        counts: [E] replicas of each expert.

    Returns:
        The replicas [E, W], or None when no room was found.
    """
    for roomiest in (False, True):
        held = _Deal(layer, counts, roomiest).run()
        if held is not None:
            return held
    return None


class _Deal:
    def __init__(self, layer: Layer, counts: Ints, roomiest: bool) -> None:
        self._layer = layer
        self._counts = counts
        self._roomiest = roomiest
        self._held = layer.pinned.copy()
        self._free = layer.slots - self._held.sum(axis=0)
        self._load: Floats = (self._held * (layer.loads / np.maximum(counts, 1))[:, None]).sum(axis=0)

    def run(self) -> Bools | None:
        if (self._free < 0).any():
            return None
        for expert in np.argsort(-self._layer.loads / self._counts, kind="stable"):
            while int(self._held[expert].sum()) < self._counts[expert]:
                if not self._place(int(expert)):
                    return None
        return self._held

    def _place(self, expert: int) -> bool:
        allowed = self._allowed(expert)
        open_ = allowed & (self._free > 0)
        if open_.any():
            self._add(expert, self._best(expert, open_))
            return True
        return self._make_room(expert, allowed)

    def _allowed(self, expert: int) -> Bools:
        """[W] where another replica may be: not beside one, and in a new failure domain while that is needed."""
        held, domains = self._held[expert], self._layer.domains
        used = np.unique(domains[held])
        lacking = self._layer.min_domains - len(used)
        if lacking >= int(self._counts[expert] - held.sum()):
            return np.asarray(~held & ~np.isin(domains, used))
        return np.asarray(~held)

    def _best(self, expert: int, open_: Bools) -> int:
        layer = self._layer
        load = layer.loads[expert] / self._counts[expert]
        key = (self._load + load) / layer.speeds + np.where(layer.current[expert], 0.0, layer.prices)
        if self._roomiest:
            key = key / (1.0 + float(key.max())) - self._free
        return int(np.argmin(np.where(open_, key, np.inf)))

    def _add(self, expert: int, worker: int) -> None:
        self._held[expert, worker] = True
        self._free[worker] -= 1
        self._load[worker] += self._layer.loads[expert] / self._counts[expert]

    def _take(self, expert: int, worker: int) -> None:
        self._held[expert, worker] = False
        self._free[worker] += 1
        self._load[worker] -= self._layer.loads[expert] / self._counts[expert]

    def _make_room(self, expert: int, allowed: Bools) -> bool:
        """Have a worker that may hold `expert` pass on what it holds, to one with a free slot in the end."""
        before: dict[int, tuple[int, int]] = {}
        queue = [int(worker) for worker in np.flatnonzero(allowed)]
        seen = set(queue)
        for worker in queue:
            for other in np.flatnonzero(self._held[:, worker] & ~self._layer.pinned[:, worker]):
                for target in np.flatnonzero(self._may_go(int(other), worker)):
                    if int(target) in seen:
                        continue
                    seen.add(int(target))
                    before[int(target)] = (worker, int(other))
                    if self._free[target] > 0:
                        self._pass_on(expert, int(target), before)
                        return True
                    queue.append(int(target))
        return False

    def _may_go(self, expert: int, worker: int) -> Bools:
        """[W] where a replica of `expert` on `worker` may go instead."""
        held, domains = self._held[expert].copy(), self._layer.domains
        held[worker] = False
        used = np.unique(domains[held])
        if len(used) < self._layer.min_domains:
            return np.asarray(~self._held[expert] & ~np.isin(domains, used))
        return np.asarray(~self._held[expert])

    def _pass_on(self, expert: int, target: int, before: dict[int, tuple[int, int]]) -> None:
        while target in before:
            worker, other = before[target]
            self._take(other, worker)
            self._add(other, target)
            target = worker
        self._add(expert, target)
