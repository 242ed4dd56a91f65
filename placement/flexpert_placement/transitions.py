"""Transitions: how often a step to the next layer changes worker, where tokens travel from expert to expert.

The solver calls `improve_transitions` on a balanced placement when the problem weighs transitions (MoETuner's case,
arXiv 2502.06643), `evaluate` calls `transitions`, the benchmark the bound. With N_l[e, j] the tokens that go from
expert e of layer l to expert j of the next one, what stays on its worker between the two layers is
Σ_g Σ_ej N_l[e, j] s_l[e, g] s_{l+1}[j, g]: given its neighbours, a layer is an assignment problem with a load limit.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import csr_array, kron, vstack

from flexpert_placement.instance import Bools, Dense, Floats, Instance, Ints

SWEEPS = 24
"""Passes over all layers, one up and one down in turn."""

KICK = 0.3
"""Of a sweep after two that gained nothing: what is added to the stays at random, in units of their spread."""

SETTLED = 5e-4
"""Part of what stays that a sweep must gain to count."""

PRICINGS = 12
"""Tries to find prices of load under which an assignment keeps to the limit."""

TOLERANCE = 1e-9


def transitions(instance: Instance, dense: Dense) -> float:
    """Mean over steps between layers of the fraction of tokens that change worker; 0.0 when no transitions are known.

    Replicas are drawn independently in the two layers, by their shares.
    """
    steps = instance.traffic.transitions
    if steps is None or not len(steps):
        return 0.0
    shares = np.nan_to_num(dense.shares)
    stay = np.einsum("leg,lej,ljg->l", shares[:-1], steps, shares[1:], optimize=True)
    total = steps.sum(axis=(1, 2))
    return float(np.mean(1.0 - stay / np.where(total > 0, total, 1.0)))


def transitions_bound(instance: Instance, limits: Floats, caps: Ints) -> float:
    """A fraction of steps that change worker which no placement of single replicas is below.

    Between two layers, with 0 ≤ s[e, j] ≤ 1 for "e and j are on the same worker", what stays is at most the maximum of
    Σ N[e, j] s[e, j] subject to

        count:  Σ_j s[e, j] ≤ cap and Σ_e s[e, j] ≤ cap: a worker has at most so many experts of a layer
        time:   Σ_j load[j] s[e, j] ≤ room and Σ_e load[e] s[e, j] ≤ room: and no more load than it serves in time

    for the largest worker's cap and room: the relaxation of `transitions_model`, summed over workers. The steps between
    layers are bounded one by one.

    Args:
        instance: Its traffic has transitions.
        limits: [layers] time of the busiest worker at most.
        caps: [workers] experts of one layer on a worker at most.
    """
    steps = instance.traffic.transitions
    assert steps is not None
    rooms = limits * float(instance.speeds.max())
    stays = [
        _kept(flow, instance.loads[layer : layer + 2], rooms[layer : layer + 2], int(caps.max()))
        / max(float(flow.sum()), TOLERANCE)
        for layer, flow in enumerate(steps)
    ]
    return float(np.mean(1.0 - np.minimum(stays, 1.0)))


def improve_transitions(
    instance: Instance,
    dense: Dense,
    limits: Floats | None = None,
    time_limit_s: float = 5.0,
    clock: Callable[[], float] = time.monotonic,
) -> Dense:
    """Put experts on the workers that their tokens come from and go to, by assignments priced by load, layer by layer.

    Layers with replicas or pins stay as they are, and are what their neighbours adapt to. A worker keeps the number of
    experts that it has of every layer.

    Args:
        instance: The problem; nothing is done without transitions.
        dense: A complete placement.
        limits: [layers] time that no worker may exceed; by default (1 + makespan_slack) × that of `dense`.
        time_limit_s: Wall time; the best placement found by then is returned.
        clock: Monotonic seconds.

    Returns:
        A placement with at most as many transitions as `dense`.
    """
    steps = instance.traffic.transitions
    if steps is None or not len(steps) or len(instance.speeds) < 2:
        return dense
    started = clock()
    if limits is None:
        times = dense.served(instance.loads).sum(axis=1) / instance.speeds
        limits = times.max(axis=1) * (1 + instance.problem.makespan_slack)
    sweeps = _Sweeps(instance, dense, steps, limits)
    sweeps.run(lambda: clock() - started > time_limit_s)
    return sweeps.best()


class _Sweeps:
    """A placement that is swept up and down, each layer assigned anew to suit its neighbours; the best is kept."""

    def __init__(self, instance: Instance, dense: Dense, steps: Floats, limits: Floats) -> None:
        self._instance, self._dense, self._steps, self._limits = instance, dense, steps, limits
        self._shares = np.nan_to_num(dense.shares)
        one = (dense.held.sum(axis=2) == 1).all(axis=1)
        self._free = np.flatnonzero(one & ~instance.pinned.any(axis=(1, 2)))
        self._caps = dense.held.sum(axis=1)
        self._best, self._most = self._shares.copy(), self._stays()

    def run(self, out_of_time: Callable[[], bool]) -> None:
        rng = np.random.default_rng(self._instance.problem.seed)
        before, idle = self._most, 0
        for sweep in range(SWEEPS):
            noise = KICK if idle >= 2 else 0.0
            for layer in self._free if sweep % 2 == 0 else self._free[::-1]:
                self._assign(int(layer), noise, rng)
                if out_of_time():
                    break
            stays = self._stays()
            idle = 0 if noise or stays > before * (1 + SETTLED) else idle + 1
            before = stays
            if stays > self._most:
                self._best, self._most = self._shares.copy(), stays
            if out_of_time():
                return

    def best(self) -> Dense:
        held = self._dense.held.copy()
        held[self._free] = self._best[self._free] > 0
        return Dense(np.where(held, self._best, np.nan))

    def _stays(self) -> float:
        return float(np.einsum("leg,lej,ljg->", self._shares[:-1], self._steps, self._shares[1:], optimize=True))

    def _assign(self, layer: int, noise: float, rng: np.random.Generator) -> None:
        gain = np.zeros(self._shares.shape[1:])
        if layer > 0:
            gain += self._steps[layer - 1].T @ self._shares[layer - 1]
        if layer < len(self._steps):
            gain += self._steps[layer] @ self._shares[layer + 1]
        if noise:
            gain += noise * gain.std() * rng.standard_normal(gain.shape)
        row = _Row(
            gain, self._instance.loads[layer], self._instance.speeds, float(self._limits[layer]), self._caps[layer]
        )
        home = row.assigned(self._shares[layer].argmax(axis=1))
        self._shares[layer] = 0.0
        self._shares[layer, np.arange(len(home)), home] = 1.0


@dataclass(frozen=True, eq=False)
class _Row:
    """One layer: experts on workers, `caps` [workers] of them each, for the most `gain` [experts, workers] in time."""

    gain: Floats
    loads: Floats
    speeds: Floats
    limit: float
    caps: Ints

    def assigned(self, home: Ints) -> Ints:
        """[experts] workers: the best of the present ones and of what prices of load find, bettered by swaps."""
        options = [home]
        prices = np.zeros(len(self.speeds))
        slots = np.repeat(np.arange(len(self.speeds)), self.caps)
        unit = float(np.ptp(self.gain, axis=1).mean() / max(self.loads.mean(), TOLERANCE))
        for _ in range(PRICINGS):
            worth = self.gain - self.loads[:, None] * prices[None, :]
            experts, columns = linear_sum_assignment(worth[:, slots], maximize=True)
            found = np.empty_like(home)
            found[experts] = slots[columns]
            over = self.times(found) / self.limit - 1.0
            if over.max() <= TOLERANCE:
                options.append(found)
                break
            prices = np.maximum(prices + unit * over, 0.0)
        else:
            options.append(found)
        return max((self.swapped(option) for option in options), key=self.rank)

    def times(self, home: Ints) -> Floats:
        return np.bincount(home, self.loads, len(self.speeds)) / self.speeds

    def rank(self, home: Ints) -> tuple[float, float]:
        """In time first, then by gain."""
        late = max(float(self.times(home).max()) - self.limit, 0.0)
        return -late if late > self.limit * TOLERANCE else 0.0, float(self.gain[np.arange(len(home)), home].sum())

    def swapped(self, home: Ints) -> Ints:
        """Swaps until none helps: while a worker is late those that make it less so, then those that gain."""
        home = home.copy()
        for _ in range(4 * len(home)):
            change, slower = self._swaps(home)
            late = self.times(home).max() > self.limit * (1 + TOLERANCE)
            allowed = self._relief(home, slower) if late else (slower <= self.limit) & (change > TOLERANCE)
            if not allowed.any():
                return home
            first, second = divmod(int(np.where(allowed, change, -np.inf).argmax()), len(home))
            home[[first, second]] = home[[second, first]]
        return home

    def _swaps(self, home: Ints) -> tuple[Floats, Floats]:
        """([experts, experts] gain of each swap, time of the slower of the two workers afterwards)."""
        there = self.gain[:, home] - self.gain[np.arange(len(home)), home][:, None]
        times = (
            self.times(home)[home][:, None] + (self.loads[None, :] - self.loads[:, None]) / self.speeds[home][:, None]
        )
        same = home[:, None] == home[None, :]
        return there + there.T, np.where(same, np.inf, np.maximum(times, times.T))

    def _relief(self, home: Ints, slower: Floats) -> Bools:
        """[experts, experts] swaps of the busiest worker's experts after which both workers are faster than it was."""
        times = self.times(home)
        return np.asarray((home == times.argmax())[:, None] & (slower < times.max() * (1 - TOLERANCE)))


def _kept(flow: Floats, loads: Floats, rooms: Floats, cap: int) -> float:
    """What stays between two layers at most: see `transitions_bound`.

    Args:
        flow: [experts, experts].
        loads: [2, experts] of the two layers.
        rooms: [2] load on a worker at most.
        cap: Experts of a layer on a worker at most.
    """
    experts = len(flow)
    one = csr_array(np.eye(experts))
    row_sums, column_sums = kron(one, np.ones((1, experts))), kron(np.ones((1, experts)), one)
    row_loads, column_loads = kron(one, loads[1][None, :]), kron(loads[0][None, :], one)
    rows = vstack([row_sums, column_sums, row_loads / rooms[1], column_loads / rooms[0]], format="csr")
    most = np.repeat([cap, cap, 1.0, 1.0], experts)
    scale = max(float(flow.max()), TOLERANCE)
    found = linprog(-flow.ravel() / scale, A_ub=rows, b_ub=most, bounds=(0, 1), method="highs")
    return float(-found.fun) * scale if found.status == 0 else float(flow.sum())
