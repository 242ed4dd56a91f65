"""Lowers the fan-out of a placement without making any layer slower than allowed.

The layers are searched one by one; in the first pass a worker may hold many experts of one layer and few of another,
as its memory is shared by all. Then workers that are alike change names within layers until the slots of each are even,
the few replicas too many move where they cost least, and a second pass keeps to the slots exactly.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from flexpert_placement.affinity.layer import SPLIT, LayerState, Level
from flexpert_placement.affinity.measure import group_shares, groups_per_token, knows_tokens
from flexpert_placement.affinity.pairs import PairState, State
from flexpert_placement.affinity.search import TOLERANCE, Room, search
from flexpert_placement.affinity.split import lay_out_splits
from flexpert_placement.instance import Bools, Dense, Floats, Instance, Ints
from flexpert_placement.types import Traffic

SAMPLE_TOKENS = 4096
"""Tokens that the search looks at; more change the outcome by less than the difference between two samples."""

SAMPLE_BYTES = 32 << 20
"""Of a layer's tables at most; large models are searched with fewer tokens."""

STEPS = 300
"""Of the search in one layer and pass."""

PATIENCE = 30
"""Steps without a new best after which the search of a layer ends in the first pass, where nearly all is gained."""

SECOND_PATIENCE = 10
"""The same in the second pass."""

UNEVEN = 1.6
"""A worker's replicas in one layer, at most, over its fair part of its slots."""


@dataclass(eq=False)
class _Draft:
    """A placement on its way: [layers, experts, workers] shares and replicas."""

    shares: Floats
    held: Bools

    def used(self) -> Ints:
        return np.asarray(self.held.sum(axis=(0, 1)))

    def copy(self) -> "_Draft":
        return _Draft(self.shares.copy(), self.held.copy())


def improve_affinity(
    instance: Instance,
    dense: Dense,
    limits: Floats | None = None,
    move_price: float = 0.0,
    time_limit_s: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
) -> Dense:
    """Put experts that tokens choose together on the same workers (nodes, zones), as the problem's weights say.

    Capacity, replica bounds, pins and failure domains that `dense` keeps to are kept.

    Args:
        instance: The problem; nothing is done where neither a sample of tokens nor the co-activation is known.
        dense: A complete placement.
        limits: [layers] time that no worker may exceed; by default (1 + makespan_slack) × that of `dense`.
        move_price: Of a replica where none is now (`instance.current`), in distinct workers per token and layer.
        time_limit_s: Wall time; what has been found by then is returned.
        clock: Monotonic seconds.

    Returns:
        A placement whose fan-out, as `measure` has it, is not above that of `dense`.
    """
    if not knows_tokens(instance.traffic) or len(instance.speeds) < 2:
        return dense
    started = clock()
    work = _Work(instance, _thinned(instance), _limits(instance, dense, limits), _levels(instance), move_price)
    start = _Draft(np.nan_to_num(dense.shares), dense.held.copy())
    wide = work.searched(start, work.wide_caps(), lambda: clock() - started > 0.55 * time_limit_s)
    draft = work.repaired(work.relabelled(wide))
    draft = work.searched(draft or start, None, lambda: clock() - started > time_limit_s)
    if work.cost(draft) > work.cost(start):
        return dense
    return Dense(np.where(draft.held, draft.shares, np.nan))


