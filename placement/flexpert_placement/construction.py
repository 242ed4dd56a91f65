"""Placements to start from; `solver` improves the best of them.

From nothing, packed (`packing`) or by groups (`groups`), with memory shared between layers by what replicas are worth
to them; or near to what is there, dealt (`dealing`).
"""

from dataclasses import dataclass, replace

import numpy as np

from flexpert_placement.bounds import Bounds
from flexpert_placement.dealing import deal_layers
from flexpert_placement.evaluate import move_prices
from flexpert_placement.groups import Partition, arrange, partition
from flexpert_placement.instance import Bools, Instance, Ints
from flexpert_placement.layer import Layer, layer_of
from flexpert_placement.memory import fair_slots, fit_together, most_kept, share_by_gain
from flexpert_placement.packing import packed
from flexpert_placement.shares import share_out
from flexpert_placement.timing import Timer

MORE_SLOTS = 2
"""Slots beyond its fair part that a worker may use in one layer, where workers can change places in others."""

MORE_REPLICAS = 3
"""How many times its fair part of the replicas beyond one an expert a layer is tried with."""

SHARE_OF_TIME = 0.6
"""Part of the time that construction from nothing may take."""

LONGEST_TURN = 2.0
"""Times its even part of the time left that a layer may take."""

WORTH_ALL = 1e-3
"""What packing, which uses all slots, must be better than groups, as a fraction: groups take no replica in vain."""

NAMING_S = 2.0
"""Wall time of the program that names clusters, at most."""

NAMING_PART = 0.1
"""The same as a part of the time left."""

UNBEARABLE = 1e6
"""Times its makespan: what a packed layer without other groups counts as when it does not get its replicas."""


def near_current(instance: Instance) -> list[Bools] | None:
    """Every expert's fewest replicas, where they are if that is worth it; None when rules leave no room."""
    return deal_layers(instance, move_prices(instance))


def is_plain(instance: Instance) -> bool:
    """Whether slots alone decide what is possible, so that groups can be made."""
    return all(layer.is_plain for layer in _layers(instance))


def _layers(instance: Instance) -> list[Layer]:
    unpriced = np.zeros(instance.shape[2])
    return [layer_of(instance, number, instance.slots, unpriced) for number in range(instance.shape[0])]


def from_nothing(instance: Instance, known: Bounds, timer: Timer) -> list[Bools] | None:
    """Balanced from nothing; None where more than slots decides (pins, failure domains, several replicas).

    Every layer is packed first, which takes milliseconds, and keeps that where groups are not better by the time that
    there is.

    Args:
        instance: The problem.
        known: Its bounds.
        timer: Of the solve.
    """
    layers = _layers(instance)
    if not all(layer.is_plain for layer in layers):
        return None
    drafts = _Drafts(instance, known, timer)
    alike = bool(np.ptp(instance.speeds) == 0 and np.ptp(instance.slots) == 0)
    shared = drafts.sharing_memory() if alike and instance.problem.slots_per_layer is None else None
    return shared if shared is not None else drafts.by_parts()


@dataclass(frozen=True, eq=False)
class _Draft:
    """A layer in the making.

    Attributes:
        packed: [E, W] replicas of `packing`, within the layer's fair part of the slots; None where they do not fit.
        makespan: Of `packed`.
        groups: What is better, if anything is.
    """

    packed: Bools | None
    makespan: float
    groups: Partition | None = None

    def trail(self) -> list[float]:
        """Makespans with 0, 1, 2, … replicas beyond one an expert."""
        trail = [UNBEARABLE * self.makespan] if self.groups is None else list(self.groups.trail)
        spare = self._spare()
        if spare is not None and self.makespan < trail[min(spare, len(trail) - 1)] * (1 - WORTH_ALL):
            trail += [trail[-1]] * (spare + 1 - len(trail))
            trail[spare:] = [min(time, self.makespan) for time in trail[spare:]]
        return trail

    def held(self, layer: Layer, spare: int) -> Bools | None:
        """[E, W] with so many replicas beyond one an expert."""
        if self.groups is None or self.groups.trail[min(spare, self.groups.merges)] > self.trail()[spare]:
            packed_spare = self._spare()
            return self.packed if packed_spare is not None and spare >= packed_spare else None
        arranged = arranged_within(layer, self.groups, spare)
        return arranged if arranged is not None else self.packed

    def _spare(self) -> int | None:
        """Replicas beyond one an expert that `packed` has."""
        return None if self.packed is None else int(self.packed.sum()) - len(self.packed)


