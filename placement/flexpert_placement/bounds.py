"""Lower bounds that no placement can beat, proven without a solver; `solver` reports the gap to them.

docs/placement.md derives each. A layer's bound depends on how many replicas it may have; since memory is shared by all
layers, the layers' bounds are added up for the best way to share the replicas out, fractions allowed.
"""

import heapq
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from flexpert_placement.evaluate import move_prices
from flexpert_placement.exact_groups import MOST_EXPERTS, MOST_WORK, Subsets, best_groups, work
from flexpert_placement.groups import Partition
from flexpert_placement.instance import Floats, Instance, Ints


class Bounds:
    """The bounds of a problem, each computed when it is first asked for."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    @cached_property
    def makespan(self) -> float:
        """Lower bound of the sum of the layers' makespans, in units of load / speed."""
        return shared_bound(self.trails, self.spare)

    @cached_property
    def objective(self) -> float:
        """Lower bound of `evaluate.objective_of`: the makespans and the moves that lost replicas or balance take."""
        cheapest = move_prices(self._instance).min(axis=1, initial=np.inf)
        together = self._instance.problem.weights.makespan * self.makespan
        return max(together + float((cheapest * self._missing).sum()), float(self.objectives.sum()))

    @cached_property
    def objectives(self) -> Floats:
        """[layers] lower bounds of what each layer adds to the objective, whatever memory the others take."""
        weight, prices = self._instance.problem.weights.makespan, move_prices(self._instance)
        cheapest = prices.min(axis=1, initial=np.inf)
        balancing = [balancing_bound(self._instance, n, weight, row) for n, row in enumerate(prices)]
        return np.asarray(np.maximum(weight * self.least + cheapest * self._missing, balancing))

    @cached_property
    def least(self) -> Floats:
        """[layers] lower bounds of each layer's makespan, whatever memory the others take."""
        return np.array([trail[-1] for trail in self.trails])

    @cached_property
    def trails(self) -> list[list[float]]:
        """For each layer, lower bounds of its makespan with 0, 1, 2, … replicas beyond the fewest."""
        return [self._trail(layer) for layer in range(self._instance.shape[0])]

    @cached_property
    def spare(self) -> int:
        """Replicas beyond the fewest that all slots together have room for."""
        layers, experts, _ = self._instance.shape
        slots = int(np.minimum(self._instance.slots, layers * experts).sum())
        return max(0, slots - int(np.maximum(self._instance.fewest, 1).sum()))

    @cached_property
    def exact_merges(self) -> int | None:
        """With how many replicas to spare `exact_groups` answers for a layer; None where layers are too large."""
        layers, experts, workers = self._instance.shape
        if experts > MOST_EXPERTS or (self._instance.fewest > 1).any():
            return None
        most = min(self._spare_of(0), workers - 1) if self._alike and int(self._instance.most.max(initial=1)) > 1 else 0
        fitting = (m for m in range(most, -1, -1) if layers * work(experts, workers, m, self._alike) <= MOST_WORK)
        return next(fitting, None)

    def best_groups(self, layer: int, slots: Ints) -> Partition | None:
        """The best groups of a layer of few experts, workers having so many `slots` [workers] of it."""
        merges = self.exact_merges
        if merges is None:
            return None
        return best_groups(self._subsets, self._instance.loads[layer], self._instance.speeds, slots, merges)

    @cached_property
    def _alike(self) -> bool:
        return bool(np.ptp(self._instance.speeds) == 0)

    @cached_property
    def _subsets(self) -> Subsets:
        return Subsets(self._instance.shape[1], first_inside=self._alike)

    @cached_property
    def _missing(self) -> Ints:
        """[layers] replicas that experts lack."""
        lacking = np.maximum(self._instance.fewest, 1) - self._instance.current.sum(axis=2)
        return np.asarray(np.maximum(lacking, 0).sum(axis=1))

    def _spare_of(self, layer: int) -> int:
        """Replicas beyond the fewest that the slots of a layer have room for."""
        needed = int(np.maximum(self._instance.fewest[layer], 1).sum())
        return min(self.spare, max(0, int(self._instance.layer_slots.sum()) - needed))

    def _trail(self, layer: int) -> list[float]:
        trail = layer_bounds(self._instance, layer, self._spare_of(layer))
        slots = self._instance.layer_slots
        exact = self.best_groups(layer, np.full_like(slots, slots.max()) if self._alike else slots)
        if exact is None or self.exact_merges is None:
            return trail
        known = [*exact.trail, *[exact.trail[-1]] * (self.exact_merges - exact.merges)]
        trail += [trail[-1]] * (len(known) - len(trail))
        return [max(pair) for pair in zip(trail, [*known, *[0.0] * (len(trail) - len(known))], strict=True)]


def makespan_bound(instance: Instance) -> float:
    """Lower bound of the sum of the layers' makespans, in units of load / speed."""
    return Bounds(instance).makespan


def layer_bounds(instance: Instance, layer: int, spare: int) -> list[float]:
    """Lower bounds of a layer's makespan with 0, 1, 2, … replicas beyond the fewest, until more do not help.

    The largest of three: perfect balance; the hottest experts, spread over the fastest workers; and, as long as there
    are few replicas, the experts that stay whole (see `whole_bounds`).
    """
    even = float(instance.even[layer])
    spread = spread_bounds(instance, layer, spare, even)
    whole = whole_bounds(instance, layer, spare)
    length = max(len(spread), len(whole))
    spread += [spread[-1]] * (length - len(spread))
    whole += [even] * (length - len(whole))
    return [max(even, *pair) for pair in zip(spread, whole, strict=True)]


