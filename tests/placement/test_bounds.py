"""No placement is better than the bound: every one of small problems is tried."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from flexpert_placement.bounds import Bounds, layer_bounds, makespan_bound, shared_bound
from flexpert_placement.evaluate import makespans, objective_of
from flexpert_placement.instance import Bools, Instance, instance_of
from flexpert_placement.solver import dense_shares
from flexpert_placement.types import Budget, PlacementProblem, Weights, WorkerCapacity

RandomProblem = Callable[..., PlacementProblem]
AllAnswers = Callable[[Instance], Iterator[Bools]]


def values(instance: Instance, held: Bools) -> tuple[float, float]:
    dense = dense_shares(instance, list(held))
    return float(makespans(instance, dense).sum()), objective_of(instance, dense)


@pytest.mark.parametrize("seed", range(24))
def test_the_bound_never_exceeds_the_optimum(seed: int, random_problem: RandomProblem, all_answers: AllAnswers) -> None:
    problem = replace(random_problem(seed, layers=1, experts=4, workers=3), weights=Weights(move=0.05), budget=Budget())
    instance = instance_of(problem)
    answers = [values(instance, held) for held in all_answers(instance)]
    if answers:
        assert makespan_bound(instance) <= min(makespan for makespan, _ in answers) * (1 + 1e-9)
        assert Bounds(instance).objective <= min(objective for _, objective in answers) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_the_bound_of_few_slots_never_exceeds_the_optimum(seed: int, all_answers: AllAnswers) -> None:
    generator = np.random.default_rng(seed)
    loads = tuple(map(float, generator.gamma(1.0, size=5) + 0.05))
    speeds = generator.choice([1.0, 2.0], 3) if seed % 2 else np.ones(3)
    workers = tuple(WorkerCapacity(f"w{i}", 200, speed=float(speed)) for i, speed in enumerate(speeds))
    instance = instance_of(PlacementProblem((loads,), 100, workers))
    best = min(values(instance, held)[0] for held in all_answers(instance))
    assert makespan_bound(instance) <= best * (1 + 1e-9)
    assert makespan_bound(instance) >= float(instance.even.sum())


def test_whole_experts_bound_what_perfect_balance_does_not() -> None:
    workers = tuple(WorkerCapacity(f"w{i}", 10_000) for i in range(3))
    instance = instance_of(PlacementProblem(((1.0,) * 16,), 100, workers, max_replicas=1))
    assert layer_bounds(instance, 0, 0) == [6.0]


def test_layers_share_what_there_is() -> None:
    assert shared_bound([[10.0, 4.0], [3.0, 2.0, 1.0]], 2) == pytest.approx(6.0)
    assert shared_bound([[10.0, 10.0, 4.0]], 1) == pytest.approx(7.0), "half of a step of two"
