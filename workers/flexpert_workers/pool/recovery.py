"""Where experts go that lost replicas. Pure; `controller` calls it when a worker dies or lacks what it should hold.

Experts that still have a replica only lose the dead one. An expert without any goes to a worker that happens to hold a
copy, else to the least loaded worker with room: one whose page owner had it lent to the dead one, where it is attached
and no byte moves, before others, where it is copied from a live peer that has it, else read from the file.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flexpert_workers.pool.state import Condition, Expert, Move, Placement, Worker
from flexpert_workers.pool.tables import replicas_gone, without_replicas


@dataclass(frozen=True)
class Recovery:
    """What restores invariant 1: `target` is complete when `unplaced` is empty."""

    moves: tuple[Move, ...]
    target: Placement
    unplaced: tuple[Expert, ...]


def held_by(workers: Sequence[Worker]) -> Mapping[str, frozenset[Expert]]:
    """What each live worker holds."""
    return {worker.id: worker.experts for worker in workers if worker.live}


def needs_recovery(placement: Placement, workers: Sequence[Worker]) -> bool:
    """Whether the placement names replicas that are not there."""
    return bool(replicas_gone(placement, held_by(workers)))


def plan_recovery(
    placement: Placement, workers: Sequence[Worker], expert_bytes: int, loads: Mapping[Expert, float]
) -> Recovery:
    """Drop the replicas that are gone from `placement` and give every expert without one a new home.

    Args:
        placement: Of the table in force.
        workers: All that are known; only live ones that do not stand by are used, draining ones as the last resort.
        expert_bytes: Of one replica.
        loads: Tokens per expert, any unit; missing ones count as none.
    """
    held = held_by(workers)
    kept, lost = without_replicas(placement, replicas_gone(placement, held))
    target: dict[Expert, Mapping[str, float]] = dict(kept)
    homes = _Homes.of([worker for worker in workers if worker.placeable], kept, expert_bytes, loads)
    domains = {worker.id: worker.domain for worker in workers}
    moves: list[Move] = []
    unplaced: list[Expert] = []
    for expert in sorted(lost, key=lambda one: (-loads.get(one, 0.0), one)):
        holders = tuple(sorted(worker for worker, experts in held.items() if expert in experts))
        beside = frozenset(domains[worker] for worker in placement[expert] if domains.get(worker))
        home = homes.take(loads.get(expert, 0.0), holders, beside)
        if home is None:
            unplaced.append(expert)
            continue
        target[expert] = {home: 1.0}
        if home not in holders:
            moves.append(Move(expert, home, (*holders, "")))
    return Recovery(tuple(moves), target, tuple(unplaced))


@dataclass
class _Homes:
    """Room and load of each able worker while lost experts are handed out; lives for one `plan_recovery`."""

    free: dict[str, int]
    load: defaultdict[str, float]
    count: defaultdict[str, int]
    draining: frozenset[str]
    domain: Mapping[str, str]

    @classmethod
    def of(cls, able: Sequence[Worker], kept: Placement, expert_bytes: int, loads: Mapping[Expert, float]) -> "_Homes":
        load, count = defaultdict[str, float](float), defaultdict[str, int](int)
        for expert, shares in kept.items():
            for worker, share in shares.items():
                load[worker] += share * loads.get(expert, 0.0)
                count[worker] += 1
        free = {worker.id: worker.free_bytes // max(1, expert_bytes) for worker in able}
        draining = frozenset(worker.id for worker in able if worker.condition is Condition.DRAINING)
        return cls(free, load, count, draining, {worker.id: worker.domain for worker in able})

    def take(self, load: float, holders: tuple[str, ...], beside: frozenset[str]) -> str | None:
        """A home for one expert: a holder if there is one, else a worker with room, first of those of the domains
        `beside`; the least loaded of them.
        """
        roomy = [worker for worker, free in self.free.items() if free > 0]
        candidates = holders or tuple(w for w in roomy if w not in self.draining) or tuple(roomy)
        if not candidates:
            return None
        home = min(candidates, key=lambda w: (w in self.draining, *self._cost(w, beside), w))
        self.load[home] += load
        self.count[home] += 1
        if home not in holders:
            self.free[home] -= 1
        return home

    def _cost(self, worker: str, beside: frozenset[str]) -> tuple[bool, float, int]:
        return self.domain.get(worker, "") not in beside, self.load[worker], self.count[worker]
