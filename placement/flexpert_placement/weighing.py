"""How good a layer's replicas are, for many small changes at once; `search` asks.

With few workers the makespan is exact for all changes together: it is the largest, over the sets of workers, of the
load that only they can serve over their speed (Hall's condition; `shares` proves it). With more, an estimate sorts them
and the best few are weighed exactly, one by one.
"""

from dataclasses import dataclass

import numpy as np

from flexpert_placement.candidates import NONE, E, F, U, V, W, apply
from flexpert_placement.instance import Bools, Floats, Ints
from flexpert_placement.layer import Layer
from flexpert_placement.shares import share_out

MOST_WORKERS = 8
"""More workers than this have too many sets."""

SHORTLIST_BY_SETS = 1500
SHORTLIST_BY_FLOW = 6


@dataclass(frozen=True, eq=False)
class Weighed:
    """Replicas of a layer, weighed.

    Attributes:
        makespan: The busiest worker's time.
        score: About the makespan, and more the more workers are about as busy: falls where the makespan does not yet.
        busy: [W] workers that load has to leave.
        loads: [W].
    """

    makespan: float
    score: float
    busy: Bools
    loads: Floats


class Scale:
    """Weighs replicas of layers whose workers have the same speeds."""

    def __init__(self, speeds: Floats, sharpness: float) -> None:
        """`sharpness`: how little the less busy count; the higher, the nearer scores are to makespans."""
        self._speeds = speeds
        self._sharpness = sharpness
        self._by_sets = len(speeds) <= MOST_WORKERS
        if self._by_sets:
            numbers = np.arange(2 ** len(speeds))
            self._members = (numbers[:, None] >> np.arange(len(speeds))) & 1 == 1
            self._speed = np.maximum(self._members @ speeds, 1e-300)
            self._inside = ((numbers[:, None] & ~numbers[None, :]) == 0).astype(np.float64)
            self._inside[:, 0] = 0.0

    def weigh(self, layer: Layer, held: Bools) -> Weighed:
        """Weigh replicas [E, W]."""
        shared = share_out(held, layer.loads, layer.speeds)
        if not self._by_sets:
            score = float(self._soft((shared.loads / self._speeds)[None, :])[0])
            return Weighed(shared.makespan, score, shared.limiting, shared.loads)
        times = (layer.loads @ self._inside[self._mask(held)]) / self._speed
        tight = np.flatnonzero(times >= times.max() * (1 - 1e-9))
        smallest = tight[int(np.argmin(self._members[tight].sum(axis=1)))]
        return Weighed(shared.makespan, float(self._soft(times[None, :])[0]), self._members[smallest], shared.loads)

    def scores(self, layer: Layer, held: Bools, now: Weighed, changes: Ints) -> tuple[Ints, Floats]:
        """The most promising of `changes` [n, 5], as row numbers, and their scores."""
        estimates = self._estimates(layer, held, now, changes)
        count = SHORTLIST_BY_SETS if self._by_sets else SHORTLIST_BY_FLOW
        chosen = np.argsort(estimates, kind="stable")[:count]
        if self._by_sets:
            return chosen, self._scores_by_sets(layer, held, changes[chosen])
        exact = [self.weigh(layer, apply(held, changes[row])).score for row in chosen]
        return chosen, np.array(exact)

    def _mask(self, held: Bools) -> Ints:
        return np.asarray(held @ (1 << np.arange(held.shape[1])))

    def _soft(self, times: Floats) -> Floats:
        most = times.max(axis=1)
        weights = np.exp(self._sharpness * (times / most[:, None] - 1.0)).sum(axis=1)
        return np.asarray(most * (1.0 + np.log(weights) / self._sharpness))

    def _scores_by_sets(self, layer: Layer, held: Bools, changes: Ints) -> Floats:
        masks = self._mask(held)
        only = layer.loads @ self._inside[masks]
        bit = 1 << np.arange(held.shape[1])
        expert, other = changes[:, E], np.maximum(changes[:, F], 0)
        after = (masks[expert] & ~np.where(changes[:, U] != NONE, bit[changes[:, U]], 0)) | bit[changes[:, W]]
        there = np.where(changes[:, F] != NONE, bit[changes[:, W]], 0)
        goes = np.where(changes[:, V] != NONE, bit[changes[:, V]], 0)
        after_other = (masks[other] & ~there) | goes
        times = only + layer.loads[expert, None] * (self._inside[after] - self._inside[masks[expert]])
        times += layer.loads[other, None] * (self._inside[after_other] - self._inside[masks[other]])
        return self._soft(times / self._speed)

    def _estimates(self, layer: Layer, held: Bools, now: Weighed, changes: Ints) -> Floats:
        """[n] about the makespan of the busy workers and of the target's level, if load flowed freely within each."""
        speeds, loads = self._speeds, layer.loads
        times = now.loads / speeds
        level = np.abs(times[:, None] - times[None, :]) <= 1e-6 * max(now.makespan, 1e-300)
        level &= ~now.busy[None, :]
        level_load, level_speed = level @ now.loads, level @ speeds
        busy_load, busy_speed = float(now.loads[now.busy].sum()), float(speeds[now.busy].sum())
        target = changes[:, W]
        away_load, away_speed = level_load[target], np.maximum(level_speed[target], 1e-300)
        load = loads[changes[:, E]]
        copies = held.sum(axis=1)
        stays = (changes[:, U] == NONE) | (copies[changes[:, E]] > 1)
        returning = (changes[:, F] != NONE) & (changes[:, V] != NONE)
        whole_back = returning & (copies[np.maximum(changes[:, F], 0)] == 1)
        into_busy = now.busy[np.maximum(changes[:, V], 0)]
        back = np.where(whole_back, loads[np.maximum(changes[:, F], 0)], 0.0)
        least = np.where(stays, 0.0, load) - np.where(into_busy, back, 0.0)
        most = load - np.where(into_busy, back, 0.0)
        gone = np.where(whole_back & ~into_busy, back, 0.0)
        together = (busy_load + away_load - gone) / (busy_speed + away_speed)
        flow = np.clip(busy_load - together * busy_speed, least, most)
        return np.asarray(np.maximum((busy_load - flow) / busy_speed, (away_load - gone + flow) / away_speed))
