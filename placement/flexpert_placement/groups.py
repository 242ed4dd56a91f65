"""Construction of a layer from nothing: which experts share which workers, and where an expert is split.

Replicas tie experts and workers together into groups: trees in which load can flow until every worker of a group takes
the same time, its experts' load / its workers' speed. A group of `a` experts and `b` workers needs a + b - 1 replicas,
so every replica beyond one an expert merges two groups. `partition` decides who belongs together, on the level of
groups alone: swaps and moves of experts, and merges while replicas may be added. `arrange` then places the experts of
a group on its workers. Called by `construction`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flexpert_placement.instance import Bools, Floats, Ints
from flexpert_placement.layer import Layer

GOOD_ENOUGH = 3e-4
"""A busiest group this near to perfect balance, as a fraction, is not worth another step."""

MOST_STEPS = 3000

STEPS_A_LOOK = 16
"""Steps from one look at the time to the next; to look may take as long as a step."""


@dataclass(frozen=True, eq=False)
class Partition:
    """Groups of workers and the experts they serve, merge after merge; a merge takes a replica.

    Attributes:
        expert_group: With 0, 1, 2, … merges: [E] a group's number, that of one of its workers.
        worker_group: With 0, 1, 2, … merges: [W].
        trail: With 0, 1, 2, … merges: the busiest group's time. Never rises: where a merge did not help, the groups
            are those from before it.
    """

    expert_group: tuple[Ints, ...]
    worker_group: tuple[Ints, ...]
    trail: tuple[float, ...]

    @property
    def merges(self) -> int:
        """Merges after which more did not help."""
        return len(self.trail) - 1


def partition(layer: Layer, most_merges: int, stop: Callable[[], bool] = lambda: False) -> Partition | None:
    """Divide the experts among groups of workers so that the busiest group takes as little time as can be found.

    The longest loads first, each to the least busy worker with a slot left; then, again and again, the busiest group
    does what brings it and its partner down most: swaps an expert, gives one away, or, where neither helps, merges with
    the least busy group that leaves slots enough.

    Args:
        layer: Only loads, speeds and slots count.
        most_merges: Replicas beyond one an expert that may be used.
        stop: Asked between steps; once it says True, the groups stay as they are.

    Returns:
        None when there are fewer slots than experts.
    """
    if int(layer.slots.sum()) < layer.num_experts:
        return None
    return _Search(layer, stop).run(most_merges)


class _Search:
    """Groups as arrays over the workers: a group is named by its first worker; merged ones are `gone`."""

    def __init__(self, layer: Layer, stop: Callable[[], bool]) -> None:
        self._layer = layer
        self._stop = stop
        self._loads = layer.loads
        self._load = np.zeros(layer.num_workers)
        self._speed = layer.speeds.astype(np.float64).copy()
        self._free = layer.slots.copy()
        self._gone = np.zeros(layer.num_workers, dtype=bool)
        self._group = np.zeros(layer.num_experts, dtype=np.int64)
        self._worker_group = np.arange(layer.num_workers)

    def run(self, most_merges: int) -> Partition:
        self._deal()
        experts: list[Ints] = []
        workers: list[Ints] = []
        trail: list[float] = []
        steps = 0
        while steps < MOST_STEPS:
            steps = self._settle(steps)
            worst = self._worst()
            time = float(self._time()[worst])
            better = not trail or time < trail[-1]
            experts.append(self._group.copy() if better else experts[-1])
            workers.append(self._worker_group.copy() if better else workers[-1])
            trail.append(time if better else trail[-1])
            if self._is_good(time) or len(trail) > most_merges or self._stop() or not self._merge(worst):
                break
        needed = trail.index(trail[-1]) + 1
        return Partition(tuple(experts[:needed]), tuple(workers[:needed]), tuple(trail[:needed]))

    def _deal(self) -> None:
        load, speeds, free = self._load, self._speed, self._free
        open_ = np.where(free > 0, 0.0, np.inf)
        for expert in np.argsort(-self._loads, kind="stable"):
            worker = int(np.argmin((load + self._loads[expert]) / speeds + open_))
            self._group[expert] = worker
            load[worker] += self._loads[expert]
            free[worker] -= 1
            if free[worker] == 0:
                open_[worker] = np.inf

    def _time(self) -> Floats:
        return np.where(self._gone, -np.inf, self._load / self._speed)

    def _worst(self) -> int:
        return int(np.argmax(self._time()))

    def _is_good(self, time: float) -> bool:
        return time <= self._layer.even * (1 + GOOD_ENOUGH)

    def _settle(self, steps: int) -> int:
        """Swap and move experts while that relieves the busiest group."""
        while steps < MOST_STEPS:
            worst = self._worst()
            time = float(self._load[worst] / self._speed[worst])
            late = steps % STEPS_A_LOOK == 0 and self._stop()
            if self._is_good(time) or late or not self._improve(worst, time):
                break
            steps += 1
        return steps

    def _improve(self, worst: int, time: float) -> bool:
        loads, group, load, speed = self._loads, self._group, self._load, self._speed
        mine = np.flatnonzero(group == worst)
        own = loads[mine][:, None]
        pace = 1.0 / speed
        theirs = pace[group]
        more = loads[None, :] - own
        swap = more * -theirs
        swap += load[group] * theirs
        more *= pace[worst]
        more += load[worst] * pace[worst]
        np.maximum(swap, more, out=swap)
        swap[:, mine] = np.inf
        open_ = np.flatnonzero((self._free > 0) & ~self._gone)
        open_ = open_[open_ != worst]
        give = np.maximum((load[worst] - own) * pace[worst], (load[open_] + own) * pace[open_])
        at_swap, at_give = int(np.argmin(swap)), int(np.argmin(give)) if give.size else 0
        best_swap, best_give = swap.flat[at_swap], give.flat[at_give] if give.size else np.inf
        if min(best_swap, best_give) >= time * (1 - 1e-12):
            return False
        if best_give < best_swap:
            row, target = divmod(at_give, len(open_))
            self._hand(int(mine[row]), worst, int(open_[target]))
        else:
            row, other = divmod(at_swap, len(loads))
            source = int(group[other])
            self._hand(int(mine[row]), worst, source)
            self._hand(other, source, worst)
        return True

    def _hand(self, expert: int, source: int, target: int) -> None:
        self._group[expert] = target
        self._load[source] -= self._loads[expert]
        self._load[target] += self._loads[expert]
        self._free[source] += 1
        self._free[target] -= 1

    def _merge(self, worst: int) -> bool:
        """Tie the busiest group to the one that brings it down most; the replica takes one of their free slots."""
        merged = (self._load[worst] + self._load) / (self._speed[worst] + self._speed)
        merged[self._gone | (self._free + self._free[worst] < 1)] = np.inf
        merged[worst] = np.inf
        other = int(np.argmin(merged))
        if merged[other] >= self._load[worst] / self._speed[worst]:
            return False
        self._group[self._group == other] = worst
        self._worker_group[self._worker_group == other] = worst
        self._load[worst] += self._load[other]
        self._speed[worst] += self._speed[other]
        self._free[worst] += self._free[other] - 1
        self._gone[other] = True
        return True


def arrange(layer: Layer, division: Partition, merges: int) -> Bools | None:
    """The replicas [E, W] by which every group's workers can all take the same time.

    Args:
        layer: What was divided.
        division: Its groups.
        merges: How many merges may be used.

    Returns:
        None where no arrangement of a group was found, which happens only with uneven speeds or slots.
    """
    held = np.zeros((layer.num_experts, layer.num_workers), dtype=bool)
    at = min(merges, division.merges)
    expert_group, worker_group = division.expert_group[at], division.worker_group[at]
    size = np.bincount(worker_group, minlength=layer.num_workers)
    alone = np.flatnonzero(size[expert_group] == 1)
    held[alone, expert_group[alone]] = True
    if (held.sum(axis=0) > layer.slots).any():
        return None
    for group in np.flatnonzero(size > 1):
        experts = np.flatnonzero(expert_group == group)
        workers = np.flatnonzero(worker_group == group)
        if not _arrange_group(layer, held, [int(e) for e in experts], [int(w) for w in workers]):
            return None
    return held


def _arrange_group(layer: Layer, held: Bools, experts: list[int], workers: list[int]) -> bool:
    """Fill worker after worker to the brim: with whole experts, and with a part of the one that has most left.

    A worker takes k whole ones and a part. With sorted loads, the k lightest weigh little and the k heaviest much, and
    every step from one window of k neighbours to the next adds less than the heaviest expert has. So between them there
    is one whose rest the heaviest expert fills up, unless all workers together were too slow. The same holds for what
    is left over: workers of one speed and number of slots always find an arrangement.
    """
    time = float(layer.loads[experts].sum() / layer.speeds[workers].sum())
    rest = sorted((float(layer.loads[e]), e) for e in experts)
    workers = sorted(workers, key=lambda w: (layer.speeds[w], layer.slots[w], w))
    for position, worker in enumerate(workers[:-1]):
        later = workers[position + 1 :]
        room_later = int(layer.slots[later].sum()) - (len(later) - 1)
        chosen = _brimful(rest, time * float(layer.speeds[worker]), int(layer.slots[worker]), len(rest) - room_later)
        if chosen is None:
            return False
        whole, part = chosen
        for _, expert in whole:
            held[expert, worker] = True
        rest = [one for one in rest if one not in whole]
        if part > 0 and rest:
            load, expert = rest.pop()
            held[expert, worker] = True
            rest = sorted([*rest, (load - part, expert)])
    for _, expert in rest:
        held[expert, workers[-1]] = True
    return len(rest) <= int(layer.slots[workers[-1]])


def _brimful(
    rest: list[tuple[float, int]], room: float, slots: int, fewest: int
) -> tuple[list[tuple[float, int]], float] | None:
    """Whole experts of `rest` (sorted by load) for a worker, and the part of the heaviest that fills it up."""
    if not rest:
        return [], 0.0
    heaviest, slack = rest[-1][0], 1e-12 * max(room, rest[-1][0])
    for count in range(max(fewest, 0), min(slots, len(rest) + 1)):
        for start in range(len(rest) - count):
            window = rest[start : start + count]
            gap = room - sum(load for load, _ in window)
            if gap < -slack:
                break
            if gap <= slack:
                return window, 0.0
            if gap <= heaviest + slack:
                return window, min(gap, heaviest)
    return None
