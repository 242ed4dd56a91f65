"""The best groups of a layer with few experts, by dynamic programming over the experts' subsets; a proof as well.

A layer whose E experts have E + r replicas on W workers falls into W - r groups at least, and a group with load L on c
workers of speed s takes L / (c · s) at least (docs/placement.md). So no placement is better than the best division into
that many groups, and where slots allow the division, it is one. Called by `bounds`, which proves by it, and by
`construction`, which starts from it.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flexpert_placement.groups import Partition
from flexpert_placement.instance import Floats, Ints

MOST_EXPERTS = 14
"""Of a layer; 3 ** MOST_EXPERTS pairs of a set and a part of it are few million."""

MOST_WORK = 20_000_000
"""Pairs that are looked at for all layers together; about a quarter of a second."""


@dataclass(frozen=True)
class Subsets:
    """Pairs of a set of experts and a part of it, as bit masks, ordered by the set.

    Attributes:
        num_experts: Of a layer, at most `MOST_EXPERTS`.
        first_inside: Whether only parts count that have the set's first expert: enough where workers are alike.
    """

    num_experts: int
    first_inside: bool

    @cached_property
    def pairs(self) -> tuple[Ints, Ints, Ints]:
        """(set, part, number of the first pair of each set), without the empty set; parts may be empty."""
        wholes = parts = np.zeros(1, dtype=np.int64)
        for expert in range(self.num_experts):
            bit = 1 << expert
            wholes = np.concatenate([wholes, wholes | bit, wholes | bit])
            parts = np.concatenate([parts, parts, parts | bit])
        usable = wholes > 0
        if self.first_inside:
            usable &= (parts & wholes & -wholes) > 0
        wholes, parts = wholes[usable], parts[usable]
        order = np.argsort(wholes, kind="stable")
        wholes, parts = wholes[order], parts[order]
        return wholes, parts, np.searchsorted(wholes, np.arange(1, 1 << self.num_experts))

    @cached_property
    def sizes(self) -> Ints:
        """[2 ** E] experts in each set."""
        return np.array([mask.bit_count() for mask in range(1 << self.num_experts)])

    def sums(self, loads: Floats) -> Floats:
        """[2 ** E] load of each set."""
        totals = np.zeros(1)
        for load in loads:
            totals = np.concatenate([totals, totals + load])
        return totals


def work(num_experts: int, num_workers: int, merges: int, alike: bool) -> int:
    """Pairs that `best_groups` looks at for one layer."""
    if not alike:
        return int(3**num_experts) * num_workers
    steps = sum(m + 1 for workers in range(1, num_workers + 1) for m in range(min(merges, workers - 1) + 1))
    return int(3**num_experts) // 2 * steps


def best_groups(subsets: Subsets, loads: Floats, speeds: Floats, slots: Ints, most_merges: int) -> Partition | None:
    r"""The division into groups whose busiest takes least time, for 0, 1, … `most_merges` replicas to spare.

    With F[m, b, S] the least time in which b workers with m merges serve the set S, T its part that the next group
    serves, and c the workers of that group,

        F[m, b, S] = min over c ≤ m + 1 and T of max(load(T) / (c · speed), F[m - c + 1, b - c, S \ T])

    where T has room: |T| + c - 1 replicas in the slots of c workers. Where workers differ, groups are of one worker.

    Args:
        subsets: Of the layer's experts; with `first_inside` if workers are alike.
        loads: [experts].
        speeds: [workers].
        slots: [workers] replicas that each may hold at most.
        most_merges: Replicas beyond one an expert; 0 unless workers are alike.

    Returns:
        None where there are too few slots.
    """
    table = _Table(subsets, loads, speeds, slots, min(most_merges, len(speeds) - 1))
    trail = [table.time(merges) for merges in range(table.merges + 1)]
    if not np.isfinite(trail[0]):
        return None
    needed = trail.index(trail[-1]) + 1
    divided = [table.division(merges) for merges in range(needed)]
    return Partition(tuple(one[0] for one in divided), tuple(one[1] for one in divided), tuple(trail[:needed]))


class _Table:
    """F of `best_groups`: the least time of every set, by workers used and merges."""

    def __init__(self, subsets: Subsets, loads: Floats, speeds: Floats, slots: Ints, merges: int) -> None:
        self.merges = merges
        self._subsets, self._speeds, self._slots = subsets, speeds, slots
        self._sums = subsets.sums(loads)
        nothing = np.full(len(self._sums), np.inf)
        nothing[0] = 0.0
        self._best: dict[tuple[int, int], Floats] = {(m, 0): nothing for m in range(merges + 1)}
        for workers in range(1, len(speeds) + 1):
            for m in range(merges + 1):
                self._best[m, workers] = self._filled(m, workers)

    def time(self, merges: int) -> float:
        """Of all experts on all workers."""
        return float(self._best[merges, len(self._speeds)][-1])

    def division(self, merges: int) -> tuple[Ints, Ints]:
        """([experts] group, [workers] group), a group being named by one of its workers."""
        experts = np.zeros(self._subsets.num_experts, dtype=np.int64)
        workers = np.arange(len(self._speeds))
        left, rest = len(self._speeds), len(self._sums) - 1
        while left and rest:
            many, part = self._step(merges, left, rest)
            experts[[bool(part >> e & 1) for e in range(len(experts))]] = left - many
            workers[left - many : left] = left - many
            merges, left, rest = merges - many + 1, left - many, rest & ~part
        return experts, workers

    def _filled(self, merges: int, workers: int) -> Floats:
        wholes, parts, starts = self._subsets.pairs
        best = self._best[merges - 1, workers].copy() if merges else np.full(len(self._sums), np.inf)
        best[0] = 0.0
        for many in range(1, min(merges + 1, workers) + 1):
            alone = self._alone(many, workers)
            times = np.maximum(alone[parts], self._best[merges - many + 1, workers - many][wholes ^ parts])
            best[1:] = np.minimum(best[1:], np.minimum.reduceat(times, starts))
        return best

    def _alone(self, many: int, workers: int) -> Floats:
        """[2 ** E] time of each set as a group of `many` workers, the last of them worker number `workers` - 1."""
        room = int(self._slots[workers - many : workers].sum()) - (many - 1)
        speed = float(self._speeds[workers - many : workers].sum())
        return np.where(self._subsets.sizes <= room, self._sums / speed, np.inf)

    def _step(self, merges: int, workers: int, whole: int) -> tuple[int, int]:
        """(workers, experts) of the last group in the best division of a set."""
        wholes, parts, starts = self._subsets.pairs
        begin = int(starts[whole - 1])
        end = int(starts[whole]) if whole < len(starts) else len(wholes)
        mine = parts[begin:end]
        found = []
        for many in range(1, min(merges + 1, workers) + 1):
            alone = self._alone(many, workers)[mine]
            times = np.maximum(alone, self._best[merges - many + 1, workers - many][whole ^ mine])
            at = int(np.argmin(times))
            found.append((float(times[at]), many, int(mine[at])))
        _, many, part = min(found)
        return many, part
