"""How a layer's traffic is shared between replicas so that the busiest worker is as idle as can be; exact.

The search asks for the makespan of what it tries, and `solver` for the shares of what it answers.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from flexpert_placement.instance import Bools, Floats

SWEEPS = 4
TOLERANCE = 1e-10


@dataclass(frozen=True, eq=False)
class Shared:
    """How the load of a layer is served.

    Attributes:
        served: [E, W] load of each expert that each worker serves.
        makespan: The busiest worker's time; no other way to share the load makes it less.
        limiting: [W] the workers that prove it: all that the experts on them have to serve keeps them that busy.
    """

    served: Floats
    makespan: float
    limiting: Bools

    @property
    def loads(self) -> Floats:
        """[W] load of each worker."""
        return np.asarray(self.served.sum(axis=0))


def share_out(held: Bools, loads: Floats, speeds: Floats) -> Shared:
    """Split each expert's load between its replicas so that the makespan is least.

    First every replicated expert pours its load onto the least busy of its workers, a few times over. Then load flows
    along the paths worker → expert → worker from those that take longer than t to those that take less, where t is a
    lower bound of the makespan: at first that of perfect balance. Where no path is left and a worker takes longer than
    t, all that can be reached from it, a set A of workers, takes t or longer, and the experts that A serves have no
    replica outside of A. So no sharing takes less than load(A) / speed(A), which is more than t: it becomes the new t.
    t rises at most W times, and when no worker takes longer than t, t is the makespan and the last A its proof
    (discrete Newton's method on Hall's condition; augmenting along shortest paths ends after O(V · E²) steps).

    Args:
        held: [E, W] the replicas; every expert has one.
        loads: [E].
        speeds: [W].
    """
    served = np.where(held, loads[:, None] / np.maximum(held.sum(axis=1), 1)[:, None], 0.0)
    movable = [int(e) for e in np.flatnonzero((held.sum(axis=1) > 1) & (loads > 0))]
    holders = {e: [int(w) for w in np.flatnonzero(held[e])] for e in movable}
    flow = _Flow(served, movable, holders, speeds)
    flow.pour(SWEEPS)
    return flow.solve()


class _Flow:
    """Loads of workers and what replicated experts put on them, as lists: numbers are read and written one by one."""

    def __init__(self, served: Floats, movable: list[int], holders: dict[int, list[int]], speeds: Floats) -> None:
        self._array = served
        self._part: dict[int, dict[int, float]] = {e: {w: float(served[e, w]) for w in holders[e]} for e in movable}
        self._on: list[list[int]] = [[] for _ in range(len(speeds))]
        for expert, workers in holders.items():
            for worker in workers:
                self._on[worker].append(expert)
        self._speeds = [float(speed) for speed in speeds]
        self._load = [float(load) for load in served.sum(axis=0)]

    def pour(self, sweeps: int) -> None:
        """Level the workers of each replicated expert in turn: exact for one, near it for several."""
        for _ in range(sweeps):
            for part in self._part.values():
                self._level(part)

    def _level(self, part: dict[int, float]) -> None:
        load, speeds = self._load, self._speeds
        total = 0.0
        for worker, served in part.items():
            load[worker] -= served
            total += served
        order = sorted(part, key=lambda worker: load[worker] / speeds[worker])
        filled, speed = 0.0, 0.0
        level = 0.0
        for position, worker in enumerate(order):
            filled += load[worker]
            speed += speeds[worker]
            level = (total + filled) / speed
            if position + 1 < len(order) and level <= load[order[position + 1]] / speeds[order[position + 1]]:
                break
        for worker in part:
            part[worker] = max(0.0, level * speeds[worker] - load[worker])
            load[worker] += part[worker]

    def solve(self) -> Shared:
        """Make the sharing exact (see `share_out`)."""
        load, speeds = self._load, self._speeds
        workers = range(len(speeds))
        time = sum(load) / sum(speeds)
        limiting = set(workers)
        slack = TOLERANCE * max(time, 1e-300)
        while True:
            over = [w for w in workers if load[w] - time * speeds[w] > slack * speeds[w]]
            if not over:
                break
            reached = self._augment(over, time, slack)
            if reached is not None:
                time = max(sum(load[w] for w in reached) / sum(speeds[w] for w in reached), time + slack)
                limiting = reached
        for expert, part in self._part.items():
            for worker, served in part.items():
                self._array[expert, worker] = served
        mask = np.zeros(len(speeds), dtype=bool)
        mask[sorted(limiting)] = True
        busiest = max(load[w] / speeds[w] for w in workers)
        return Shared(self._array, busiest, mask)

    def _augment(self, over: list[int], time: float, slack: float) -> set[int] | None:
        """Send load from one worker of `over` to one that takes less than `time`; None, or all that was reached."""
        load, speeds, least = self._load, self._speeds, slack * min(self._speeds)
        for start in over:
            before: dict[int, tuple[int, int]] = {start: (start, -1)}
            queue = deque([start])
            while queue:
                worker = queue.popleft()
                if load[worker] - time * speeds[worker] < -slack * speeds[worker]:
                    self._push(start, worker, before, time)
                    return None
                for expert in self._on[worker]:
                    part = self._part[expert]
                    if part[worker] > least:
                        for other in part:
                            if other not in before:
                                before[other] = (worker, expert)
                                queue.append(other)
            return set(before)
        return None

    def _push(self, start: int, end: int, before: dict[int, tuple[int, int]], time: float) -> None:
        load, speeds = self._load, self._speeds
        amount = min(load[start] - time * speeds[start], time * speeds[end] - load[end])
        path = []
        at = end
        while at != start:
            source, expert = before[at]
            path.append((source, at, expert))
            at = source
        amount = min(amount, *(self._part[expert][source] for source, _, expert in path))
        for source, target, expert in path:
            self._part[expert][source] -= amount
            self._part[expert][target] += amount
        load[start] -= amount
        load[end] += amount
