"""The solver: feasible, balanced, never worse than its quick answer, cheap in moves; brute force where small."""

import itertools
import random
from dataclasses import replace

import pytest

from flexpert_placement import (
    ExpertId,
    InfeasiblePlacement,
    Placement,
    PlacementProblem,
    PlacementResult,
    SolveStatus,
    Weights,
    WorkerCapacity,
    imbalance,
    make_plan,
    solve,
)


def workers(count: int, slots: int, speed: float = 1.0) -> tuple[WorkerCapacity, ...]:
    return tuple(WorkerCapacity(f"w{index}", memory_bytes=slots * 100 + 50, speed=speed) for index in range(count))


def skewed_loads(layers: int, experts: int, seed: int = 0) -> tuple[tuple[float, ...], ...]:
    generator = random.Random(seed)
    return tuple(tuple(generator.lognormvariate(0, 1) for _ in range(experts)) for _ in range(layers))


def problem_of(layers: int, experts: int, num_workers: int, slots: int, **options: object) -> PlacementProblem:
    base = PlacementProblem(skewed_loads(layers, experts), 100, workers(num_workers, slots), time_limit_s=4)
    return replace(base, **options)  # type: ignore[arg-type]


def assert_feasible(problem: PlacementProblem, result: PlacementResult) -> None:
    held = dict.fromkeys((worker.id for worker in problem.workers), 0)
    for layer, row in enumerate(problem.loads):
        for index in range(len(row)):
            shares = result.placement[ExpertId(layer, index)]
            assert len(shares) >= problem.min_replicas
            assert sum(shares.values()) == pytest.approx(1.0)
            assert all(share >= 0 for share in shares.values())
            for worker in shares:
                held[worker] += 1
    for worker in problem.workers:
        assert held[worker.id] * problem.expert_bytes <= worker.memory_bytes
    assert result.bound <= result.objective * (1 + 1e-9)


@pytest.mark.parametrize(
    ("layers", "experts", "num_workers", "slots"), [(4, 16, 2, 40), (4, 16, 4, 16), (3, 8, 5, 6), (1, 4, 1, 4)]
)
def test_every_expert_is_held_within_memory(layers: int, experts: int, num_workers: int, slots: int) -> None:
    problem = problem_of(layers, experts, num_workers, slots)
    result = solve(problem)
    assert_feasible(problem, result)
    assert imbalance(problem.loads, result.placement, problem.workers) == pytest.approx(result.imbalance, rel=1e-6)


def test_ample_memory_is_used_to_balance_a_hot_expert() -> None:
    problem = PlacementProblem(((90.0, 10.0, 10.0, 10.0),), 100, workers(3, 4))
    result = solve(problem)
    assert_feasible(problem, result)
    assert result.imbalance < 1.02
    assert len(result.placement[ExpertId(0, 0)]) > 1


def test_uneven_speeds_get_uneven_load() -> None:
    uneven = (WorkerCapacity("slow", 10_000, speed=1.0), WorkerCapacity("fast", 10_000, speed=3.0))
    problem = PlacementProblem(skewed_loads(2, 12), 100, uneven)
    assert solve(problem).imbalance < 1.02


def test_no_worse_than_brute_force_on_a_tiny_layer() -> None:
    loads = (5.0, 4.0, 3.0, 3.0, 3.0)
    best = min(
        max(sum(load for load, w in zip(loads, where, strict=True) if w == worker) for worker in range(2))
        for where in itertools.product(range(2), repeat=len(loads))
        if 2 <= sum(where) <= 3
    )
    result = solve(PlacementProblem((loads,), 100, workers(2, 3), max_replicas=1, weights=Weights(move=0.0)))
    assert result.makespan == pytest.approx(best)
    assert result.status is SolveStatus.OPTIMAL


def test_standing_still_costs_nothing_and_growing_moves_about_half() -> None:
    two = problem_of(4, 16, 2, 40)
    first = solve(two)
    again = solve(replace(two, current=first.placement))
    assert make_plan(first.placement, again.placement).moves == ()
    four = replace(two, workers=workers(4, 40), current=first.placement)
    grown = solve(four)
    assert_feasible(four, grown)
    plan = make_plan(first.placement, grown.placement)
    assert 4 * 4 <= len(plan.moves) <= 4 * 12
    assert {source for move in plan.moves for source in move.sources} <= {"w0", "w1"}


