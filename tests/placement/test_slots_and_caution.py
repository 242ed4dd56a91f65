"""Slots that every layer has for itself, and loads that vary: both are kept to by every stage of the solver."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from flexpert_placement.bounds import Bounds
from flexpert_placement.evaluate import makespans, objective_of
from flexpert_placement.formats import physical_map, solve_layerwise
from flexpert_placement.instance import Dense, Floats, Instance, cautious, dense_of, instance_of
from flexpert_placement.models.program import Neighbourhood, solve_exactly
from flexpert_placement.models.runner import Found
from flexpert_placement.solver import dense_shares, keeps_rules, solve
from flexpert_placement.types import (
    Budget,
    ExpertId,
    InfeasiblePlacement,
    PlacementProblem,
    Traffic,
    Weights,
    WorkerCapacity,
)

RandomProblem = Callable[..., PlacementProblem]


def problem_with(loads: Floats, workers: int, slots: int, **options: object) -> PlacementProblem:
    rows = tuple(tuple(row) for row in loads.tolist())
    capacities = tuple(WorkerCapacity(f"w{n}", slots * len(rows)) for n in range(workers))
    return replace(
        PlacementProblem(rows, 1, capacities, slots_per_layer=slots, time_limit_s=600.0),
        **options,  # type: ignore[arg-type]
    )


def answer_of(problem: PlacementProblem) -> tuple[Instance, Dense]:
    return instance_of(problem), dense_of(solve(problem).placement, problem)


def assert_within_slots(problem: PlacementProblem) -> None:
    instance, dense = answer_of(problem)
    assert keeps_rules(instance, list(dense.held))
    assert (dense.held.sum(axis=1) <= problem.slots_per_layer).all()


@pytest.mark.parametrize("seed", range(16))
def test_every_rule_holds_within_the_slots_of_a_layer(seed: int, random_problem: RandomProblem) -> None:
    random = random_problem(seed, layers=2, experts=5, workers=4)
    workers = tuple(replace(worker, memory_bytes=2 * 3 * random.expert_bytes) for worker in random.workers)
    problem = replace(random, workers=workers, slots_per_layer=3)
    try:
        assert_within_slots(problem)
    except InfeasiblePlacement:
        assert problem.min_replicas * 5 > 12 or problem.min_failure_domains > 1 or problem.pinned


@pytest.mark.parametrize("seed", range(4))
def test_a_placement_that_shares_memory_is_brought_within_the_slots(seed: int) -> None:
    loads = np.random.default_rng(seed).gamma(1.0, size=(4, 12)) + 0.05
    first = solve(replace(problem_with(loads, 4, 4), slots_per_layer=None))
    crowded = {ExpertId(layer, index): {"w0": 1.0} for layer in range(2) for index in range(4)}
    for current in (first.placement, {**first.placement, **crowded}):
        assert_within_slots(problem_with(loads, 4, 4, current=current))


@pytest.mark.parametrize("weights", [Weights(fan_out=1.0), Weights(transitions=1.0)])
def test_other_objectives_keep_to_the_slots(weights: Weights) -> None:
    generator = np.random.default_rng(3)
    sample = generator.integers(0, 12, (300, 3, 2))
    sample[:, :, 1] = (sample[:, :, 0] + 1 + generator.integers(0, 3, (300, 3))) % 12
    loads = np.stack([np.bincount(sample[:, layer].ravel(), minlength=12) for layer in range(3)]).astype(np.float64)
    traffic = Traffic(sample=sample, transitions=generator.random((2, 12, 12)))
    assert_within_slots(
        problem_with(loads, 4, 4, weights=weights, traffic=traffic, makespan_slack=0.2, time_limit_s=3.0)
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_and_the_program_know_the_slots(seed: int) -> None:
    loads = np.random.default_rng(seed).gamma(0.5, size=(2, 4)) + 0.05
    instance = instance_of(problem_with(loads, 2, 2))
    everything = Neighbourhood(np.zeros(instance.shape, dtype=bool), np.ones(instance.shape, dtype=bool))
    held, outcome = solve_exactly(instance, everything, instance.even, 60.0, 0.0, lambda: False)
    assert outcome.found is Found.OPTIMAL
    assert held is not None
    assert keeps_rules(instance, list(held))
    best = objective_of(instance, dense_shares(instance, list(held)))
    assert Bounds(instance).objective == pytest.approx(best, rel=1e-6)
    assert solve(instance.problem).objective == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots_per_layer": 2}, "at least 3 slots a layer"),
        ({"slots_per_layer": 5}, "give it 2 bytes more or take 4 slots a layer"),
        ({"min_replicas": 2, "slots_per_layer": 4}, "layer 0 needs 24 replicas"),
        ({"pinned": {ExpertId(1, index): frozenset({"w1"}) for index in range(5)}}, "take 1 pins away"),
    ],
)
def test_slots_that_do_not_suffice_are_refused(changes: dict[str, object], message: str) -> None:
    problem = problem_with(np.ones((2, 12)), 4, 4)
    with pytest.raises(InfeasiblePlacement, match=message):
        solve(replace(problem, **changes))  # type: ignore[arg-type]


def test_a_budget_is_of_all_layers_where_each_has_its_slots() -> None:
    loads = np.random.default_rng(0).gamma(0.6, size=(4, 12)) + 0.05
    there = {ExpertId(layer, index): {f"w{index % 4}": 1.0} for layer in range(4) for index in range(12)}
    problem = problem_with(loads, 4, 4, current=there, budget=Budget(moves=3))
    result = solve_layerwise(problem, 4)
    assert 0 < result.terms.moves <= 3
    assert (physical_map(problem, result.placement, 4).copies().sum(axis=1) == 4).all()


def test_caution_balances_what_a_bad_interval_brings() -> None:
    loads, deviation = np.full((1, 8), 10.0), np.array([[9.0, 9.0, 9.0, 9.0, 0.0, 0.0, 0.0, 0.0]])
    traffic = Traffic(deviation=deviation)
    plain = problem_with(loads, 4, 2, traffic=traffic)
    careful = replace(plain, caution=1.0)
    _, dense = answer_of(careful)
    assert ((dense.held[0] & (deviation[0] > 0)[:, None]).sum(axis=0) == 1).all(), "one that varies on every worker"
    assert instance_of(plain).loads.tolist() == loads.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_a_cautious_load_covers_the_deviation_of_what_a_worker_serves(seed: int) -> None:
    generator = np.random.default_rng(seed)
    drawn = generator.gamma(2.0, size=(400, 6)) @ generator.random((6, 6))
    loads, deviation = drawn.mean(axis=0)[None], drawn.std(axis=0)[None]
    shares = generator.dirichlet(np.ones(3), size=6)
    served = drawn @ shares
    scale = (loads + 1.5 * deviation).sum() / loads.sum()
    covered = (cautious(loads, deviation, 1.5)[0] * scale) @ shares
    assert (covered >= served.mean(axis=0) + 1.5 * served.std(axis=0) - 1e-9).all()
    assert cautious(loads, deviation, 1.5).sum() == pytest.approx(loads.sum())


def test_a_cautious_answer_is_proven_for_its_own_loads() -> None:
    generator = np.random.default_rng(1)
    loads, deviation = generator.gamma(1.0, size=(3, 8)) + 0.1, generator.gamma(1.0, size=(3, 8))
    problem = problem_with(loads, 4, 2, traffic=Traffic(deviation=deviation), caution=0.5)
    result = solve(problem)
    instance, dense = instance_of(problem), dense_of(result.placement, problem)
    assert result.makespan == pytest.approx(float(makespans(instance, dense).sum()))
    assert result.makespan_bound == pytest.approx(result.makespan, rel=1e-6)
