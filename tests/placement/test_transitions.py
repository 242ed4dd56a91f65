"""Transitions: the measure by definition, bound and exact model against all placements, what an improvement keeps."""

from dataclasses import replace
from itertools import count, permutations, product

import numpy as np
import pytest

from flexpert_placement.instance import Dense, Instance, instance_of
from flexpert_placement.transitions import improve_transitions, transitions, transitions_bound
from flexpert_placement.transitions_chain import fits_chain
from flexpert_placement.transitions_model import fits_model, solve_transitions
from flexpert_placement.types import ExpertId, PlacementProblem, SolverName, Traffic, WorkerCapacity


def instance_with(steps: np.ndarray, workers: int, loads: np.ndarray | None = None, **fields: object) -> Instance:
    layers, experts = len(steps) + 1, steps.shape[1]
    known = np.ones((layers, experts)) if loads is None else loads
    problem = PlacementProblem(
        loads=tuple(tuple(row) for row in known.tolist()),
        expert_bytes=1,
        workers=tuple(WorkerCapacity(f"w{n}", layers * experts) for n in range(workers)),
        traffic=Traffic(transitions=steps),
        **fields,  # type: ignore[arg-type]
    )
    return instance_of(problem)


def dense_of_homes(homes: np.ndarray, workers: int) -> Dense:
    shares = np.full((*homes.shape, workers), np.nan)
    np.put_along_axis(shares, homes[..., None], 1.0, axis=2)
    return Dense(shares)


def contiguous(layers: int, experts: int, workers: int) -> Dense:
    return dense_of_homes(np.tile(np.arange(experts) * workers // experts, (layers, 1)), workers)


def chained(layers: int, experts: int, seed: int = 0) -> np.ndarray:
    """[layers - 1, experts, experts]: most tokens of an expert go on to one expert of the next layer."""
    rng = np.random.default_rng(seed)
    steps = rng.random((layers - 1, experts, experts))
    for layer in range(layers - 1):
        steps[layer, np.arange(experts), rng.permutation(experts)] += 4 * experts
    return steps


def all_even_placements(layers: int, experts: int, workers: int) -> list[np.ndarray]:
    rows = sorted(set(permutations(np.repeat(np.arange(workers), experts // workers).tolist())))
    return [np.array(homes) for homes in product(rows, repeat=layers)]


def test_the_measure_counts_the_steps_that_change_worker() -> None:
    steps = np.array([[[3.0, 1.0], [2.0, 4.0]]])
    instance = instance_with(steps, 2)
    assert transitions(instance, contiguous(2, 2, 2)) == pytest.approx(3 / 10)
    half = contiguous(2, 2, 2).shares.copy()
    half[1, 1] = [0.5, 0.5]
    assert transitions(instance, Dense(half)) == pytest.approx(1 - (3 + 0.5 * 1 + 0.5 * 4) / 10)


def test_nothing_is_measured_without_transitions() -> None:
    problem = PlacementProblem(((1.0, 1.0),), 1, (WorkerCapacity("w", 4),) * 2)
    dense = contiguous(1, 2, 2)
    assert transitions(instance_of(problem), dense) == 0.0
    assert improve_transitions(instance_of(problem), dense) is dense


@pytest.mark.parametrize(
    ("solver", "uneven"), [(SolverName.CBC, False), (SolverName.CBC, True), (SolverName.HIGHS, True)]
)
@pytest.mark.parametrize("seed", range(3))
def test_the_exact_models_find_what_trying_everything_finds(solver: SolverName, uneven: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    loads = rng.uniform(0.5, 1.5, (3, 4))
    instance = instance_with(rng.random((2, 4, 4)) ** 3, 2, loads)
    if uneven:
        instance = replace(instance, speeds=np.array([1.0, 1.01]))
    assert fits_chain(instance) != uneven
    limits = instance.even * 1.25
    values = []
    for homes in all_even_placements(3, 4, 2):
        dense = dense_of_homes(homes, 2)
        if (dense.served(instance.loads).sum(axis=1) / instance.speeds <= limits[:, None]).all():
            values.append(transitions(instance, dense))
    assert fits_model(instance)
    solution = solve_transitions(instance, limits, solver, time_limit_s=60.0)
    assert solution.proven
    assert solution.dense is not None
    assert solution.transitions == pytest.approx(min(values), abs=1e-6)
    assert transitions(instance, solution.dense) == pytest.approx(solution.transitions)
    assert transitions_bound(instance, limits, np.array([2, 2])) <= min(values) + 1e-9


@pytest.mark.parametrize("workers", [4, 8])
def test_the_shape_of_mixtral_is_solved_exactly(workers: int) -> None:
    instance = instance_with(chained(32, 8), workers)
    limits = instance.even * 1.5
    solution = solve_transitions(instance, limits)
    assert solution.proven
    assert solution.dense is not None
    assert solution.transitions == pytest.approx(transitions(instance, solution.dense))
    found = improve_transitions(instance, contiguous(32, 8, workers), limits, time_limit_s=60.0)
    assert solution.transitions <= transitions(instance, found) + 1e-9
    assert transitions_bound(instance, limits, np.full(workers, 8 // workers)) <= solution.transitions + 1e-9


def test_limits_that_nothing_keeps_to_have_no_placement() -> None:
    instance = instance_with(chained(4, 8), 4)
    assert solve_transitions(instance, instance.even * 0.5).dense is None


def test_the_model_is_for_small_even_shapes() -> None:
    assert fits_model(instance_with(chained(32, 8), 8))
    assert not fits_model(instance_with(chained(26, 64), 8))
    assert not fits_model(instance_with(chained(3, 8), 3))


def test_chains_are_followed_within_the_limit() -> None:
    rng = np.random.default_rng(0)
    instance = instance_with(chained(6, 16), 4, rng.uniform(0.8, 1.2, (6, 16)))
    start, limits = contiguous(6, 16, 4), instance.even * 1.15
    better = improve_transitions(instance, start, limits, time_limit_s=60.0)
    bound = transitions_bound(instance, limits, np.full(4, 4))
    before, after = transitions(instance, start), transitions(instance, better)
    assert bound <= after
    assert (before - after) / (before - bound) > 0.8
    assert (better.held.sum(axis=1) == 4).all()
    busy = better.served(instance.loads).sum(axis=1).max(axis=1)
    assert (busy <= np.maximum(limits, start.served(instance.loads).sum(axis=1).max(axis=1)) + 1e-9).all()


def test_layers_with_replicas_or_pins_stay_as_they_are() -> None:
    pinned = {ExpertId(2, 0): frozenset({"w0"})}
    instance = instance_with(chained(5, 8), 4, pinned=pinned)
    shares = contiguous(5, 8, 4).shares.copy()
    shares[1, 0] = [0.5, 0.5, np.nan, np.nan]
    start = Dense(shares)
    after = improve_transitions(instance, start, instance.even * 2, time_limit_s=60.0)
    assert np.array_equal(after.shares[1:3], start.shares[1:3], equal_nan=True)
    assert transitions(instance, after) < transitions(instance, start)


def test_without_time_the_start_or_better_is_returned() -> None:
    instance, ticks = instance_with(chained(5, 8), 4), count()
    start = contiguous(5, 8, 4)
    after = improve_transitions(instance, start, time_limit_s=0.0, clock=lambda: float(next(ticks)))
    assert transitions(instance, after) <= transitions(instance, start)
    assert np.allclose(np.nansum(after.shares, axis=2), 1.0)
