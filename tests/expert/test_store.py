"""The store of resident experts: budget, borrowing, dropping while experts are in use."""

import threading

import numpy as np
import pytest

from flexpert_workers.errors import CapacityError
from flexpert_workers.expert.store import ExpertStore, ResidentExpert


def filled(*keys, memory=10):
    store = ExpertStore(num_layers=2, num_experts=8, page_bytes=100, memory_bytes=memory * 100)
    store.reserve(keys)
    for key in keys:
        store.add(key, ResidentExpert(bytearray(100), {}))
    return store


def test_reservations_count_and_what_does_not_fit_reserves_nothing():
    store = filled((0, 0), memory=3)
    assert store.reserve([(0, 0), (0, 1), (0, 1)]) == [(0, 1)]
    with pytest.raises(CapacityError, match="2 experts"):
        store.reserve([(0, 2), (0, 3)])
    assert store.resident_bytes() == 200
    store.release([(0, 1)])
    assert store.reserve([(0, 2), (0, 3)]) == [(0, 2), (0, 3)]


def test_borrowing_is_all_or_nothing():
    store = filled((0, 0), (0, 1))
    assert store.borrow(0, [0, 5, 6]) == ([], (5, 6))
    assert store.in_flight() == 0
    experts, missing = store.borrow(0, [0, 1])
    assert (len(experts), missing, store.in_flight()) == (2, (), 2)


def test_what_is_in_use_is_not_freed_and_comes_back():
    store = filled((0, 0), (0, 1))
    store.borrow(0, [0])
    assert store.drop([(0, 0), (0, 1)], timeout_s=0.01) is None
    assert store.keys() == ((0, 0), (0, 1))
    store.give_back(0, [0])
    assert store.drop([(0, 0), (0, 1)], timeout_s=0.01) == 200
    assert store.resident_bytes() == 0


def test_dropping_waits_for_the_last_user_and_lets_nobody_in_meanwhile():
    store = filled((0, 0))
    store.borrow(0, [0])
    freed = []
    dropper = threading.Thread(target=lambda: freed.append(store.drop([(0, 0)], timeout_s=30)))
    dropper.start()
    while not store.borrow(0, [0])[1]:
        store.give_back(0, [0])  # until the dropper has begun
    store.give_back(0, [0])
    dropper.join()
    assert freed == [100]


def test_tokens_are_counted_per_expert():
    store = filled((1, 3))
    store.count(1, np.array([3, 5]), np.array([7, 1]))
    store.count(1, np.array([3]), np.array([2]))
    assert {index: tokens for index, tokens in enumerate(store.tokens()) if tokens} == {11: 9, 13: 1}