class _Drafts:
    """All layers in the making."""

    def __init__(self, instance: Instance, known: Bounds, timer: Timer) -> None:
        self._instance, self._known, self._timer = instance, known, timer
        self._layers = _layers(instance)
        fixed = instance.problem.slots_per_layer is not None
        self._fair: Ints = (
            np.tile(instance.layer_slots, (instance.shape[0], 1))
            if fixed
            else fair_slots(instance.slots, instance.shape[0])
        )
        self._packed = [self._pack(number) for number in range(instance.shape[0])]

    def sharing_memory(self) -> list[Bools] | None:
        """Replicas go to the layers that gain most by them; then workers change places until memory fits."""
        num_layers, num_experts, num_workers = self._instance.shape
        slots = self._instance.slots
        wide = np.minimum(np.full(num_workers, int(slots[0]) // num_layers + MORE_SLOTS), slots)
        spare = min(int(slots.sum()), num_layers * num_experts * num_workers) - num_layers * num_experts
        most = min(spare, MORE_REPLICAS * -(-spare // num_layers))
        layers = [layer.with_slots(wide) for layer in self._layers]
        drafts = self._with_groups(layers, [most] * num_layers)
        given = share_by_gain([draft.trail() for draft in drafts], spare)
        return self._together(drafts, layers, given)

    def by_parts(self) -> list[Bools] | None:
        """Each layer for itself, within its fair part of every worker."""
        layers = [
            layer.with_slots(np.minimum(self._fair[i], layer.num_experts)) for i, layer in enumerate(self._layers)
        ]
        spare = [max(0, int(layer.slots.sum()) - layer.num_experts) for layer in layers]
        drafts = self._with_groups(layers, spare)
        return self._together(drafts, layers, [len(draft.trail()) - 1 for draft in drafts])

    def _together(self, drafts: list[_Draft], layers: list[Layer], spare: list[int]) -> list[Bools] | None:
        held = [draft.held(layer, extra) for draft, layer, extra in zip(drafts, layers, spare, strict=True)]
        found = [one for one in held if one is not None]
        return self._named(found) if len(found) == len(layers) else None

    def _named(self, held: list[Bools]) -> list[Bools] | None:
        """Workers change places until memory fits, as near to what is there as can be."""
        instance = self._instance
        fitted = fit_together(held, instance)
        if fitted is not None:
            kept = int((np.stack(fitted) & instance.current).sum())
            if not instance.current.any() or kept >= most_kept(held, instance):
                return fitted
        from flexpert_placement.models.clusters import clusters_to_workers, fits_clusters

        limit = min(NAMING_S, self._timer.seconds_left() * NAMING_PART)
        if not fits_clusters(instance) or self._timer():
            return fitted
        named = clusters_to_workers(held, instance, limit, self._timer)[0]
        if named is None or fitted is None:
            return named if fitted is None else fitted
        return max((fitted, named), key=lambda one: int((np.stack(one) & instance.current).sum()))

    def _fairly(self, number: int) -> Layer:
        layer = self._layers[number]
        return layer.with_slots(np.minimum(self._fair[number], layer.num_experts))

    def _pack(self, number: int) -> _Draft:
        layer = self._fairly(number)
        held = packed(layer)
        makespan = np.inf if held is None else share_out(held, layer.loads, layer.speeds).makespan
        return _Draft(held, makespan)

    def _with_groups(self, layers: list[Layer], merges: list[int]) -> list[_Draft]:
        """Groups for each layer that they may improve, those first that may gain most, each in its part of the time."""
        drafts = list(self._packed)
        gains = [(draft.makespan - least) / least for draft, least in zip(drafts, self._known.least, strict=True)]
        for done, number in enumerate(map(int, np.argsort(-np.array(gains), kind="stable"))):
            spent = self._timer.spent()
            until = spent + max(SHARE_OF_TIME - spent, 0.0) * LONGEST_TURN / (len(drafts) - done)
            most = merges[number] if int(layers[number].most.max()) > 1 else 0
            groups = None if self._timer() else self._exact(layers[number], number, most)
            if groups is None and drafts[number].packed is not None and self._timer(until):
                continue
            if groups is None:
                groups = partition(layers[number], most, lambda until=until: self._timer(until))  # type: ignore[misc]
            drafts[number] = replace(drafts[number], groups=groups)
        return drafts

    def _exact(self, layer: Layer, number: int, most: int) -> Partition | None:
        """The best groups of a layer of few experts, in as few slots of a worker as they take."""
        merges = self._known.exact_merges
        if merges is None or merges < min(most, layer.num_workers - 1):
            return None
        best = self._known.best_groups(number, layer.slots)
        if best is None:
            return None
        for tight in range(-(-layer.num_experts // layer.num_workers), int(layer.slots.max())):
            found = self._known.best_groups(number, np.minimum(layer.slots, tight))
            if found is not None and found.trail == best.trail:
                return found
        return best


def arranged_within(layer: Layer, division: Partition, merges: int) -> Bools | None:
    """The replicas of a division, or of one without merges where no expert may have, or can be given, as many."""
    held = arrange(layer, division, merges)
    if held is not None and (held.sum(axis=1) <= layer.most).all():
        return held
    return arrange(layer, division, 0)