class _Work:
    """What stays the same while a placement is improved."""

    def __init__(
        self, instance: Instance, traffic: Traffic, limits: Floats, levels: tuple[Level, ...], move_price: float
    ) -> None:
        self._instance, self._traffic, self._limits, self._levels = instance, traffic, limits, levels
        self._arrival = np.where(instance.current, 0.0, move_price)

    def state(self, draft: _Draft, layer: int) -> State:
        sample, pairs = self._traffic.sample, self._traffic.coactivation
        if sample is not None and len(sample):
            return LayerState(sample[:, layer], draft.shares[layer], self._levels)
        assert pairs is not None
        return PairState(pairs[layer], draft.shares[layer], self._levels)

    def room(self, draft: _Draft, layer: int, caps: Ints) -> Room:
        instance, held = self._instance, draft.held[layer].copy()
        one = (held.sum(axis=1) == 1) & (instance.fewest[layer] <= 1) & ~instance.pinned[layer].any(axis=1)
        return Room(
            loads=instance.loads[layer],
            speeds=instance.speeds,
            limit=float(self._limits[layer]),
            caps=caps,
            held=held,
            movable=one,
            arrival=self._arrival[layer],
        )

    def cost(self, draft: _Draft) -> float:
        """Groups per token, by weight, and arrivals, all layers together."""
        return float(self._arrival[draft.held].sum()) + sum(
            level.weight * groups_per_token(self._traffic, layer, shares)
            for level in self._levels
            for layer, shares in enumerate(group_shares(draft.shares, level.groups))
        )

    def wide_caps(self) -> Ints:
        """[workers] replicas of any one layer in the first pass."""
        fair = self._instance.slots / len(self._limits)
        return np.minimum(np.ceil(UNEVEN * fair).astype(np.int64), self._instance.layer_slots)

    def searched(self, start: _Draft, caps: Ints | None, out_of_time: Callable[[], bool]) -> _Draft:
        """Every layer searched; within `caps` a layer, or, without, within the slots that all layers share."""
        instance, draft = self._instance, start.copy()
        rng = np.random.default_rng(instance.problem.seed)
        for layer in range(len(draft.shares)):
            if out_of_time():
                break
            here = draft.held[layer].sum(axis=0)
            free = np.maximum(instance.slots - draft.used(), 0) if caps is None else np.maximum(caps - here, 0)
            room = self.room(draft, layer, np.minimum(here + free, instance.layer_slots))
            state = self.state(draft, layer)
            search(state, room, rng, STEPS, PATIENCE if caps is not None else SECOND_PATIENCE, out_of_time)
            if caps is None:
                lay_out_splits(
                    state,
                    room,
                    instance.fewest[layer],
                    instance.most[layer],
                    instance.pinned[layer],
                    instance.domains,
                    instance.problem.min_failure_domains,
                )
            draft.shares[layer], draft.held[layer] = state.shares, room.held
        return draft

    def relabelled(self, draft: _Draft) -> _Draft:
        """Workers that are alike change names within each layer, so that the slots they use become even.

        Only where names mean nothing else: no nodes or zones that count, no failure domains, pins or present replicas.
        """
        instance = self._instance
        named = instance.pinned.any() or instance.problem.min_failure_domains > 1 or len(self._levels) > 1
        if named or (self._arrival.any() and instance.current.any()):
            return draft
        result, used = draft.copy(), np.zeros(len(instance.speeds))
        alike = np.isclose(instance.speeds[:, None], instance.speeds[None, :])
        counts = draft.held.sum(axis=1)
        for layer in np.argsort(-counts.var(axis=1), kind="stable"):
            full = used[None, :] / np.maximum(instance.slots, 1)[None, :] * counts[layer][:, None]
            old, new = linear_sum_assignment(np.where(alike, full, 1e9))
            result.shares[layer][:, new] = draft.shares[layer][:, old]
            result.held[layer][:, new] = draft.held[layer][:, old]
            used[new] += counts[layer][old]
        return result

    def repaired(self, draft: _Draft) -> _Draft | None:
        """Replicas that are too many for a worker moved where that costs least; None when there is no way."""
        result, slots = draft.copy(), self._instance.slots
        tables: dict[int, Floats] = {}
        while (result.used() > slots).any():
            used = result.used()
            for layer in range(len(result.shares)):
                if layer not in tables:
                    tables[layer] = self._moves(result, layer)
            costs = np.stack([tables[layer] for layer in range(len(result.shares))])
            over = np.asarray((result.held & (used > slots)).any(axis=2))
            costs = np.where(over[:, :, None] & (used < slots)[None, None, :], costs, np.inf)
            layer, expert, worker = (int(number) for number in np.unravel_index(costs.argmin(), costs.shape))
            if not np.isfinite(costs[layer, expert, worker]):
                return None
            result.held[layer, expert] = result.shares[layer, expert] = 0
            result.held[layer, expert, worker] = result.shares[layer, expert, worker] = 1
            del tables[layer]
        return result

    def _moves(self, draft: _Draft, layer: int) -> Floats:
        """[experts, workers] change of the cost when an expert moves; infinite where it may not."""
        room, state = self.room(draft, layer, self._instance.slots), self.state(draft, layer)
        times = room.times(state.shares)
        bar = max(room.limit, float(times.max())) * (1 + TOLERANCE)
        fits = (times[None, :] + room.loads[:, None] / room.speeds[None, :] <= bar) & room.movable[:, None]
        fits &= np.arange(len(room.speeds))[None, :] != state.home[:, None]
        here = np.take_along_axis(room.arrival, np.where(state.home == SPLIT, 0, state.home)[:, None], axis=1)
        return np.where(fits, state.prices() + room.arrival - here, np.inf)


def _limits(instance: Instance, dense: Dense, limits: Floats | None) -> Floats:
    if limits is not None:
        return limits
    times = dense.served(instance.loads).sum(axis=1) / instance.speeds
    return np.asarray(times.max(axis=1) * (1 + instance.problem.makespan_slack))


def _levels(instance: Instance) -> tuple[Level, ...]:
    """What is minimised, by the problem's weights; the distinct workers when it weighs nothing of the kind."""
    weights, workers = instance.problem.weights, np.arange(len(instance.speeds))
    groups = ((weights.fan_out, workers), (weights.cross_node, instance.nodes), (weights.cross_zone, instance.zones))
    total = sum(weight for weight, _ in groups)
    if total <= 0:
        return (Level(1.0, workers),)
    return tuple(Level(weight / total, numbers) for weight, numbers in groups if weight > 0)


def _thinned(instance: Instance) -> Traffic:
    """The traffic with tokens spread evenly over the sample, as many as the search looks at."""
    traffic = instance.traffic
    most = min(SAMPLE_TOKENS, max(SAMPLE_BYTES // (8 * instance.shape[1]), 256))
    if traffic.sample is None or len(traffic.sample) <= most:
        return traffic
    return replace(traffic, sample=traffic.sample[np.linspace(0, len(traffic.sample) - 1, most).astype(np.int64)])