def spread_bounds(instance: Instance, layer: int, spare: int, enough: float) -> list[float]:
    """Bounds by the hottest experts: n replicas serve no more than the n fastest workers do.

    An expert with load l and n replicas keeps one of its workers busy for l / (sum of the n highest speeds) at least.
    Giving replica after replica to the expert that is worst off makes the largest of these least.
    """
    loads = instance.loads[layer]
    fastest = np.concatenate([[0.0], np.cumsum(np.sort(instance.speeds)[::-1])])
    copies = np.minimum(np.maximum(instance.fewest[layer], 1), instance.shape[2]).tolist()
    hottest = [(-float(load / fastest[copies[e]]), e) for e, load in enumerate(loads)]
    heapq.heapify(hottest)
    bounds = [-hottest[0][0]]
    for _ in range(spare):
        expert = hottest[0][1]
        if bounds[-1] <= enough or copies[expert] >= instance.most[layer, expert]:
            break
        copies[expert] += 1
        heapq.heapreplace(hottest, (-float(loads[expert] / fastest[copies[expert]]), expert))
        bounds.append(-hottest[0][0])
    return bounds


def whole_bounds(instance: Instance, layer: int, spare: int) -> list[float]:
    """Bounds by the experts that stay whole: with r replicas to spare, at most r that may have one have more.

    Of the m heaviest, m - r are whole, each with at least the m-th load l. Within t a worker of speed s has
    floor(s · t / l) of these at most, so that t is at least the (m - r)-th smallest of the numbers k · l / s. Where all
    W workers have one speed, one of them holds k + 1 out of k · W + 1 whole experts, which weigh at least as much as
    the k + 1 lightest of the m = k · W + 1 + r heaviest.
    """
    loads = np.sort(instance.loads[layer][instance.fewest[layer] <= 1])[::-1]
    num_experts, num_workers = len(loads), len(instance.speeds)
    if not num_experts:
        return [float(instance.even[layer])]
    most_spare = min(spare, int((instance.most[layer] > 1).sum()), num_experts - 1)
    rounds = np.arange(1, -(-num_experts // num_workers) + 1)
    even = bool(np.ptp(instance.speeds) == 0)
    if not even:
        rounds = np.arange(1, num_experts + 1)
    steps = np.sort((rounds[:, None] / instance.speeds[None, :]).ravel())[:num_experts]
    heavier = np.concatenate([[0.0], np.cumsum(loads)])
    bounds = []
    for extra in range(most_spare + 1):
        bound = float((loads[extra:] * steps[: num_experts - extra]).max())
        if even:
            last = np.arange(num_workers + 1, num_experts - extra + 1, num_workers) + extra
            held = np.arange(2, len(last) + 2)
            sums = (heavier[last] - heavier[last - held]) / instance.speeds[0]
            bound = max(bound, float(sums.max(initial=0.0)))
        bounds.append(bound)
        if bound <= instance.even[layer]:
            break
    return bounds


def shared_bound(trails: Sequence[Sequence[float]], total: int) -> float:
    """Lower bound of Σ trail[units of it] over all ways to give `total` units out: their convex hulls, filled up.

    Args:
        trails: For each layer, its bound with 0, 1, 2, … units; never rising.
        total: Units there are.
    """
    value = float(sum(trail[0] for trail in trails))
    steps: list[tuple[float, int]] = []
    for trail in trails:
        steps += _hull_steps(np.asarray(trail, dtype=np.float64))
    left = total
    for gain, length in sorted(steps, reverse=True):
        used = min(length, left)
        value -= gain * used
        left -= used
    return value


def _hull_steps(trail: Floats) -> list[tuple[float, int]]:
    """(gain per unit, units) along the lower convex hull, steepest first."""
    steps = []
    start = 0
    while start < len(trail) - 1:
        gains = (trail[start] - trail[start + 1 :]) / np.arange(1, len(trail) - start)
        length = int(np.argmax(gains)) + 1
        if gains[length - 1] <= 0:
            break
        steps.append((float(gains[length - 1]), length))
        start += length
    return steps


def balancing_bound(instance: Instance, layer: int, weight: float, prices: Floats) -> float:
    """Lower bound of a layer's objective: a makespan, and the moves without which no placement has it.

    In time t a worker serves no more than speed · t, nor more than the loads that are resident on it and those that are
    moved there, each at most the hottest expert's. So what is left of all loads tells how many moves t takes, each at
    the lowest price at least. t plus their price is convex in t, with its kinks where a worker serves just what is
    resident.
    """
    loads, speeds = instance.loads[layer], instance.speeds
    resident = (instance.current[layer] * loads[:, None]).sum(axis=0)
    least = float(instance.even[layer])
    kinks = np.concatenate([[least], resident / speeds])
    kinks = kinks[kinks >= least]
    served = np.minimum(speeds[None, :] * kinks[:, None], resident[None, :]).sum(axis=1)
    moves = np.maximum(loads.sum() - served, 0.0) / loads.max()
    return float((weight * kinks + float(prices.min()) * moves).min())
