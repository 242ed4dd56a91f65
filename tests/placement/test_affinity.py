"""Affinity: the measures by definition and against the dispatcher, exact changes, and what an improvement keeps."""

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexpert_placement.affinity import cross_node, cross_zone, fan_out, improve_affinity
from flexpert_placement.affinity.layer import SPLIT, LayerState, Level
from flexpert_placement.affinity.pairs import PairState
from flexpert_placement.instance import Dense, Instance, dense_of, instance_of
from flexpert_placement.solver import solve
from flexpert_placement.trace import RoutingTrace
from flexpert_placement.types import ExpertId, PlacementProblem, Traffic, Weights, WorkerCapacity
from flexpert_workers.dispatch.routes import LayerRoutes
from flexpert_workers.routing import Replica

LAYERS, EXPERTS, WORKERS, TOP_K = 3, 12, 4, 3


def planted_sample(tokens: int = 400, seed: int = 0) -> np.ndarray:
    """[tokens, layers, k]: each token chooses most of its experts from one of four scattered groups of three."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 4, size=tokens)
    order = np.stack([rng.permutation(EXPERTS).reshape(4, 3) for _ in range(LAYERS)])
    sample = np.stack([order[layer, group] for layer in range(LAYERS)], axis=1)
    stray = rng.random((tokens, LAYERS)) < 0.1
    sample[stray, 0] = [
        rng.choice(np.setdiff1d(np.arange(EXPERTS), sample[token, layer])) for token, layer in np.argwhere(stray)
    ]
    return sample


def instance_with(sample: np.ndarray, slots: int = 9, **fields: object) -> Instance:
    loads = [np.bincount(sample[:, layer].ravel(), minlength=EXPERTS) for layer in range(sample.shape[1])]
    workers = tuple(
        WorkerCapacity(f"w{n}", slots, failure_domain=f"d{n % 2}", node=f"n{n // 2}", zone=f"z{n // 2}")
        for n in range(WORKERS)
    )
    problem = PlacementProblem(
        loads=tuple(tuple(float(load) for load in row) for row in loads),
        expert_bytes=1,
        workers=workers,
        traffic=Traffic(sample=sample),
        **fields,  # type: ignore[arg-type]
    )
    return instance_of(problem)


def contiguous() -> Dense:
    shares = np.full((LAYERS, EXPERTS, WORKERS), np.nan)
    for expert in range(EXPERTS):
        shares[:, expert, expert * WORKERS // EXPERTS] = 1.0
    return Dense(shares)


def times(instance: Instance, dense: Dense) -> np.ndarray:
    return dense.served(instance.loads).sum(axis=1) / instance.speeds


def test_fan_out_counts_the_distinct_workers_of_each_token() -> None:
    sample = planted_sample(50)
    instance, dense = instance_with(sample), contiguous()
    home = np.arange(EXPERTS) * WORKERS // EXPERTS
    counted = [len(set(home[token[layer]])) for token in sample for layer in range(LAYERS)]
    nodes = [len(set(home[token[layer]] // 2)) for token in sample for layer in range(LAYERS)]
    assert fan_out(instance, dense) == pytest.approx(np.mean(counted))
    assert cross_node(instance, dense) == pytest.approx(np.mean(nodes) - 1)
    assert cross_zone(instance, dense) == pytest.approx(np.mean(nodes) - 1)


def test_nothing_is_measured_where_no_tokens_are_known() -> None:
    problem = PlacementProblem(((1.0,) * EXPERTS,) * LAYERS, 1, (WorkerCapacity("w", 99),) * WORKERS)
    assert fan_out(instance_of(problem), contiguous()) == 0.0
    assert improve_affinity(instance_of(problem), dense := contiguous()) is dense


def test_fan_out_with_replicas_is_what_the_dispatcher_makes_of_them() -> None:
    sample = planted_sample(4000)
    instance = instance_with(sample)
    rng = np.random.default_rng(1)
    shares = contiguous().shares.copy()
    for layer, expert in np.ndindex(LAYERS, EXPERTS):
        if rng.random() < 0.5:
            shares[layer, expert] = np.nan
            shares[layer, expert, rng.choice(WORKERS, 2, replace=False)] = (part := rng.uniform(0.1, 0.9)), 1 - part
    seen = []
    for layer in range(LAYERS):
        replicas = [
            [Replica(int(worker), float(row[worker])) for worker in np.flatnonzero(~np.isnan(row))]
            for row in shares[layer]
        ]
        asked = LayerRoutes.of(replicas).assign(sample[:, layer].ravel(), np.zeros(EXPERTS, dtype=np.int64))
        seen.append(np.mean([len(set(row)) for row in asked.reshape(-1, TOP_K).tolist()]))
    assert fan_out(instance, Dense(shares)) == pytest.approx(np.mean(seen), rel=0.02)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_every_change_is_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = planted_sample(40, seed)[:, 0]
    shares = np.zeros((EXPERTS, WORKERS))
    shares[np.arange(EXPERTS), rng.integers(0, WORKERS, EXPERTS)] = 1.0
    for expert in rng.choice(EXPERTS, 3, replace=False):
        shares[expert] = rng.dirichlet(np.ones(WORKERS))
    levels = (Level(0.7, np.arange(WORKERS)), Level(0.3, np.array([0, 0, 1, 1])))
    state = LayerState(rows, shares, levels)
    single = np.flatnonzero(state.home != SPLIT)
    for _ in range(4):
        first, second = rng.choice(single, 2, replace=False).tolist()
        worker = int(rng.integers(0, WORKERS))
        swap, price = state.swaps()[first, second], state.prices()[first, worker]
        homes = int(state.home[first]), int(state.home[second])
        before = state.cost()
        state.move(((first, homes[1]), (second, homes[0])))
        assert state.cost() - before == pytest.approx(swap, abs=1e-5)
        assert state.cost() == pytest.approx(LayerState(rows, state.shares, levels).cost(), abs=1e-5)
        state.move(((first, homes[0]), (second, homes[1])))
        state.move(((first, worker),))
        assert state.cost() - before == pytest.approx(price, abs=1e-5)
        fresh = LayerState(rows, state.shares, levels)
        assert np.allclose(state.swaps()[np.ix_(single, single)], fresh.swaps()[np.ix_(single, single)], atol=1e-5)
    for expert in range(EXPERTS):
        prices, before, old = state.split_prices(expert), state.cost(), state.shares[expert].copy()
        new = rng.dirichlet(np.ones(WORKERS))
        state.lay_out(expert, new)
        assert state.cost() - before == pytest.approx(float((new - old) @ prices), abs=1e-5)


def test_scattered_groups_are_found() -> None:
    instance = instance_with(planted_sample())
    better = improve_affinity(instance, contiguous(), limits=instance.even * 1.3)
    assert fan_out(instance, better) < 1.2 < 2.0 < fan_out(instance, contiguous())
    assert (times(instance, better).max(axis=1) <= instance.even * 1.3 + 1e-6).all()
    assert (better.held.sum(axis=(0, 1)) <= instance.slots).all()


def test_the_same_problem_gives_the_same_answer() -> None:
    instance = instance_with(planted_sample(), seed=3)
    one, two = (improve_affinity(instance, contiguous(), limits=instance.even * 1.2) for _ in range(2))
    assert np.array_equal(one.shares, two.shares, equal_nan=True)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**20), slack=st.floats(0.0, 0.5), spare=st.integers(0, 4), copies=st.integers(1, 2))
def test_an_improvement_keeps_every_bound(seed: int, slack: float, spare: int, copies: int) -> None:
    rng = np.random.default_rng(seed)
    instance = instance_with(
        planted_sample(120, seed),
        slots=9 * copies + spare,
        makespan_slack=slack,
        min_replicas=copies,
        max_replicas=3,
        min_failure_domains=copies,
        pinned={ExpertId(0, 0): frozenset({"w0"})},
        weights=Weights(fan_out=1.0, cross_node=float(rng.integers(0, 2))),
        seed=seed,
    )
    start = contiguous().shares.copy()
    if copies == 2:
        for expert in range(EXPERTS):
            home = expert * WORKERS // EXPERTS
            start[:, expert, home], start[:, expert, (home + 1) % WORKERS] = 0.5, 0.5
    before = Dense(start)
    after = improve_affinity(instance, before)
    assert fan_out(instance, after) + 1e-9 <= fan_out(instance, before) or instance.problem.weights.cross_node
    assert np.allclose(np.nansum(after.shares, axis=2), 1.0)
    assert (after.held.sum(axis=(0, 1)) <= instance.slots).all()
    assert ((after.held.sum(axis=2) >= instance.fewest) & (after.held.sum(axis=2) <= instance.most)).all()
    assert after.held[0, 0, 0]
    bound = times(instance, before).max(axis=1) * (1 + slack)
    assert (times(instance, after).max(axis=1) <= bound * (1 + 1e-6)).all()
    for layer, expert in np.ndindex(LAYERS, EXPERTS):
        assert len(set(instance.domains[after.held[layer, expert]].tolist())) >= copies


def test_replicas_that_are_there_already_stay_where_a_copy_costs_more_than_it_brings() -> None:
    sample = planted_sample()
    current = {
        ExpertId(layer, e): {f"w{e * WORKERS // EXPERTS}": 1.0} for layer in range(LAYERS) for e in range(EXPERTS)
    }
    instance = instance_with(sample, current=current)
    kept = improve_affinity(instance, contiguous(), limits=instance.even * 1.3, move_price=10.0)
    assert np.array_equal(kept.held, contiguous().held)
    cheap = improve_affinity(instance, contiguous(), limits=instance.even * 1.3, move_price=0.001)
    assert fan_out(instance, cheap) < fan_out(instance, contiguous())


def test_a_search_without_time_returns_something_complete() -> None:
    instance, ticks = instance_with(planted_sample()), count()
    after = improve_affinity(instance, contiguous(), time_limit_s=0.0, clock=lambda: float(next(ticks)))
    assert np.allclose(np.nansum(after.shares, axis=2), 1.0)
    assert (after.held.sum(axis=(0, 1)) <= instance.slots).all()


def test_pairs_alone_find_the_groups_and_estimate_the_fan_out() -> None:
    sample = planted_sample(2000)
    known = instance_with(sample)
    pairs = Traffic(coactivation=RoutingTrace(sample, np.array([len(sample)]), EXPERTS).coactivation())
    blind = replace(known, problem=replace(known.problem, traffic=pairs))
    better = improve_affinity(blind, contiguous(), limits=known.even * 1.3)
    assert fan_out(known, better) < 1.2 < 2.0 < fan_out(known, contiguous())
    for dense in (contiguous(), better):
        assert fan_out(blind, dense) == pytest.approx(fan_out(known, dense), rel=0.06)
        assert cross_node(blind, dense) == pytest.approx(cross_node(known, dense), abs=0.1)


def test_the_solver_lowers_the_fan_out_by_pairs_alone() -> None:
    sample = planted_sample(500)
    pairs = Traffic(coactivation=RoutingTrace(sample, np.array([len(sample)]), EXPERTS).coactivation())
    known = instance_with(sample)
    weighed = replace(known.problem, traffic=pairs, weights=Weights(fan_out=1.0), makespan_slack=0.3, time_limit_s=60.0)
    found = solve(weighed)
    placed = dense_of(found.placement, weighed)
    assert found.terms.fan_out < 1.4
    assert fan_out(known, placed) < 1.4


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_changes_by_pairs_are_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sample = planted_sample(60, seed)
    pairs = RoutingTrace(sample, np.array([len(sample)]), EXPERTS).coactivation()[0]
    shares = np.zeros((EXPERTS, WORKERS))
    shares[np.arange(EXPERTS), rng.integers(0, WORKERS, EXPERTS)] = 1.0
    shares[0] = rng.dirichlet(np.ones(WORKERS))
    state = PairState(pairs, shares, (Level(0.7, np.arange(WORKERS)), Level(0.3, np.array([0, 0, 1, 1]))))
    first, second = rng.choice(np.arange(1, EXPERTS), 2, replace=False).tolist()
    before, swap, homes = state.cost(), state.swaps()[first, second], (int(state.home[first]), int(state.home[second]))
    state.move(((first, homes[1]), (second, homes[0])))
    assert state.cost() - before == pytest.approx(swap, abs=1e-9)
    worker, before = int(rng.integers(0, WORKERS)), state.cost()
    price = state.prices()[first, worker]
    state.move(((first, worker),))
    assert state.cost() - before == pytest.approx(price, abs=1e-9)
    prices, before, old = state.split_prices(0), state.cost(), state.shares[0].copy()
    new = rng.dirichlet(np.ones(WORKERS))
    state.lay_out(0, new)
    assert state.cost() - before == pytest.approx(float((new - old) @ prices), abs=1e-9)
