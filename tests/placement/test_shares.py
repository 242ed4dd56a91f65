"""The exact sharing of traffic: against every set of workers, which is what decides it (Hall)."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexpert_placement.instance import Bools, Floats
from flexpert_placement.shares import share_out


def least_makespan(held: Bools, loads: Floats, speeds: Floats) -> float:
    """The largest, over all sets of workers, of what only they can serve over how fast they are."""
    numbers = range(len(speeds))
    return max(
        float(loads[~held[:, [w for w in numbers if w not in inside]].any(axis=1)].sum() / speeds[list(inside)].sum())
        for size in range(1, len(speeds) + 1)
        for inside in itertools.combinations(numbers, size)
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 12), st.booleans())
def test_no_sharing_is_better(seed: int, num_workers: int, num_experts: int, uneven: bool) -> None:
    generator = np.random.default_rng(seed)
    loads = generator.gamma(0.7, size=num_experts) * (generator.random(num_experts) > 0.1)
    speeds = generator.choice([0.5, 1.0, 3.0], num_workers) if uneven else np.ones(num_workers)
    held = generator.random((num_experts, num_workers)) < generator.uniform(0.1, 0.7)
    held[np.arange(num_experts), generator.integers(num_workers, size=num_experts)] = True
    shared = share_out(held, loads, speeds)
    assert (shared.served >= 0).all()
    assert not shared.served[~held].any()
    assert shared.served.sum(axis=1) == pytest.approx(loads)
    assert shared.makespan == pytest.approx(float((shared.loads / speeds).max()))
    assert shared.makespan == pytest.approx(least_makespan(held, loads, speeds), abs=1e-8)


def test_a_chain_of_workers_is_levelled() -> None:
    held = np.zeros((6, 6), dtype=bool)
    for expert in range(6):
        held[expert, [expert, min(expert + 1, 5)]] = True
    loads = np.array([6.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert share_out(held, loads, np.ones(6)).makespan == pytest.approx(3.0)
    loads = np.array([2.0, 2.0, 2.0, 2.0, 2.0, 0.5])
    assert share_out(held, loads, np.ones(6)).makespan == pytest.approx(10.5 / 6)
