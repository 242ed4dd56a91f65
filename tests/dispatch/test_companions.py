"""Replicas for few rows: shares are kept, whatever the rows, and rows ask fewer workers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexpert_workers.dispatch.companions import CREDIT, MOST_PAIRS
from flexpert_workers.dispatch.routes import NOWHERE, LayerRoutes, Routes
from flexpert_workers.routing import Epoch, Replica, RoutingTable

EXPERTS, WORKERS, TOP_K = 24, 6, 4


def drawn_layer(rng, most_replicas):
    rows = []
    for _ in range(EXPERTS):
        workers = rng.choice(WORKERS, size=rng.integers(1, most_replicas + 1), replace=False)
        shares = rng.dirichlet(np.ones(len(workers)))
        rows.append([Replica(int(worker), float(share)) for worker, share in zip(workers, shares, strict=True)])
    return rows


def drawn_experts(rng, rows, skew):
    popularity = rng.dirichlet(np.full(EXPERTS, skew)) + 1e-3
    popularity /= popularity.sum()
    return np.stack([rng.choice(EXPERTS, TOP_K, replace=False, p=popularity) for _ in range(rows)])


def passes(chosen, sizes):
    """[pairs] experts and rows of passes of these sizes, in turn, until all rows are used up."""
    start = 0
    while start < len(chosen):
        part = chosen[start : start + sizes[start % len(sizes)]]
        yield part.ravel(), np.repeat(np.arange(len(part)), TOP_K)
        start += len(part)


def workers_per_row(assigned):
    return np.mean([len(set(row)) for row in assigned.reshape(-1, TOP_K).tolist()])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    most_replicas=st.integers(2, 4),
    sizes=st.lists(st.integers(1, MOST_PAIRS // TOP_K), min_size=1, max_size=4),
    skew=st.sampled_from([0.1, 1.0]),
)
def test_shares_are_kept_at_every_moment(seed, most_replicas, sizes, skew):
    rng = np.random.default_rng(seed)
    layer = drawn_layer(rng, most_replicas)
    companions = LayerRoutes.of(layer).companions()
    shares = np.zeros((EXPERTS, WORKERS))
    for expert, replicas in enumerate(layer):
        for replica in replicas:
            shares[expert, replica.worker] = replica.share
    had = np.zeros((EXPERTS, WORKERS))
    for experts, rows in passes(drawn_experts(rng, 150, skew), sizes):
        assigned = companions.assign(experts, rows)
        np.add.at(had, (experts, assigned), 1)
        promised = shares * had.sum(axis=1, keepdims=True)
        assert ((had > 0) <= (shares > 0)).all()
        assert (had - promised).max() <= CREDIT + 1e-6
        assert (promised - had).max() <= CREDIT * (most_replicas - 1) + 1e-6


@pytest.mark.parametrize("rows", [1, 8, MOST_PAIRS // TOP_K])
def test_rows_ask_fewer_workers_than_by_drawing(rows):
    rng = np.random.default_rng(3)
    layer = [[Replica(int(worker), 0.5) for worker in rng.choice(WORKERS, 2, replace=False)] for _ in range(EXPERTS)]
    routes, seen = LayerRoutes.of(layer), np.zeros(EXPERTS, dtype=np.int64)
    companions = routes.companions()
    calls = list(passes(drawn_experts(rng, 480, 1.0), [rows]))
    together = np.concatenate([companions.assign(experts, of) for experts, of in calls])
    alone = np.concatenate([routes.assign(experts, seen) for experts, _ in calls])
    assert workers_per_row(together) < 0.85 * workers_per_row(alone)


def test_a_row_uses_the_replica_beside_its_other_experts():
    routes = LayerRoutes.of([[Replica(0, 1.0)], [Replica(1, 1.0)], [Replica(0, 0.5), Replica(1, 0.5)]])
    companions = routes.companions()
    for first, worker in [(0, 0), (1, 1)] * 20:
        assert companions.assign(np.array([first, 2]), np.array([0, 0])).tolist() == [worker, worker]


def test_an_expert_without_replica_goes_nowhere_and_many_pairs_are_left_to_arithmetic():
    companions = LayerRoutes.of([[], [Replica(0, 0.5), Replica(1, 0.5)]]).companions()
    assert companions.assign(np.array([0, 1]), np.array([0, 0]))[0] == NOWHERE
    many = np.arange(MOST_PAIRS + 1)
    assert companions.assign(np.ones_like(many), many) is None


def table_of(layer):
    return RoutingTable("p", "d", Epoch(1, 1), "op", (), (tuple(map(tuple, layer)),))


def test_the_same_passes_in_the_same_order_are_split_alike_whatever_their_sizes():
    rng = np.random.default_rng(5)
    table = table_of(drawn_layer(rng, 3))
    calls = list(passes(drawn_experts(rng, 300, 0.5), [1, 100, 7]))
    none = frozenset()
    one, two = (
        np.concatenate([routes.assign(0, experts, rows, none, none) for experts, rows in calls])
        for routes in (Routes(table), Routes(table))
    )
    assert (one == two).all()
