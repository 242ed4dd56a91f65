"""Placements to start from; `solver` improves the best of them.

From nothing, by groups (`groups`), with memory shared between layers by what replicas are worth to them; or near to
what is there, dealt (`dealing`).
"""

from collections.abc import Callable

import numpy as np

from flexpert_placement.dealing import deal_layers
from flexpert_placement.evaluate import move_prices
from flexpert_placement.groups import Partition, arrange, partition
from flexpert_placement.instance import Bools, Instance, Ints
from flexpert_placement.layer import Layer, layer_of
from flexpert_placement.memory import fair_slots, fit_together, share_by_gain

MORE_SLOTS = 2
"""Slots beyond its fair part that a worker may use in one layer, where workers can change places in others."""

MORE_REPLICAS = 3
"""How many times its fair part of the replicas beyond one an expert a layer is tried with."""

SHARE_OF_TIME = 0.6
"""Part of the time that construction from nothing may take."""

Stop = Callable[[float], bool]
"""Whether this fraction of the time has passed, or all is to stop."""


def near_current(instance: Instance) -> list[Bools] | None:
    """Every expert's fewest replicas, where they are if that is worth it; None when rules leave no room."""
    return deal_layers(instance, move_prices(instance))


def is_plain(instance: Instance) -> bool:
    """Whether slots alone decide what is possible, so that groups can be made."""
    return all(layer.is_plain for layer in _layers(instance))


def _layers(instance: Instance) -> list[Layer]:
    unpriced = np.zeros(instance.shape[2])
    return [layer_of(instance, number, instance.slots, unpriced) for number in range(instance.shape[0])]


def from_nothing(instance: Instance, stop: Stop) -> list[Bools] | None:
    """Balanced by groups; None where more than slots decides (pins, failure domains, several replicas)."""
    layers = _layers(instance)
    if not all(layer.is_plain for layer in layers):
        return None
    alike = bool(np.ptp(instance.speeds) == 0 and np.ptp(instance.slots) == 0)
    shared = _sharing_memory(instance, layers, stop) if alike else None
    return shared if shared is not None else _by_parts(instance, layers, stop)


def _sharing_memory(instance: Instance, layers: list[Layer], stop: Stop) -> list[Bools] | None:
    """Replicas go to the layers that gain most by them; then workers change places until memory fits."""
    num_layers, num_experts, num_workers = instance.shape
    fair = int(instance.slots[0]) // num_layers
    wide = np.minimum(np.full(num_workers, fair + MORE_SLOTS), instance.slots)
    layers = [layer.with_slots(wide) for layer in layers]
    spare = min(int(instance.slots.sum()), num_layers * num_experts * num_workers) - num_layers * num_experts
    most = min(spare, MORE_REPLICAS * -(-spare // num_layers))
    tried = _partitions(layers, [most] * num_layers, stop)
    if tried is None:
        return None
    given = share_by_gain([division.trail for division in tried], spare)
    held = [arranged_within(*row) for row in zip(layers, tried, given, strict=True)]
    arranged = [one for one in held if one is not None]
    return fit_together(arranged, instance) if len(arranged) == num_layers else None


def _by_parts(instance: Instance, layers: list[Layer], stop: Stop) -> list[Bools] | None:
    """Each layer for itself, within its fair part of every worker."""
    slots: Ints = fair_slots(instance.slots, instance.shape[0])
    layers = [layer.with_slots(np.minimum(slots[i], layer.num_experts)) for i, layer in enumerate(layers)]
    spare = [max(0, int(layer.slots.sum()) - layer.num_experts) for layer in layers]
    tried = _partitions(layers, spare, stop)
    if tried is None:
        return None
    held = [arranged_within(*row) for row in zip(layers, tried, spare, strict=True)]
    arranged = [one for one in held if one is not None]
    return fit_together(arranged, instance) if len(arranged) == len(layers) else None


def _partitions(layers: list[Layer], merges: list[int], stop: Stop) -> list[Partition] | None:
    """Each layer's groups, each in its part of the time; None when one has too few slots."""
    found = []
    for number, layer in enumerate(layers):
        until = SHARE_OF_TIME * (number + 1) / len(layers)
        most = merges[number] if int(layer.most.max()) > 1 else 0
        division = partition(layer, most, lambda until=until: stop(until))  # type: ignore[misc]
        if division is None:
            return None
        found.append(division)
    return found


def arranged_within(layer: Layer, division: Partition, merges: int) -> Bools | None:
    """The replicas of a division, or of one without merges where no expert may have, or can be given, as many."""
    held = arrange(layer, division, merges)
    if held is not None and (held.sum(axis=1) <= layer.most).all():
        return held
    return arrange(layer, division, 0)
