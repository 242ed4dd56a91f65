"""One layer of a placement problem, and the quick answer to it; `solver` calls it layer by layer.

A layer's placement is a set of (expert, worker) pairs, its `held`; its shares say how an expert's load is split between
its replicas. Everything here is pure.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

Pair = tuple[int, int]
"""(expert index, worker position)."""

SHARE_ROUNDS = 30


@dataclass(frozen=True)
class LayerProblem:
    """What is to be placed in one layer.

    Attributes:
        loads: [experts] tokens per unit of time, positive somewhere.
        speeds: [workers] relative speed.
        slots: [workers] replicas of this layer that each worker may hold at most.
        total_slots: Replicas of this layer that all workers may hold together.
        current: Pairs that are resident already; any other costs `move_price`.
        move_price: In units of load / speed.
    """

    loads: tuple[float, ...]
    speeds: tuple[float, ...]
    slots: tuple[int, ...]
    total_slots: int
    current: frozenset[Pair]
    min_replicas: int
    max_replicas: int
    move_price: float

    def makespan_bound(self) -> float:
        """Lower bound of the makespan: perfect balance, or the hottest expert spread as far as is allowed."""
        fastest = sum(sorted(self.speeds, reverse=True)[: self.max_replicas])
        return max(sum(self.loads) / sum(self.speeds), max(self.loads) / fastest)

    def bound(self) -> float:
        """Lower bound of the objective: that of the makespan, and the moves without which experts lack replicas."""
        resident = Counter(expert for expert, _ in self.current)
        missing = sum(max(0, self.min_replicas - resident[expert]) for expert in range(len(self.loads)))
        return max(self.makespan_bound() + self.move_price * missing, self.balancing_bound())

    def balancing_bound(self) -> float:
        """Lower bound of the objective: a makespan, and the moves without which no placement has it.

        In time t a worker serves no more than `speed · t`, nor more than the loads that are resident on it and those
        that are moved there, each at most the hottest expert's. So what is left of all loads tells how many moves t
        takes. t plus their price is convex in t, with its kinks where a worker serves just what is resident.
        """
        resident = [sum(self.loads[e] for e, at in self.current if at == worker) for worker in range(len(self.speeds))]
        least = self.makespan_bound()
        kinks = [least, *(load / speed for load, speed in zip(resident, self.speeds, strict=True))]

        def objective(time: float) -> float:
            served = sum(min(speed * time, load) for speed, load in zip(self.speeds, resident, strict=True))
            return time + self.move_price * max(0.0, sum(self.loads) - served) / max(self.loads)

        return min(objective(time) for time in kinks if time >= least)


@dataclass(frozen=True)
class LayerPlacement:
    """An answer: (expert, worker) → load served there, for every replica, also one that serves nothing."""

    served: dict[Pair, float]
    proven: bool = False

    def makespan(self, problem: LayerProblem) -> float:
        """The busiest worker's time."""
        return max(worker_times(problem, self.served))

    def objective(self, problem: LayerProblem) -> float:
        """Makespan plus the price of the replicas that are not resident yet."""
        return self.makespan(problem) + problem.move_price * len(self.served.keys() - problem.current)


def worker_times(problem: LayerProblem, served: dict[Pair, float]) -> list[float]:
    """[workers] time each needs for the load that it serves."""
    times = [0.0] * len(problem.speeds)
    for (_, worker), load in served.items():
        times[worker] += load / problem.speeds[worker]
    return times


