"""The best groups of few experts are those that trying every placement finds; packing is no worse than EPLB."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexpert_placement.bounds import Bounds
from flexpert_placement.evaluate import makespans
from flexpert_placement.exact_groups import Subsets, best_groups
from flexpert_placement.groups import arrange
from flexpert_placement.instance import Bools, Floats, Instance, Ints, instance_of
from flexpert_placement.layer import Layer, layer_of
from flexpert_placement.packing import copies_of, packed
from flexpert_placement.shares import share_out
from flexpert_placement.solver import dense_shares, solve
from flexpert_placement.types import PlacementProblem, SolveStatus, WorkerCapacity

AllAnswers = Callable[[Instance], Iterator[Bools]]


def instance_with(loads: Floats, slots: Ints, speeds: Floats | None = None) -> Instance:
    rates = np.ones(len(slots)) if speeds is None else speeds
    workers = tuple(WorkerCapacity(f"w{n}", int(slots[n]), speed=float(rates[n])) for n in range(len(slots)))
    rows = tuple(tuple(row) for row in np.atleast_2d(loads).tolist())
    return instance_of(PlacementProblem(rows, 1, workers, time_limit_s=600.0))


def layer_with(instance: Instance) -> Layer:
    return layer_of(instance, 0, instance.slots, np.zeros(instance.shape[2]))


def best_of_all(instance: Instance, answers: Iterator[Bools], spare: int) -> float:
    fitting = (held for held in answers if int(held.sum()) <= instance.shape[1] + spare)
    return min(float(makespans(instance, dense_shares(instance, list(held))).sum()) for held in fitting)


@pytest.mark.parametrize("spare", [0, 1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_groups_of_workers_alike_are_the_best_of_all(seed: int, spare: int, all_answers: AllAnswers) -> None:
    loads = np.random.default_rng(seed).gamma(0.7, size=4) + 0.02
    instance = instance_with(loads, np.full(3, 4))
    found = best_groups(Subsets(4, first_inside=True), loads, instance.speeds, instance.slots, spare)
    assert found is not None
    assert found.trail[-1] == pytest.approx(best_of_all(instance, all_answers(instance), spare))
    assert Bounds(instance).trails[0][min(spare, 2)] == pytest.approx(found.trail[-1])


@pytest.mark.parametrize("seed", range(6))
def test_whole_experts_on_workers_that_differ_are_divided_best(seed: int, all_answers: AllAnswers) -> None:
    generator = np.random.default_rng(seed)
    loads, speeds = generator.gamma(0.7, size=5) + 0.02, generator.choice([1.0, 2.0, 3.0], 3)
    instance = instance_with(loads, np.array([1, 2, 2]), speeds)
    found = best_groups(Subsets(5, first_inside=False), loads, speeds, instance.slots, 0)
    assert found is not None
    assert list(found.trail) == [pytest.approx(best_of_all(instance, all_answers(instance), 0))]
    assert Bounds(instance).makespan == pytest.approx(found.trail[0])
    assert solve(instance.problem).makespan == pytest.approx(found.trail[0])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
def test_groups_are_placed_as_they_promise(seed: int, experts: int, workers: int, slots: int, spare: int) -> None:
    loads = np.random.default_rng(seed).gamma(0.8, size=experts) + 1e-3
    instance = instance_with(loads, np.full(workers, slots))
    found = best_groups(Subsets(experts, first_inside=True), loads, instance.speeds, instance.slots, spare)
    assert (found is None) == (workers * slots < experts)
    if found is not None:
        for merges in range(found.merges + 1):
            held = arrange(layer_with(instance), found, merges)
            assert held is not None
            assert (held.sum(axis=0) <= slots).all()
            assert held.sum() <= experts + merges
            assert share_out(held, loads, instance.speeds).makespan == pytest.approx(found.trail[merges])


@pytest.mark.parametrize("workers", [4, 8])
def test_mixtral_is_proven_without_a_program(workers: int) -> None:
    loads = np.random.default_rng(workers).gamma(4.0, size=(32, 8))
    instance = instance_with(loads, np.full(workers, 256 // workers))
    result = solve(instance.problem)
    assert result.status is SolveStatus.OPTIMAL
    assert result.makespan == pytest.approx(result.makespan_bound, rel=1e-9)


def eplb_makespan(loads: Floats, slots: int, workers: int) -> float:
    """EPLB's global placement as it is described, with equal shares: replicate the hottest, pack the heaviest first."""
    counts = np.ones(len(loads), dtype=np.int64)
    for _ in range(slots * workers - len(loads)):
        counts[int((loads / counts).argmax())] += 1
    times, free = np.zeros(workers), np.full(workers, slots)
    for load in sorted(np.repeat(loads / counts, counts), reverse=True):
        worker = int(np.where(free > 0, times, np.inf).argmin())
        times[worker] += load
        free[worker] -= 1
    return float(times.max())


@pytest.mark.parametrize(("experts", "workers", "slots"), [(32, 40, 1), (32, 18, 2), (32, 9, 4), (24, 8, 3)])
@pytest.mark.parametrize("time_limit_s", [0.0, 600.0])
def test_no_answer_is_worse_than_eplbs_however_little_time_there_is(
    experts: int, workers: int, slots: int, time_limit_s: float
) -> None:
    loads = np.random.default_rng(experts).gamma(1.5, size=(6, experts)) + 0.05
    capacities = tuple(WorkerCapacity(f"w{n}", 6 * slots) for n in range(workers))
    rows = tuple(tuple(row) for row in loads.tolist())
    result = solve(PlacementProblem(rows, 1, capacities, time_limit_s=time_limit_s))
    assert result.makespan <= sum(eplb_makespan(row, slots, workers) for row in loads) * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(0, 6))
def test_no_numbers_of_replicas_make_the_largest_load_less(seed: int, experts: int, spare: int) -> None:
    loads = np.random.default_rng(seed).gamma(1.0, size=experts) + 1e-3
    layer = layer_with(instance_with(loads, np.full(experts + spare, 1)))
    copies = copies_of(layer, experts + spare)
    best = np.inf
    for split in np.ndindex(*(spare + 1,) * experts):
        if sum(split) == spare:
            best = min(best, float((loads / (1 + np.array(split))).max()))
    assert copies.sum() == experts + spare
    assert float((loads / copies).max()) == pytest.approx(best)
    held = packed(layer)
    assert held is not None
    assert share_out(held, loads, layer.speeds).makespan == pytest.approx(best)


def test_packing_needs_a_slot_for_every_expert() -> None:
    assert packed(layer_with(instance_with(np.ones(5), np.full(2, 2)))) is None
