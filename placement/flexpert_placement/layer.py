"""One layer of a placement problem as arrays; what the search works on, between `instance` and `solver`."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from flexpert_placement.instance import Bools, Floats, Instance, Ints


@dataclass(frozen=True, eq=False)
class Layer:
    """What is to be placed in one layer; E experts, W workers. Times are load / speed.

    Attributes:
        loads: [E], positive somewhere.
        speeds: [W].
        slots: [W] replicas of this layer that each worker may hold at most.
        fewest: [E] replicas at least.
        most: [E] replicas at most.
        pinned: [E, W] replicas that must be.
        current: [E, W] replicas that are there; any other one is a move.
        domains: [W] number of the worker's failure domain.
        min_domains: Different failure domains that an expert's replicas must lie in.
        prices: [W] of copying a replica there, in units of time.
    """

    loads: Floats
    speeds: Floats
    slots: Ints
    fewest: Ints
    most: Ints
    pinned: Bools
    current: Bools
    domains: Ints
    min_domains: int
    prices: Floats

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.loads)

    @property
    def num_workers(self) -> int:
        """W."""
        return len(self.speeds)

    @cached_property
    def even(self) -> float:
        """Every worker's time under perfect balance."""
        return float(self.loads.sum() / self.speeds.sum())

    @cached_property
    def is_plain(self) -> bool:
        """Whether nothing but slots says where replicas may be, and every expert needs one."""
        return bool((self.fewest <= 1).all()) and not self.pinned.any() and self.min_domains <= 1

    def with_slots(self, slots: Ints) -> "Layer":
        """The same with other slots."""
        return replace(self, slots=slots)

    def cost(self, held: Bools) -> float:
        """Price of the replicas of [E, W] `held` that have to be copied."""
        return float(((held & ~self.current) @ self.prices).sum())

    def moves(self, held: Bools) -> int:
        """Replicas of [E, W] `held` that have to be copied."""
        return int((held & ~self.current).sum())


def layer_of(instance: Instance, number: int, slots: Ints, prices: Floats) -> Layer:
    """Layer `number` of a problem, where workers hold at most `slots` [W] of its replicas; [W] `prices` of copies."""
    return Layer(
        loads=instance.loads[number],
        speeds=instance.speeds,
        slots=np.minimum(slots, instance.layer_slots),
        fewest=instance.fewest[number],
        most=instance.most[number],
        pinned=instance.pinned[number],
        current=instance.current[number],
        domains=instance.domains,
        min_domains=min(instance.problem.min_failure_domains, len(np.unique(instance.domains))),
        prices=prices,
    )