def balance_shares(problem: LayerProblem, held: set[Pair]) -> dict[Pair, float]:
    """Split each expert's load between its replicas so that the busiest worker is as idle as can be.

    Replicated experts are visited in turn; each pours its load onto the least busy of its workers (water-filling),
    until the makespan no longer falls. Exact for one replicated expert, near it for several.
    """
    holders: dict[int, list[int]] = defaultdict(list)
    for expert, worker in sorted(held):
        holders[expert].append(worker)
    served = {(e, w): problem.loads[e] / len(ws) for e, ws in holders.items() for w in ws}
    replicated = [expert for expert, workers in holders.items() if len(workers) > 1 and problem.loads[expert] > 0]
    before = float("inf")
    for _ in range(SHARE_ROUNDS):
        times = worker_times(problem, served)
        if before - max(times) <= 1e-9 * max(times):
            break
        before = max(times)
        for expert in replicated:
            for worker in holders[expert]:
                times[worker] -= served[expert, worker] / problem.speeds[worker]
            for worker, load in pour(problem.loads[expert], holders[expert], times, problem.speeds).items():
                served[expert, worker] = load
                times[worker] += load / problem.speeds[worker]
    return served


def pour(load: float, workers: list[int], times: list[float], speeds: tuple[float, ...]) -> dict[int, float]:
    """Share `load` between `workers`, filling up the least busy first until all that got some are level."""
    order = sorted(workers, key=lambda worker: times[worker])
    level, speed, filled = times[order[0]], 0.0, 0
    remaining = load
    for worker in order:
        needed = (times[worker] - level) * speed
        if filled and needed >= remaining:
            break
        remaining -= needed
        level, speed, filled = times[worker], speed + speeds[worker], filled + 1
    level += remaining / speed
    return {w: max(0.0, (level - times[w]) * speeds[w]) if i < filled else 0.0 for i, w in enumerate(order)}


def greedy(problem: LayerProblem) -> LayerPlacement | None:
    """Longest load first onto the least busy worker, a move costing its price; then replicas while they pay.

    Returns:
        A placement, or None when the slots do not suffice.
    """
    held: set[Pair] = set()
    times = [0.0] * len(problem.speeds)
    free = list(problem.slots)
    by_load = sorted(range(len(problem.loads)), key=lambda expert: -problem.loads[expert])
    for _ in range(problem.min_replicas):
        for expert in by_load:
            candidates = [w for w in range(len(free)) if free[w] > 0 and (expert, w) not in held]
            if not candidates:
                return None
            load = problem.loads[expert] / problem.min_replicas
            worker = min(candidates, key=lambda w: times[w] + load / problem.speeds[w] + price_of(problem, expert, w))
            held.add((expert, worker))
            times[worker] += load / problem.speeds[worker]
            free[worker] -= 1
    return replicate(problem, held, free)


def price_of(problem: LayerProblem, expert: int, worker: int) -> float:
    """What it costs to have a replica of `expert` on `worker`."""
    return 0.0 if (expert, worker) in problem.current else problem.move_price


def replicate(problem: LayerProblem, held: set[Pair], free: list[int]) -> LayerPlacement:
    """Add a replica of an expert of the busiest worker on the least busy one, as long as the objective falls."""
    best = LayerPlacement(balance_shares(problem, held))
    while len(held) < problem.total_slots:
        times = worker_times(problem, best.served)
        busiest = max(range(len(times)), key=times.__getitem__)
        addition = next(candidate_replicas(problem, best, busiest, times, free), None)
        if addition is None:
            break
        trial = LayerPlacement(balance_shares(problem, held | {addition}))
        if trial.objective(problem) >= best.objective(problem) - 1e-12:
            break
        best = trial
        held = held | {addition}
        free[addition[1]] -= 1
    return best


def candidate_replicas(
    problem: LayerProblem, best: LayerPlacement, busiest: int, times: list[float], free: list[int]
) -> Iterator[Pair]:
    """Pairs that would relieve the busiest worker, the most promising first."""
    served_there = sorted(((load, e) for (e, w), load in best.served.items() if w == busiest), reverse=True)
    for _, expert in served_there:
        if sum((expert, worker) in best.served for worker in range(len(times))) >= problem.max_replicas:
            continue
        targets = [w for w in range(len(times)) if free[w] > 0 and (expert, w) not in best.served]
        if targets:
            yield expert, min(targets, key=lambda w: times[w] + price_of(problem, expert, w))
