"""Exact parts of the solver against trying everything: clusters to workers, sets of replicas, proofs of transitions."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from flexpert_placement.evaluate import objective_of
from flexpert_placement.instance import Bools, Dense, Instance, dense_of, instance_of
from flexpert_placement.memory import most_kept
from flexpert_placement.models.clusters import clusters_to_workers, fits_clusters
from flexpert_placement.models.neighbourhoods import replica_set
from flexpert_placement.models.program import solve_exactly
from flexpert_placement.models.runner import Found
from flexpert_placement.shares import share_out
from flexpert_placement.solver import keeps_rules, solve
from flexpert_placement.transitions import transitions_bound
from flexpert_placement.transitions_model import is_complete, solve_transitions
from flexpert_placement.types import (
    ExpertId,
    PlacementProblem,
    SolverName,
    SolveStatus,
    Traffic,
    Weights,
    WorkerCapacity,
)


def clusters_with(seed: int, spare: int) -> tuple[list[Bools], Instance]:
    """Random clusters of 3 layers on 3 workers, some of them resident somewhere, in memory that hardly suffices."""
    generator = np.random.default_rng(seed)
    layers = [generator.random((5, 3)) < 0.5 for _ in range(3)]
    current = {
        ExpertId(layer, index): {f"w{int(generator.integers(3))}": 1.0} for layer in range(3) for index in range(5)
    }
    total = sum(int(held.sum()) for held in layers)
    workers = tuple(
        WorkerCapacity(f"w{n}", -(-total // 3) + spare, speed=2.0 if n == seed % 7 else 1.0) for n in range(3)
    )
    return layers, instance_of(PlacementProblem(((1.0,) * 5,) * 3, 1, workers, current=current))


@pytest.mark.parametrize("solver", list(SolverName))
@pytest.mark.parametrize("seed", range(8))
def test_clusters_go_to_the_workers_that_hold_most_of_them(seed: int, solver: SolverName) -> None:
    layers, instance = clusters_with(seed, spare=seed % 3)
    instance = replace(instance, problem=replace(instance.problem, solver=solver))
    orders = [np.array(order) for order in itertools.permutations(range(3))]
    best = None
    for chosen in itertools.product(orders, repeat=3):
        if not all((instance.speeds[order] == instance.speeds).all() for order in chosen):
            continue
        named = np.stack([held[:, order] for held, order in zip(layers, chosen, strict=True)])
        if (named.sum(axis=(0, 1)) <= instance.slots).all():
            best = max(best or 0, int((named & instance.current).sum()))
    found, outcome = clusters_to_workers(layers, instance, 60.0, lambda: False)
    assert fits_clusters(instance)
    assert (found is None) == (best is None)
    if found is not None:
        assert outcome.found is Found.OPTIMAL
        assert (np.stack(found).sum(axis=(0, 1)) <= instance.slots).all()
        assert int((np.stack(found) & instance.current).sum()) == best == -round(outcome.objective or 0.0)
        assert best <= most_kept(layers, instance)


def test_a_set_of_replicas_changes_hands_where_no_pair_of_workers_helps() -> None:
    loads = np.array([8.0, 8.0, 8.0, 2.0, 2.0, 2.0])
    workers = tuple(WorkerCapacity(f"w{n}", 3) for n in range(3))
    instance = instance_of(PlacementProblem((tuple(loads.tolist()),), 1, workers))
    held = np.zeros((1, 6, 3), dtype=bool)
    held[0, [0, 1], 0] = held[0, [2, 3], 1] = held[0, [3, 4, 5], 2] = held[0, 4, 1] = held[0, 5, 0] = True
    before = share_out(held[0], loads, instance.speeds)
    around = replica_set(instance, held, 0, before.limiting, np.argsort(before.loads))
    assert around.layers == [0]
    assert (around.free.all(axis=2) == around.free.any(axis=2)).all(), "all replicas of an expert or none"
    assert around.free[0, 0].all()
    found, outcome = solve_exactly(instance, around, instance.even, 60.0, 0.0, lambda: False)
    assert outcome.found is Found.OPTIMAL
    assert found is not None
    assert keeps_rules(instance, list(found))
    untouched = ~around.free.any(axis=2)
    assert np.array_equal(found[untouched], held[untouched])
    assert share_out(found[0], loads, instance.speeds).makespan < before.makespan


@pytest.mark.parametrize("seed", range(3))
def test_a_replica_set_is_small_enough_for_a_program(seed: int) -> None:
    generator = np.random.default_rng(seed)
    loads = generator.gamma(1.0, size=64)
    workers = tuple(WorkerCapacity(f"w{n}", 5) for n in range(16))
    instance = instance_of(PlacementProblem((tuple(loads.tolist()),), 1, workers))
    held = np.zeros((1, 64, 16), dtype=bool)
    held[0, np.arange(64), np.arange(64) // 4] = True
    shared = share_out(held[0], loads, instance.speeds)
    around = replica_set(instance, held, 0, shared.limiting, np.argsort(shared.loads))
    assert 0 < around.free.sum() <= 1024


def weighed(seed: int, workers: int = 2, slots: int = 2, **changes: object) -> PlacementProblem:
    generator = np.random.default_rng(seed)
    loads = generator.uniform(0.5, 1.5, (3, 4))
    capacities = tuple(WorkerCapacity(f"w{n}", 3 * slots, speed=1.0 + 0.01 * n * (seed % 2)) for n in range(workers))
    problem = PlacementProblem(
        tuple(tuple(row) for row in loads.tolist()),
        1,
        capacities,
        slots_per_layer=slots,
        traffic=Traffic(transitions=generator.random((2, 4, 4)) ** 3 + 0.01),
        weights=Weights(transitions=0.5),
        makespan_slack=0.5,
        time_limit_s=60.0,
    )
    return replace(problem, **changes)  # type: ignore[arg-type]


def best_within(instance: Instance, limits: np.ndarray) -> float:
    """Least objective of all even placements within the limits."""
    rows = sorted(set(itertools.permutations([0, 0, 1, 1])))
    values = []
    for homes in itertools.product(rows, repeat=3):
        shares = np.full(instance.shape, np.nan)
        np.put_along_axis(shares, np.array(homes)[..., None], 1.0, axis=2)
        dense = Dense(shares)
        if (dense.load_of_workers(instance.loads) / instance.speeds <= limits[:, None] * (1 + 1e-9)).all():
            values.append(objective_of(instance, dense))
    return min(values)


@pytest.mark.parametrize("seed", range(4))
def test_the_exact_model_minimises_the_objective_itself(seed: int) -> None:
    instance = instance_of(weighed(seed))
    limits = instance.even * 1.4
    solution = solve_transitions(instance, limits, time_limit_s=60.0)
    best = best_within(instance, limits)
    assert is_complete(instance)
    assert solution.proven
    assert solution.dense is not None
    assert objective_of(instance, solution.dense) == pytest.approx(best, rel=1e-6)
    assert solution.bound == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_the_proof_of_the_transitions_is_the_answers(seed: int) -> None:
    problem = weighed(seed)
    result = solve(problem)
    instance, dense = instance_of(problem), dense_of(result.placement, problem)
    assert keeps_rules(instance, list(dense.held))
    assert result.status is SolveStatus.OPTIMAL
    assert result.gap == pytest.approx(0.0, abs=1e-6)
    assert result.objective == pytest.approx(best_within(instance, np.full(3, np.inf)), rel=0.05)


def test_where_more_placements_exist_than_the_model_knows_only_the_parts_are_bounded() -> None:
    problem = weighed(1, slots=4)
    instance = instance_of(problem)
    assert not is_complete(instance)
    result = solve(problem)
    part = transitions_bound(instance, np.full(3, 1e9), instance.layer_slots)
    assert result.bound <= result.objective
    assert result.bound >= result.makespan_bound + 0.5 * float(instance.even.sum()) * part - 1e-9
