"""Groups of experts and workers: what they promise is what the exact sharing of their replicas gives."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexpert_placement.groups import arrange, partition
from flexpert_placement.instance import Floats, Instance, instance_of
from flexpert_placement.layer import Layer
from flexpert_placement.memory import fair_slots, fit_together, share_by_gain
from flexpert_placement.relabel import assign
from flexpert_placement.shares import share_out
from flexpert_placement.types import ExpertId, Placement, PlacementProblem, WorkerCapacity


def layer_with(loads: Floats, num_workers: int, slots: int, speeds: Floats | None = None) -> Layer:
    shape = (len(loads), num_workers)
    return Layer(
        loads=loads,
        speeds=np.ones(num_workers) if speeds is None else speeds,
        slots=np.full(num_workers, slots),
        fewest=np.ones(len(loads), dtype=np.int64),
        most=np.full(len(loads), num_workers),
        pinned=np.zeros(shape, dtype=bool),
        current=np.zeros(shape, dtype=bool),
        domains=np.arange(num_workers),
        min_domains=1,
        prices=np.zeros(num_workers),
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 5), st.floats(0.3, 1.0))
def test_groups_of_even_workers_keep_their_promise(seed: int, num_workers: int, slots: int, full: float) -> None:
    num_experts = max(1, int(num_workers * slots * full))
    loads = np.random.default_rng(seed).gamma(0.8, size=num_experts) + 1e-3
    layer = layer_with(loads, num_workers, slots)
    division = partition(layer, num_workers * slots - num_experts)
    assert division is not None
    held = arrange(layer, division, division.merges)
    assert held is not None
    assert (held.sum(axis=0) <= layer.slots).all()
    assert (held.sum(axis=1) >= 1).all()
    assert held.sum() <= num_experts + division.merges
    shared = share_out(held, loads, layer.speeds)
    assert shared.makespan == pytest.approx(division.trail[-1])
    assert list(division.trail) == sorted(division.trail, reverse=True)


def test_too_few_slots_are_no_partition() -> None:
    assert partition(layer_with(np.ones(5), 2, 2), 0) is None


def test_memory_is_shared_evenly_over_layers() -> None:
    parts = fair_slots(np.array([7, 10, 2]), 4)
    assert parts.sum(axis=0).tolist() == [7, 10, 2]
    assert set(parts.sum(axis=1).tolist()) <= {4, 5}


def test_replicas_go_where_they_gain_most() -> None:
    assert share_by_gain([[10.0, 9.0, 8.5], [10.0, 10.0, 4.0], [1.0]], 3) == [1, 2, 0]
    assert share_by_gain([[10.0, 9.0, 8.5], [10.0, 10.0, 4.0], [1.0]], 1) == [1, 0, 0]


def instance_with(slots: int, layers: int, current: Placement | None = None) -> Instance:
    workers = tuple(WorkerCapacity(f"w{index}", slots * 100) for index in range(3))
    return instance_of(PlacementProblem(((1.0,) * 3,) * layers, 100, workers, current=current or {}))


WIDE = np.array([[True, True, True], [False, True, True], [False, False, True]])


def test_workers_change_places_until_memory_fits() -> None:
    fitted = fit_together([WIDE] * 3, instance_with(6, 3))
    assert fitted is not None
    assert np.stack(fitted).sum(axis=(0, 1)).tolist() == [6, 6, 6]
    assert fit_together([WIDE], instance_with(2, 1)) is None


def test_workers_keep_what_they_hold_where_memory_lets_them() -> None:
    current = {ExpertId(layer, 2): {"w0": 1.0} for layer in range(3)}
    free = fit_together([WIDE] * 3, instance_with(9, 3, current))
    assert free is not None
    assert all(held[2, 0] for held in free)
    tight = fit_together([WIDE] * 3, instance_with(6, 3, current))
    assert tight is not None
    assert np.stack(tight).sum(axis=(0, 1)).tolist() == [6, 6, 6]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_the_assignment_is_the_cheapest(seed: int, size: int) -> None:
    costs = np.random.default_rng(seed).integers(0, 5, (size, size)).astype(np.float64)
    chosen = assign(costs)
    assert sorted(chosen.tolist()) == list(range(size))
    best = min(sum(costs[row, column] for row, column in enumerate(p)) for p in itertools.permutations(range(size)))
    assert float(costs[np.arange(size), chosen].sum()) == best
