"""The store of resident experts: its budget, slots and views, and what happens beside a thread that computes."""

import threading
import time

import numpy as np
import pytest

from flexpert_workers.checkpoint.layout import make_layout
from flexpert_workers.errors import CapacityError, PageError
from flexpert_workers.expert.store import ExpertStore
from flexpert_workers.expert.turns import ComputeTurns
from flexpert_workers.memory.host import HostBackend
from flexpert_workers.memory.loans import Loan, Origin

LAYOUT = make_layout([("up", (8, 300)), ("down", (300, 8))], "Float32")
BACKEND = HostBackend()


class Harness:
    """A store, its turns, and the pages that it was lent."""

    def __init__(self, capacity):
        self.turns = ComputeTurns()
        self.arena = BACKEND.reserve(capacity + 1, LAYOUT.page_bytes)
        self.lent = {}
        self.tried = []
        self.store = ExpertStore(2, 8, LAYOUT, self.arena, self.turns, self.release, self.try_out)

    def try_out(self, expert):
        self.tried.append(float(expert.tensors["up"][0, 0]))
        if not expert.tensors["up"].isfinite().all():
            raise PageError("no number")

    def loan(self, key, value=None):
        """A page that is `value` throughout."""
        page = BACKEND.create(LAYOUT.page_bytes)
        data = np.full(LAYOUT.page_bytes // 4, 10 * key[0] + key[1] if value is None else value, np.float32)
        checksum = page.fill(lambda target: target.__setitem__(slice(None), data.tobytes()))
        self.lent[key] = Loan(key, page.seal(), checksum, Origin.FILE)
        return self.lent[key]

    def hold(self, *keys):
        for key in self.store.reserve(keys):
            self.store.hold(self.loan(key))

    def release(self, keys):
        for key in keys:
            self.lent.pop(key).page.close()

    def values(self, layer, *indices):
        """What experts look like to a dispatch, or the indices that are missing."""
        experts, missing = self.store.borrow(layer, np.array(indices, dtype=np.int64))
        self.store.give_back()
        for expert in experts:
            assert {name: tuple(view.shape) for name, view in expert.tensors.items()} == {
                "up": (8, 300),
                "down": (300, 8),
            }
            assert (expert.tensors["up"] == expert.tensors["down"][0, 0]).all()
        return missing or tuple(int(expert.tensors["down"][0, 0]) for expert in experts)

    def close(self):
        self.release(list(self.lent))
        self.arena.close()
        self.turns.close()


@pytest.fixture
def make():
    made = []

    def one(capacity=10):
        made.append(Harness(capacity))
        return made[-1]

    yield one
    for harness in made:
        harness.close()


def test_reservations_count_and_what_does_not_fit_reserves_nothing(make):
    harness = make(capacity=3)
    store = harness.store
    harness.hold((0, 0))
    assert store.reserve([(0, 0), (0, 1), (0, 1)]) == [(0, 1)]
    with pytest.raises(CapacityError, match="2 experts"):
        store.reserve([(0, 2), (0, 3)])
    assert store.resident_bytes() == 2 * LAYOUT.page_bytes
    store.unreserve([(0, 1)])
    assert store.reserve([(0, 2), (0, 3)]) == [(0, 2), (0, 3)]


def test_borrowing_is_all_or_nothing(make):
    harness = make()
    harness.hold((0, 0), (0, 1))
    indices = np.array([0, 5, 6])
    assert harness.store.borrow(0, indices) == ([], (5, 6))
    assert harness.store.in_flight() == 0
    experts, missing = harness.store.borrow(0, indices[:1])
    assert (len(experts), missing, harness.store.in_flight()) == (1, (), 1)
    assert harness.store.borrow(1, np.array([], dtype=np.int64)) == ([], ())


def test_what_is_held_is_seen_after_a_flip_or_when_it_is_asked_for(make):
    harness = make()
    harness.hold((0, 3), (1, 4))
    harness.store.flip(1.0)
    assert harness.values(0, 3) == (3,)
    harness.hold((1, 5))
    assert harness.values(1, 4, 5) == (14, 15)
    assert harness.values(1, 4, 6) == (6,)


def test_an_expert_is_tried_out_before_anybody_sees_it_and_one_of_no_use_leaves_nothing(make):
    harness = make(capacity=2)
    harness.hold((0, 3))
    assert harness.tried == [3]
    harness.store.reserve([(1, 4)])
    with pytest.raises(PageError, match="layer 1 expert 4: no number"):
        harness.store.hold(harness.loan((1, 4), np.inf))
    harness.store.unreserve([(1, 4)])
    assert harness.store.borrow(1, np.array([4])) == ([], (4,))
    assert harness.store.keys() == ((0, 3),)
    assert len(harness.store._free) == 2


def test_a_slot_is_used_again_and_its_views_keep_their_address(make):
    harness = make(capacity=1)
    addresses = set()
    for index in range(8):
        harness.hold((0, index))
        assert harness.values(0, index) == (index,)
        experts, _ = harness.store.borrow(0, np.array([index]))
        addresses.add(experts[0].tensors["up"].data_ptr())
        harness.store.give_back()
        assert harness.store.drop([(0, index)], timeout_s=60.0) == LAYOUT.page_bytes
        assert harness.store.borrow(0, np.array([index])) == ([], (index,))
    assert len(addresses) <= 2
    assert harness.lent == {}


def test_what_is_dropped_is_missing_at_once_and_given_back_to_its_owner(make):
    harness = make()
    harness.hold((0, 0), (0, 1))
    harness.store.flip(1.0)
    assert harness.store.drop([(0, 0), (0, 7)], timeout_s=60.0) == LAYOUT.page_bytes
    assert harness.store.borrow(0, np.array([0, 1])) == ([], (0,))
    assert set(harness.lent) == {(0, 1)}
    assert harness.store.keys() == ((0, 1),)


class Computing:
    """A thread that computes, in steps that the test takes."""

    def __init__(self, turns):
        self.go, self.busy = threading.Semaphore(0), threading.Event()
        self._turns = turns
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self.busy.wait(30)

    def _run(self):
        with self._turns.computing():
            while not self._ended:
                self.busy.set()
                self.go.acquire()
                self._turns.take()

    def end(self):
        self._ended = True
        self.go.release()
        self._thread.join()


def test_nothing_is_dropped_while_a_dispatch_computes_and_it_comes_back(make):
    harness = make()
    harness.hold((0, 0), (0, 1))
    computing = Computing(harness.turns)
    assert harness.store.drop([(0, 0), (0, 1)], timeout_s=0.01) is None
    assert harness.store.keys() == ((0, 0), (0, 1))
    computing.end()
    assert harness.values(0, 0, 1) == (0, 1)
    assert harness.store.drop([(0, 0), (0, 1)], timeout_s=60.0) == 2 * LAYOUT.page_bytes
    assert harness.store.resident_bytes() == 0


def test_turns_are_taken_by_the_computing_thread_between_two_dispatches(make):
    turns = make().turns
    computing = Computing(turns)
    taken = []

    def hand_in():
        turns.run(lambda: taken.append(threading.current_thread()))

    other = threading.Thread(target=hand_in)
    other.start()
    while not turns._waiting:
        time.sleep(0.001)
    assert taken == []
    computing.go.release()
    other.join()
    assert taken == [computing._thread]
    computing.end()
    hand_in()
    assert taken[1] is threading.current_thread()


def test_what_goes_wrong_in_a_turn_is_raised_where_it_was_handed_in(make):
    with pytest.raises(ZeroDivisionError):
        make().turns.run(lambda: 1 / 0)


def test_two_hundred_moves_leave_no_slot_and_no_page_behind(make):
    harness = make(capacity=4)
    harness.hold((1, 0), (1, 1))
    for number in range(200):
        key = (0, number % 8)
        harness.hold(key)
        assert harness.values(*key) == (key[1],)
        assert harness.store.drop([key], 1.0) == LAYOUT.page_bytes
    assert set(harness.lent) == {(1, 0), (1, 1)}
    assert len(harness.store._free) == 3
    assert harness.values(1, 0, 1) == (10, 11)


def test_tokens_are_counted_per_expert(make):
    store = make().store
    store.count(1, np.array([3, 5]), np.array([7, 1]))
    store.count(1, np.array([3]), np.array([2]))
    assert {index: tokens for index, tokens in enumerate(store.tokens()) if tokens} == {11: 9, 13: 1}