def test_replicas_of_lost_workers_are_placed_again() -> None:
    three = problem_of(2, 8, 3, 16)
    first = solve(three)
    survivors = replace(three, workers=three.workers[:2], current=first.placement)
    result = solve(survivors)
    assert_feasible(survivors, result)
    plan = make_plan(first.placement, result.placement, alive={"w0", "w1"})
    assert all("w2" not in move.sources for move in plan.moves)
    assert {worker for _, worker in plan.drops} >= {"w2"}


def test_two_replicas_stand_on_two_workers() -> None:
    problem = problem_of(2, 8, 3, 16, min_replicas=2)
    result = solve(problem)
    assert_feasible(problem, result)


def test_unknown_loads_are_taken_as_even() -> None:
    problem = PlacementProblem(((0.0,) * 8,) * 2, 100, workers(4, 8))
    result = solve(problem)
    assert_feasible(problem, result)
    assert result.makespan == pytest.approx(2 * 8 / 4)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (PlacementProblem(((1.0,),), 100, ()), "spec.experts.workers"),
        (PlacementProblem(((1.0,) * 16,), 100, workers(2, 4)), "memoryPerWorker"),
        (PlacementProblem(((1.0,),), 100, workers(1, 4), min_replicas=2), "minReplicasPerExpert"),
    ],
)
def test_what_cannot_fit_is_refused_in_the_users_terms(problem: PlacementProblem, message: str) -> None:
    with pytest.raises(InfeasiblePlacement, match=message):
        solve(problem)


def test_a_plan_prefers_sources_that_stay() -> None:
    expert = ExpertId(0, 0)
    current: Placement = {expert: {"a": 0.5, "b": 0.5}}
    plan = make_plan(current, {expert: {"b": 0.5, "c": 0.5}})
    assert [(move.target, move.sources) for move in plan.moves] == [("c", ("b", "a"))]
    assert plan.drops == ((expert, "a"),)


def hot_loads(layers: int, experts: int, seed: int = 0) -> tuple[tuple[float, ...], ...]:
    """Skewed as in real traces: the hottest expert has about four times the average load."""
    generator = random.Random(seed)
    return tuple(tuple(generator.gammavariate(1.6, 1.0) for _ in range(experts)) for _ in range(layers))


@pytest.mark.parametrize(
    ("num_workers", "slots", "aim"), [(72, 4, 1.01), (144, 2, 1.03), (32, 9, 1.002)], ids=["72x4", "144x2", "32x9"]
)
def test_few_slots_a_worker(num_workers: int, slots: int, aim: float) -> None:
    layers = 4
    wide = workers(num_workers, slots * layers)
    problem = PlacementProblem(hot_loads(layers, 256), 100, wide, time_limit_s=600)
    result = solve(problem)
    assert_feasible(problem, result)
    assert result.makespan <= aim * result.makespan_bound


def test_one_slot_a_worker_is_near_its_bound() -> None:
    problem = PlacementProblem(hot_loads(2, 64), 100, workers(80, 2), time_limit_s=600)
    result = solve(problem)
    assert_feasible(problem, result)
    assert result.makespan == pytest.approx(result.makespan_bound, rel=0.03)


def test_sixteen_equal_experts_on_three_workers_are_proven_at_once() -> None:
    result = solve(PlacementProblem(((1.0,) * 16,) * 2, 100, workers(3, 40), max_replicas=1))
    assert result.status is SolveStatus.OPTIMAL
    assert result.makespan == pytest.approx(12.0)


def test_the_same_problem_has_the_same_answer() -> None:
    problem = problem_of(3, 32, 4, 30)
    assert solve(problem).placement == solve(problem).placement


def test_an_answer_is_never_worse_than_the_start_it_is_given() -> None:
    problem = problem_of(2, 12, 3, 10)
    good = solve(problem)
    again = solve(problem, cancelled=lambda: True, start=good.placement)
    assert again.objective <= good.objective * (1 + 1e-9)


def test_the_answer_names_what_limits_it() -> None:
    problem = PlacementProblem(((90.0, 1.0, 1.0, 1.0),), 100, workers(4, 1))
    result = solve(problem)
    assert result.hottest[0] == ExpertId(0, 0)
    assert result.limiting[0] in result.placement[ExpertId(0, 0)]
