"""How pairs are assigned to replicas, and how an engine holds tables."""

import threading

import numpy as np
import pytest

from flexpert_workers.dispatch.routes import NOWHERE, LayerRoutes
from flexpert_workers.dispatch.tables import TableHolder
from flexpert_workers.routing import Epoch, Replica, RoutingTable


def routes_of(*rows):
    return LayerRoutes.of([[Replica(*replica) for replica in row] for row in rows])


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.25, 0.75), (0.9, 0.1), (0.2, 0.3, 0.5)])
@pytest.mark.parametrize("per_call", [1, 3, 64])
def test_shares_are_honoured_however_few_pairs_come_at_a_time(shares, per_call):
    routes = routes_of(tuple(enumerate(shares)))
    seen = np.zeros(1, dtype=np.int64)
    assigned = np.concatenate([routes.assign(np.zeros(per_call, dtype=np.int64), seen) for _ in range(960 // per_call)])
    fractions = np.bincount(assigned, minlength=len(shares)) / len(assigned)
    assert np.abs(fractions - shares).max() < 0.01


def test_assignment_is_deterministic_and_mixed_experts_keep_their_own_sequences():
    rows = [((0, 0.5), (1, 0.5)), ((2, 1.0),), ((1, 0.3), (2, 0.7))]
    experts = np.random.default_rng(0).integers(0, 3, 500)
    seen_one, seen_two = (np.zeros(3, dtype=np.int64) for _ in range(2))
    one = routes_of(*rows).assign(experts, seen_one)
    two = np.concatenate([routes_of(*rows).assign(part, seen_two) for part in np.array_split(experts, 17)])
    assert (one == two).all()
    assert (seen_one == np.bincount(experts)).all()
    assert (one[experts == 1] == 2).all()
    assert set(one[experts == 2]) == {1, 2}


def test_an_expert_without_replica_goes_nowhere():
    routes = routes_of((), ((0, 1.0),))
    assert routes.assign(np.array([0, 1, 0]), np.zeros(2, dtype=np.int64)).tolist() == [NOWHERE, 0, NOWHERE]


def test_shares_of_the_replicas_that_are_left_are_scaled():
    routes = routes_of(((3, 0.1), (4, 0.1)), ((5, 0.0), (6, 0.0)))
    assigned = routes.assign(np.repeat([0, 1], 100), np.zeros(2, dtype=np.int64))
    assert np.bincount(assigned)[3:].tolist() == pytest.approx([50, 50, 50, 50], abs=2)


def table(term, sequence):
    return RoutingTable("p", "d", Epoch(term, sequence), "op", (), ())


def test_only_newer_tables_are_kept():
    tables = TableHolder()
    assert tables.current() is None
    assert tables.publish(table(1, 5))
    assert not tables.publish(table(1, 5))
    assert not tables.publish(table(1, 4))
    assert tables.publish(table(2, 1))
    assert not tables.publish(table(1, 9))
    assert tables.current().epoch == Epoch(2, 1)


def test_waiting_for_a_newer_table():
    tables = TableHolder()
    tables.publish(table(1, 1))
    assert tables.wait_newer(Epoch(1, 1), 0.01) is None
    assert tables.wait_newer(Epoch(1, 0), 0.01).epoch == Epoch(1, 1)
    publisher = threading.Timer(0.05, tables.publish, [table(1, 2)])
    publisher.start()
    assert tables.wait_newer(Epoch(1, 1), 20).epoch == Epoch(1, 2)
    publisher.join()
