"""A placement problem and a placement as arrays: what the parts of the solver work on, and `evaluate` judges."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flexpert_placement.types import ExpertId, Placement, PlacementProblem, Traffic

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Instance:
    """A problem as arrays; L layers, E experts a layer, W workers.

    Attributes:
        loads: [L, E], positive somewhere in every layer (ones where a layer's loads are unknown); with the problem's
            caution, see `cautious`.
        speeds: [W].
        slots: [W] replicas that each worker holds at most, all layers together.
        layer_slots: [W] replicas of any one layer that each worker holds at most.
        current: [L, E, W] what is resident.
        fewest: [L, E] replicas at least.
        most: [L, E] replicas at most.
        pinned: [L, E, W] replicas that must be.
        domains: [W] number of the worker's failure domain.
        nodes: [W] number of the worker's node.
        zones: [W] number of the worker's zone.
    """

    problem: PlacementProblem
    loads: Floats
    speeds: Floats
    slots: Ints
    layer_slots: Ints
    current: Bools
    fewest: Ints
    most: Ints
    pinned: Bools
    domains: Ints
    nodes: Ints
    zones: Ints

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, E, W)."""
        layers, experts, workers = self.current.shape
        return layers, experts, workers

    @property
    def traffic(self) -> Traffic:
        """What is known of the tokens beyond the loads."""
        return self.problem.traffic

    @cached_property
    def even(self) -> Floats:
        """[L] every worker's time under perfect balance."""
        return np.asarray(self.loads.sum(axis=1) / self.speeds.sum())


@dataclass(frozen=True, eq=False)
class Dense:
    """A placement as an array: [L, E, W] the share of an expert's load that a worker serves; NaN where it is not held.

    A replica that serves nothing has share 0.
    """

    shares: Floats

    @cached_property
    def held(self) -> Bools:
        """[L, E, W] which replicas there are."""
        return np.asarray(~np.isnan(self.shares))

    @cached_property
    def filled(self) -> Floats:
        """[L, E, W] the shares, 0 where an expert is not held."""
        return np.where(self.held, self.shares, 0.0)

    def served(self, loads: Floats) -> Floats:
        """[L, E, W] load of each expert that each worker serves."""
        return np.asarray(self.filled * loads[:, :, None])

    def load_of_workers(self, loads: Floats) -> Floats:
        """[L, W] load that each worker serves."""
        return np.asarray((loads[:, None, :] @ self.filled)[:, 0])


def instance_of(problem: PlacementProblem) -> Instance:
    """A problem as arrays; nothing is checked (see `feasibility`)."""
    loads = np.array(problem.loads, dtype=np.float64).reshape(len(problem.loads), -1)
    loads[loads.sum(axis=1) <= 0] = 1.0
    if problem.caution and problem.traffic.deviation is not None:
        loads = cautious(loads, problem.traffic.deviation, problem.caution)
    num_workers = len(problem.workers)
    most = min(problem.max_replicas or num_workers, num_workers)
    fewest_of = np.full(loads.shape, problem.min_replicas, dtype=np.int64)
    most_of = np.full(loads.shape, most, dtype=np.int64)
    for (layer, index), (low, high) in problem.replica_bounds.items():
        fewest_of[layer, index], most_of[layer, index] = low, min(high, num_workers)
    workers = problem.workers
    slots = np.array([worker.memory_bytes // problem.expert_bytes for worker in workers], dtype=np.int64)
    if problem.slots_per_layer is not None:
        slots = np.minimum(slots, problem.slots_per_layer * len(loads))
    return Instance(
        problem=problem,
        loads=loads,
        speeds=np.array([worker.speed for worker in workers], dtype=np.float64),
        slots=slots,
        layer_slots=np.minimum(slots, min(problem.slots_per_layer or loads.shape[1], loads.shape[1])),
        current=~np.isnan(dense_of(problem.current, problem).shares),
        fewest=fewest_of,
        most=most_of,
        pinned=~np.isnan(
            dense_of({expert: dict.fromkeys(ids, 0.0) for expert, ids in problem.pinned.items()}, problem).shares
        ),
        domains=_numbers([worker.failure_domain for worker in workers]),
        nodes=_numbers([worker.node for worker in workers]),
        zones=_numbers([worker.zone for worker in workers], apart=False),
    )


def cautious(loads: Floats, deviation: Floats, caution: float) -> Floats:
    """Loads as they are in a bad interval: mean + caution · standard deviation, in the total of each layer's mean.

    The standard deviation of what a worker serves is at most the sum of its parts', however they go together, so that
    Σ_e share · (mean + k · deviation) is at least mean + k · deviation of its load. That is exceeded with probability
    1 / (1 + k²) at most (Cantelli).

    Args:
        loads: [layers, experts] means, positive somewhere in every layer.
        deviation: [layers, experts].
        caution: k.
    """
    bad = loads + caution * deviation
    return np.asarray(bad * (loads.sum(axis=1) / bad.sum(axis=1))[:, None])


def dense_of(placement: Mapping[ExpertId, Mapping[str, float]], problem: PlacementProblem) -> Dense:
    """A placement as an array; replicas on workers that the problem does not have are left out."""
    experts = max((len(row) for row in problem.loads), default=0)
    shares = np.full((len(problem.loads), experts, len(problem.workers)), np.nan)
    position = {worker.id: number for number, worker in enumerate(problem.workers)}
    for (layer, index), row in placement.items():
        for worker, share in row.items():
            if worker in position:
                shares[layer, index, position[worker]] = share
    return Dense(shares)


def placement_of(dense: Dense, problem: PlacementProblem) -> Placement:
    """An array as a placement; the shares of every expert add up to 1."""
    ids = [worker.id for worker in problem.workers]
    rows: dict[ExpertId, dict[str, float]] = {}
    for layer, index, worker in np.argwhere(dense.held):
        rows.setdefault(ExpertId(int(layer), int(index)), {})[ids[worker]] = float(dense.shares[layer, index, worker])
    return {expert: _normalised(row) for expert, row in rows.items()}


def _normalised(row: dict[str, float]) -> dict[str, float]:
    total = sum(row.values())
    return {worker: share / total if total > 0 else 1.0 / len(row) for worker, share in row.items()}


def _numbers(names: list[str], apart: bool = True) -> Ints:
    """A number for every name; nameless workers are each their own when `apart`, else all the same."""
    distinct = [name or (f"\0{position}" if apart else "") for position, name in enumerate(names)]
    known = {name: number for number, name in enumerate(dict.fromkeys(distinct))}
    return np.array([known[name] for name in distinct], dtype=np.int64)
