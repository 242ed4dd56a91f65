"""The worked example of docs/placement.md."""

import numpy as np
import pytest

from flexpert_placement.bounds import layer_bounds, makespan_bound
from flexpert_placement.groups import arrange, partition
from flexpert_placement.instance import instance_of
from flexpert_placement.layer import layer_of
from flexpert_placement.models import solve_exactly
from flexpert_placement.models.program import Neighbourhood
from flexpert_placement.models.runner import Found
from flexpert_placement.solver import solve
from flexpert_placement.types import PlacementProblem, SolveStatus, WorkerCapacity

LOADS = (9.0, 5.0, 4.0, 3.0, 2.0, 1.0)


def example(slots: int) -> PlacementProblem:
    return PlacementProblem((LOADS,), 100, tuple(WorkerCapacity(f"w{index}", slots * 100) for index in range(3)))


def test_three_slots_each() -> None:
    instance = instance_of(example(3))
    assert float(instance.even[0]) == 8.0
    assert layer_bounds(instance, 0, 3) == [9.0, 8.0]
    layer = layer_of(instance, 0, instance.slots, np.zeros(3))
    division = partition(layer, 3)
    assert division is not None
    assert division.trail == (9.0, 8.0)
    held = arrange(layer, division, 1)
    assert held is not None
    assert int(held.sum()) == 7
    result = solve(example(3))
    assert (result.makespan, result.makespan_bound) == (pytest.approx(8.0), pytest.approx(8.0))
    assert result.status is SolveStatus.OPTIMAL
    assert sum(len(row) for row in result.placement.values()) == 7


def test_two_slots_each() -> None:
    instance = instance_of(example(2))
    assert layer_bounds(instance, 0, 0) == [9.0]
    assert makespan_bound(instance) == pytest.approx(10.0)
    result = solve(example(2))
    assert (result.makespan, result.status) == (pytest.approx(10.0), SolveStatus.OPTIMAL)
    everything = Neighbourhood(np.zeros(instance.shape, dtype=bool), np.ones(instance.shape, dtype=bool))
    _, outcome = solve_exactly(instance, everything, instance.even, 100.0, 0.0, lambda: False)
    assert outcome.found is Found.OPTIMAL
    assert outcome.objective == pytest.approx(10.0)
