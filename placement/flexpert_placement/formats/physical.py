"""Placements for engines whose devices all have the same number of slots in every layer, as SGLang and vLLM do.

There every slot holds an expert, and an expert's tokens go to all of its replicas alike, whatever shares a solver found
best. So the solver keeps to `slots_per_layer`, free slots are filled with further replicas, and the result is judged,
and improved by exchanging replicas, under equal shares. `sglang` and `vllm` write what comes of it.
"""

from dataclasses import dataclass, replace

import numpy as np

from flexpert_placement.instance import Bools, Floats, Ints
from flexpert_placement.solver import solve
from flexpert_placement.types import (
    ExpertId,
    Placement,
    PlacementProblem,
    PlacementResult,
)

_EXCHANGES = 400
"""Most exchanges of a layer; far fewer are found before none helps."""


@dataclass(frozen=True, eq=False)
class PhysicalMap:
    """Which expert is in which slot.

    Attributes:
        experts: [layers, devices, slots] expert of each slot; every expert of a layer is in at least one.
        num_experts: Experts a layer.
    """

    experts: Ints
    num_experts: int

    @property
    def num_redundant(self) -> int:
        """Slots of a layer beyond one for each expert."""
        return int(self.experts.shape[1] * self.experts.shape[2]) - self.num_experts

    def copies(self) -> Ints:
        """[layers, experts, devices] slots of each device that hold the expert."""
        layers, devices, _ = self.experts.shape
        counts = np.zeros((layers, self.num_experts, devices), dtype=np.int64)
        layer, device, _ = np.indices(self.experts.shape)
        np.add.at(counts, (layer, self.experts, device), 1)
        return counts

    def placement(self, workers: tuple[str, ...]) -> Placement:
        """The same as a placement on these workers, in which replicas share an expert's traffic equally."""
        copies = self.copies()
        rows: dict[ExpertId, dict[str, float]] = {}
        for layer, expert, device in np.argwhere(copies):
            share = float(copies[layer, expert, device] / copies[layer, expert].sum())
            rows.setdefault(ExpertId(int(layer), int(expert)), {})[workers[device]] = share
        return rows


def solve_layerwise(problem: PlacementProblem, slots: int) -> PlacementResult:
    """Solve with `slots` slots for every layer on every worker.

    Raises:
        InfeasiblePlacement: A layer's experts do not fit.
    """
    memory = slots * len(problem.loads) * problem.expert_bytes
    workers = tuple(replace(worker, memory_bytes=memory) for worker in problem.workers)
    return solve(replace(problem, workers=workers, slots_per_layer=slots))


def physical_map(problem: PlacementProblem, placement: Placement, slots: int) -> PhysicalMap:
    """The slots of a placement that has at most `slots` replicas of a layer on any worker.

    Where nothing but the makespan weighs, replicas are chosen and exchanged further, for equal shares.
    """
    layers = []
    only_balance = problem.weights == replace(problem.weights, fan_out=0, cross_node=0, cross_zone=0, transitions=0)
    for layer, row in enumerate(problem.loads):
        loads = np.array(row) if sum(row) > 0 else np.ones(len(row))
        options = [_filled(_held(problem, placement, layer), loads, slots)]
        if only_balance:
            options = [_exchanged(option, loads) for option in (*options, _packed(loads, len(problem.workers), slots))]
        layers.append(min(options, key=lambda copies: float(_even_times(copies, loads).max())))
    return PhysicalMap(np.stack([_slots_of(copies, slots) for copies in layers]), len(problem.loads[0]))


def even_imbalance(loads: Floats, physical: PhysicalMap) -> float:
    """Mean over layers of the busiest device's load over the average one; replicas share equally.

    Args:
        loads: [layers, experts].
        physical: Where the experts are.
    """
    used = np.where(loads.sum(axis=1, keepdims=True) > 0, loads, 1.0)
    times = np.stack([_even_times(copies, row) for copies, row in zip(physical.copies(), used, strict=True)])
    return float((times.max(axis=1) / times.mean(axis=1)).mean())


