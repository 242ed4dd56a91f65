"""Sizes of the two pools and how they may change: stabilisation, tolerance and rates of HPA v2; and the budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flexpert_operator.autoscale.policy import Direction, Policy, Rate, Select, Unit

GRAIN = 0.02


@dataclass(frozen=True)
class Sizes:
    """How many engines and expert workers."""

    engines: int
    experts: int

    def __str__(self) -> str:
        return f"{_count(self.engines, 'engine')} and {_count(self.experts, 'worker')}"

    def devices(self, policy: Policy) -> int:
        """Devices that they take."""
        return self.engines * policy.engine_devices + self.experts * policy.worker_devices


@dataclass(frozen=True)
class Wish:
    """Sizes that were wanted at a moment.

    Attributes:
        lasting: Without what is wanted only until what waits is served.
    """

    at: float
    sizes: Sizes
    lasting: Sizes


@dataclass(frozen=True)
class Change:
    """What was added to each pool at a moment; below 0 what was taken away."""

    at: float
    engines: int
    experts: int


def stabilised(
    size: int, wished: Sequence[tuple[float, int]], at: float, up: Direction, down: Direction, window_s: float
) -> int:
    """The size nearest to the present one that all wishes of the windows agree on.

    Args:
        size: The present one.
        wished: (at, size) wanted lately, the newest included.
        at: Now.
        up: How it may grow: not beyond the least that was wanted in its window.
        down: How it may shrink: not below the most that was wanted in its window.
        window_s: That window.
    """
    newest = wished[-1][1]
    least = min([newest, *(one for when, one in wished if when > at - (up.stabilisation_s or 0.0))])
    most = max([newest, *(one for when, one in wished if when > at - window_s)])
    if least > size and least > size * (1 + up.tolerance):
        return least
    if most < size and most < size * (1 - down.tolerance):
        return most
    return size


def held(wishes: Sequence[Wish], wanted: Sizes, since: float, policy: Policy, near: Sizes) -> Sizes:
    """What takes the most devices of what is wanted and what would have lasted since a moment; if equal, the former."""
    known = [wanted, *(one.lasting for one in wishes if one.at > since)]
    return max(known, key=lambda one: (one.devices(policy), one == wanted, one.engines == near.engines))


def in_grains(size: int, wanted: int) -> int:
    """Large pools do not change by a member or two: they grow by 2 % at least, and shrink where that makes 4 %."""
    grain = int(GRAIN * size)
    if wanted > size:
        return max(wanted, size + grain)
    return wanted if size - wanted > 2 * grain or wanted == 0 else size


def limited(size: int, wanted: int, changed: Sequence[tuple[float, int]], at: float, way: Direction) -> int:
    """As far from `size` towards `wanted` as the rates of that direction allow.

    Args:
        size: The present one.
        wanted: The one to come to.
        changed: (at, how much) it changed lately.
        at: Now.
        way: The direction's behavior.
    """
    if wanted == size:
        return size
    if way.select is Select.DISABLED:
        return size
    grows = wanted > size
    ends = [_furthest(size, rate, changed, at, grows) for rate in way.rates]
    if not ends:
        return wanted
    far, near = (max, min) if grows else (min, max)
    end = far(ends) if way.select is Select.MAX else near(ends)
    return min(wanted, max(end, size)) if grows else max(wanted, min(end, size))


def _furthest(size: int, rate: Rate, changed: Sequence[tuple[float, int]], at: float, grows: bool) -> int:
    """Where a rate lets a pool end, which began its period where it was before the changes in it."""
    sign = 1 if grows else -1
    began = size - sum(change for when, change in changed if when > at - rate.period_s and change * sign > 0)
    if rate.unit is Unit.PIECES:
        return began + sign * rate.value
    share = began * rate.value / 100
    return began + (math.ceil(share) if grows else -math.floor(share))


def within_budget(present: Sizes, existing: Sizes, wanted: Sizes, policy: Policy, first: str) -> Sizes:
    """`wanted` with so much less growth that the budget holds also while what goes is still there.

    Args:
        present: Sizes as last decided.
        existing: Members that hold devices, those about to go included.
        wanted: Sizes to come to.
        policy: Its budget.
        first: "engines" or "experts", which grows first.
    """
    if policy.devices is None:
        return wanted
    held = Sizes(
        max(existing.engines, min(present.engines, wanted.engines)),
        max(existing.experts, min(present.experts, wanted.experts)),
    )
    free = policy.devices - held.devices(policy)
    engines, experts = wanted.engines, wanted.experts
    for pool in ("engines", "experts") if first == "engines" else ("experts", "engines"):
        if pool == "engines":
            grown = _affordable(wanted.engines - held.engines, policy.engine_devices, free)
            engines = min(wanted.engines, max(held.engines, 0) + grown)
            free -= grown * policy.engine_devices
        else:
            grown = _affordable(wanted.experts - held.experts, policy.worker_devices, free)
            experts = min(wanted.experts, held.experts + grown)
            free -= grown * policy.worker_devices
    return Sizes(engines, experts)


def trimmed(sizes: Sizes, policy: Policy, first: str) -> Sizes:
    """As many as the budget has devices for; the pool that is not `first` is cut first, to its minimum at most."""
    for pool in ("experts", "engines") if first == "engines" else ("engines", "experts"):
        over = 0 if policy.devices is None else sizes.devices(policy) - policy.devices
        if over > 0 and pool == "engines":
            fewer = _cut(sizes.engines, policy.engine_devices, over, policy.engines.minimum)
            sizes = Sizes(fewer, sizes.experts)
        elif over > 0:
            sizes = Sizes(sizes.engines, _cut(sizes.experts, policy.worker_devices, over, policy.experts.minimum))
    return sizes


def _cut(size: int, each: int, over: int, minimum: int) -> int:
    return max(size - -(-over // max(each, 1)), min(size, max(minimum, 1)))


def _affordable(more: int, each: int, free: int) -> int:
    return max(0, more if each == 0 else min(more, max(free, 0) // each))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
