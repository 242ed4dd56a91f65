"""Whatever the problem: an answer keeps the rules on memory, replicas, pins, failure domains and budgets."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexpert_placement import (
    Budget,
    ExpertId,
    InfeasiblePlacement,
    PlacementProblem,
    PlacementResult,
    WorkerCapacity,
    imbalance,
    make_plan,
    solve,
)

RandomProblem = Callable[..., PlacementProblem]


def assert_rules(problem: PlacementProblem, result: PlacementResult) -> None:
    used = dict.fromkeys((worker.id for worker in problem.workers), 0)
    domain = {worker.id: worker.failure_domain for worker in problem.workers}
    for layer, row in enumerate(problem.loads):
        for index in range(len(row)):
            expert = ExpertId(layer, index)
            shares = result.placement[expert]
            low, high = problem.replica_bounds.get(expert, (problem.min_replicas, problem.max_replicas or len(used)))
            assert max(1, low) <= len(shares) <= min(high, len(used))
            assert len({domain[worker] for worker in shares}) >= problem.min_failure_domains
            assert shares.keys() >= problem.pinned.get(expert, frozenset())
            assert sum(shares.values()) == pytest.approx(1.0)
            assert min(shares.values()) >= 0
            for worker in shares:
                used[worker] += 1
    assert all(used[one.id] * problem.expert_bytes <= one.memory_bytes for one in problem.workers)
    assert result.bound <= result.objective * (1 + 1e-9)
    assert result.makespan_bound <= result.makespan * (1 + 1e-9)


def assert_budget(problem: PlacementProblem, result: PlacementResult) -> None:
    moves = make_plan(problem.current, result.placement).moves
    by_layer = np.bincount([move.expert.layer for move in moves], minlength=1)
    budget = problem.budget
    assert budget.moves is None or len(moves) <= budget.moves
    assert budget.moves_per_layer is None or by_layer.max() <= budget.moves_per_layer
    assert budget.bytes is None or len(moves) * problem.expert_bytes <= budget.bytes


@pytest.mark.parametrize("seed", range(40))
def test_random_problems_with_all_kinds_of_rules(seed: int, random_problem: RandomProblem) -> None:
    problem = random_problem(seed, layers=2, experts=7, workers=4)
    try:
        result = solve(problem)
    except InfeasiblePlacement:
        return
    assert_rules(problem, result)


def loads(generator: np.random.Generator, layers: int, experts: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in generator.gamma(0.9, size=(layers, experts)) + 0.01)


def drifted(seed: int, layers: int, experts: int, workers: int, spare: int) -> PlacementProblem:
    """A problem whose current placement was made for other loads."""
    generator = np.random.default_rng(seed)
    slots = (experts + spare) * layers // workers
    there = tuple(WorkerCapacity(f"w{index}", slots * 100) for index in range(workers))
    before = PlacementProblem(loads(generator, layers, experts), 100, there, time_limit_s=600.0)
    return replace(before, loads=loads(generator, layers, experts), current=solve(before).placement)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 12), st.sampled_from(["moves", "layer", "bytes"]))
def test_budgets_hold_and_nothing_gets_worse(seed: int, count: int, kind: str) -> None:
    problem = drifted(seed, layers=3, experts=16, workers=4, spare=4)
    budget = {
        "moves": Budget(moves=count),
        "layer": Budget(moves_per_layer=count // 3),
        "bytes": Budget(bytes=count * 100 + 50),
    }[kind]
    problem = replace(problem, budget=budget)
    result = solve(problem)
    assert_rules(problem, result)
    assert_budget(problem, result)
    before = imbalance(problem.loads, problem.current, problem.workers)
    assert result.imbalance <= before * (1 + 1e-9)


def test_a_few_moves_recover_most_of_what_placing_afresh_gains() -> None:
    problem = drifted(3, layers=4, experts=64, workers=8, spare=8)
    before = imbalance(problem.loads, problem.current, problem.workers)
    afresh = solve(replace(problem, current={}))
    result = solve(replace(problem, budget=Budget(moves_per_layer=8)))
    assert before - result.imbalance >= 0.8 * (before - afresh.imbalance)
    assert result.terms.moves == len(make_plan(problem.current, result.placement).moves) <= 8 * 4
    assert sum(result.arrivals.values()) == result.terms.moves


def test_no_layer_is_changed_for_less_than_its_moves_cost() -> None:
    problem = drifted(5, layers=4, experts=32, workers=4, spare=4)
    result = solve(problem)
    price = problem.weights.move
    for layer, row in enumerate(problem.loads):
        old = {ExpertId(0, e.index): shares for e, shares in problem.current.items() if e.layer == layer}
        new = {ExpertId(0, e.index): shares for e, shares in result.placement.items() if e.layer == layer}
        moves = len(make_plan(old, new).moves)
        gain = imbalance([row], old, problem.workers) - imbalance([row], new, problem.workers)
        assert moves == 0 or gain > price * moves


def test_growth_fills_new_workers_even_where_a_move_gains_little() -> None:
    even = ((1.0,) * 256,) * 2
    eight = tuple(WorkerCapacity(f"w{index}", 100 * 80) for index in range(16))
    first = solve(PlacementProblem(even, 100, eight[:8]))
    grown = solve(PlacementProblem(even, 100, eight, current=first.placement))
    assert grown.imbalance == pytest.approx(1.0)
    assert 2 * 128 <= grown.terms.moves <= 2 * 160