def _held(problem: PlacementProblem, placement: Placement, layer: int) -> Ints:
    """[experts, workers] 1 where a worker holds an expert."""
    position = {worker.id: number for number, worker in enumerate(problem.workers)}
    held = np.zeros((len(problem.loads[layer]), len(position)), dtype=np.int64)
    for key, row in placement.items():
        if key.layer == layer:
            held[key.index, [position[worker] for worker in row]] = 1
    return held


def _filled(copies: Ints, loads: Floats, slots: int) -> Ints:
    """Further replicas in all slots that are free: of the expert whose replicas have most to do, one a device."""
    copies = copies.copy()
    while (free := slots - copies.sum(axis=0)).any():
        device = int(np.argmin(np.where(free > 0, _even_times(copies, loads), np.inf)))
        missing = copies[:, device] == 0
        each = loads / copies.sum(axis=1)
        copies[int(np.argmax(np.where(missing | ~missing.any(), each, -1.0))), device] += 1
    return copies


def _packed(loads: Floats, devices: int, slots: int) -> Ints:
    """[experts, devices] a placement of its own: replicas for the hottest, then each to the idlest device with room."""
    num = np.ones(len(loads), dtype=np.int64)
    for _ in range(devices * slots - len(loads)):
        num[np.argmax(np.where(num < devices, loads / num, -1.0))] += 1
    copies = np.zeros((len(loads), devices), dtype=np.int64)
    times = np.zeros(devices)
    for expert in np.argsort(-loads / num, kind="stable"):
        for _ in range(num[expert]):
            room = copies.sum(axis=0) < slots
            best = room & (copies[expert] == 0)
            device = int(np.argmin(np.where(best if best.any() else room, times, np.inf)))
            copies[expert, device] += 1
            times[device] += loads[expert] / num[expert]
    return copies


def _exchanged(copies: Ints, loads: Floats) -> Ints:
    """Exchange replicas of the busiest device for lighter ones of others, as long as that makes it less busy."""
    copies = copies.copy()
    each = loads / copies.sum(axis=1)
    for _ in range(_EXCHANGES):
        times = each @ copies
        busiest = int(np.argmax(times))
        found = _best_exchange(copies, each, times, busiest)
        if found is None:
            break
        given, taken, device = found
        copies[[given, taken], [busiest, device]] -= 1
        copies[[given, taken], [device, busiest]] += 1
    return copies


def _best_exchange(copies: Ints, each: Floats, times: Floats, busiest: int) -> tuple[int, int, int] | None:
    """(expert given, expert taken, device it goes to) that leaves the two devices least busy, if it helps at all."""
    best, found = times[busiest] * (1 - 1e-9), None
    mine = np.flatnonzero(copies[:, busiest])
    for device in np.argsort(times, kind="stable"):
        if device == busiest:
            continue
        theirs = np.flatnonzero(copies[:, device])
        gain = each[mine][:, None] - each[theirs][None, :]
        allowed: Bools = (copies[mine, device] == 0)[:, None] & (copies[theirs, busiest] == 0)[None, :]
        after = np.where(allowed, np.maximum(times[busiest] - gain, times[device] + gain), np.inf)
        place = int(np.argmin(after)) if after.size else 0
        if after.size and after.flat[place] < best:
            best = float(after.flat[place])
            found = (int(mine[place // len(theirs)]), int(theirs[place % len(theirs)]), int(device))
    return found


def _even_times(copies: Ints, loads: Floats) -> Floats:
    """[devices] load of each when replicas share equally."""
    return np.asarray((loads / np.maximum(copies.sum(axis=1), 1)) @ copies)


def _slots_of(copies: Ints, slots: int) -> Ints:
    """[devices, slots] the experts of each device, ascending."""
    devices = [np.repeat(np.arange(len(copies)), copies[:, device]) for device in range(copies.shape[1])]
    assert all(len(experts) == slots for experts in devices)
    return np.stack(devices)
