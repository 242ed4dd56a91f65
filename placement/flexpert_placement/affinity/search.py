"""A tabu search over the moves and swaps of one layer's single experts, in the line of Kernighan and Lin.

Every step takes the best change there is, a worsening one too, and what has just moved stays for a while; the best
placement seen is what remains. So the search leaves places where no single swap helps any more.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flexpert_placement.affinity.pairs import State
from flexpert_placement.instance import Bools, Floats, Ints

TENURE = 6
"""Steps for which an expert that moved stays at least; at most twice as many."""

TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Room:
    """What a layer's placement has to keep to.

    Attributes:
        loads: [experts].
        speeds: [workers].
        limit: Time that no worker may exceed.
        caps: [workers] replicas of this layer at most.
        held: [experts, workers] replicas that there are; changed along with the placement.
        movable: [experts] single experts whose one replica may go anywhere.
        arrival: [experts, workers] price of a replica there, in groups per token: that of a copy where there is none.
    """

    loads: Floats
    speeds: Floats
    limit: float
    caps: Ints
    held: Bools
    movable: Bools
    arrival: Floats

    def times(self, shares: Floats) -> Floats:
        """[workers] time of each under shares [experts, workers]."""
        return np.asarray(self.loads @ shares / self.speeds)


@dataclass(frozen=True)
class _Step:
    change: float
    moves: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class _Rule:
    """Which steps are allowed: no worker they touch may take longer than `bar`, and

    Attributes:
        free: [experts] that may move.
        either: Whether one free expert is enough for a swap, or both must be.
        wanted: Steps that bring as much, which is negative, are allowed whatever moves.
    """

    bar: float
    free: Bools
    either: bool = False
    wanted: float = -np.inf

    def swaps(self, change: Floats) -> Bools:
        """[experts, experts]."""
        one, other = self.free[:, None], self.free[None, :]
        return np.asarray((one | other if self.either else one & other) | (change < self.wanted))

    def moves(self, change: Floats) -> Bools:
        """[experts, workers]."""
        return np.asarray(self.free[:, None] | (change < self.wanted))


def search(
    state: State,
    room: Room,
    rng: np.random.Generator,
    steps: int,
    patience: int,
    out_of_time: Callable[[], bool],
) -> None:
    """Lower the cost of a layer's placement in place, keeping every worker's time and replicas within bounds.

    A placement that is over the limit to begin with is made faster first, as far as moves and swaps can.

    Args:
        state: The layer.
        room: What it keeps to; `room.held` changes.
        rng: Draws for how long an expert stays.
        steps: At most.
        patience: Steps without a new best after which the search ends.
        out_of_time: Ends the search.
    """
    _relieve(state, room)
    bar = max(room.limit, float(room.times(state.shares).max())) * (1 + TOLERANCE)
    cost = best = state.cost() + float(room.arrival[room.held].sum())
    best_home = state.home.copy()
    free_at = np.zeros(len(room.loads), dtype=np.int64)
    stale = 0
    for step in range(1, steps + 1):
        found = _best_step(state, room, _Rule(bar, free_at <= step, wanted=best - cost - TOLERANCE))
        if found is None or stale >= patience or out_of_time():
            break
        _apply(state, room, found.moves)
        cost, stale = cost + found.change, stale + 1
        for expert, _ in found.moves:
            free_at[expert] = step + TENURE + int(rng.integers(0, TENURE))
        if cost < best - TOLERANCE:
            best, best_home, stale = cost, state.home.copy(), 0
    back = np.flatnonzero(best_home != state.home)
    if len(back):
        _apply(state, room, tuple((int(expert), int(best_home[expert])) for expert in back))


def _relieve(state: State, room: Room) -> None:
    """Take from the busiest worker, as cheaply as can be, until it keeps to the limit or nothing helps."""
    for _ in range(4 * len(room.loads)):
        times = room.times(state.shares)
        if times.max() <= room.limit * (1 + TOLERANCE):
            return
        found = _best_step(
            state, room, _Rule(float(times.max()) * (1 - 1e-6), state.home == times.argmax(), either=True)
        )
        if found is None:
            return
        _apply(state, room, found.moves)


def _apply(state: State, room: Room, moves: tuple[tuple[int, int], ...]) -> None:
    state.move(moves)
    for expert, worker in moves:
        room.held[expert] = False
        room.held[expert, worker] = True


def _best_step(state: State, room: Room, rule: _Rule) -> _Step | None:
    """The best change that the rule allows."""
    home = np.where(room.movable, state.home, 0)
    times = room.times(state.shares)
    arrival = room.arrival - np.take_along_axis(room.arrival, home[:, None], axis=1)
    options = (_best_swap(state, room, rule, times, home, arrival), _best_move(state, room, rule, times, home, arrival))
    return min((step for step in options if step is not None), key=lambda step: step.change, default=None)


def _best_swap(state: State, room: Room, rule: _Rule, times: Floats, home: Ints, arrival: Floats) -> _Step | None:
    there = arrival[:, home]
    change = state.swaps() + there + there.T
    gain = (room.loads[None, :] - room.loads[:, None]) / room.speeds[home][:, None]
    slower = times[home][:, None] + gain
    fits = (np.maximum(slower, slower.T) <= rule.bar) & (home[:, None] != home[None, :])
    fits &= room.movable[:, None] & room.movable[None, :] & rule.swaps(change)
    change = np.where(fits, change, np.inf)
    first, second = divmod(int(change.argmin()), len(home))
    if not np.isfinite(change[first, second]):
        return None
    return _Step(float(change[first, second]), ((first, int(home[second])), (second, int(home[first]))))


def _best_move(state: State, room: Room, rule: _Rule, times: Floats, home: Ints, arrival: Floats) -> _Step | None:
    change = state.prices() + arrival
    fits = times[None, :] + room.loads[:, None] / room.speeds[None, :] <= rule.bar
    fits &= (room.held.sum(axis=0) < room.caps)[None, :] & room.movable[:, None]
    fits &= (np.arange(len(room.speeds))[None, :] != home[:, None]) & rule.moves(change)
    change = np.where(fits, change, np.inf)
    expert, worker = divmod(int(change.argmin()), len(room.speeds))
    if not np.isfinite(change[expert, worker]):
        return None
    return _Step(float(change[expert, worker]), ((expert, worker),))
