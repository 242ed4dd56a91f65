"""The queue: one at a time, no hot loop, nothing forgotten."""

import threading

import pytest

from flexpert_operator.backoff import Backoff, backoff_s
from flexpert_operator.work_queue import FIRST_RETRY_S, LONGEST_HOLD_S, LONGEST_RETRY_S, WorkQueue

KEY, OTHER = ("ns", "a"), ("ns", "b")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue:
    return WorkQueue(rate=1.0, burst=3.0, clock=clock)


def due(queue: WorkQueue) -> list[tuple[str, str]]:
    """All that is due now, taken out."""
    found = []
    while len(queue):
        key = queue.get()
        assert key is not None
        found.append(key)
    return found


def test_a_key_stands_in_it_once(queue: WorkQueue) -> None:
    queue.wake(KEY)
    queue.wake(KEY)
    queue.wake(OTHER)
    assert due(queue) == [KEY, OTHER]


def test_what_is_woken_while_it_is_worked_on_comes_again(queue: WorkQueue) -> None:
    queue.wake(KEY)
    assert due(queue) == [KEY]
    queue.wake(KEY)
    assert due(queue) == [], "never by two at once"
    queue.done(KEY, 300.0)
    assert due(queue) == [KEY]


def test_it_comes_back_when_its_time_has_come(queue: WorkQueue, clock: Clock) -> None:
    queue.wake(KEY)
    due(queue)
    queue.done(KEY, 300.0)
    clock.now += 299.0
    assert due(queue) == []
    clock.now += 1.0
    assert due(queue) == [KEY]


def test_a_wake_comes_before_the_timer_and_does_not_double_it(queue: WorkQueue, clock: Clock) -> None:
    queue.wake(KEY)
    due(queue)
    queue.done(KEY, 300.0)
    queue.wake(KEY)
    assert due(queue) == [KEY]
    queue.done(KEY, 300.0)
    clock.now += 301.0
    assert due(queue) == [KEY]


def test_failures_are_tried_again_after_pauses_that_grow(queue: WorkQueue, clock: Clock) -> None:
    queue.wake(KEY)
    pauses = []
    for _ in range(14):
        assert due(queue) == [KEY]
        pauses.append(queue.failed(KEY))
        assert due(queue) == []
        clock.now += pauses[-1] + 1e-6
    assert FIRST_RETRY_S / 2 <= pauses[0] <= FIRST_RETRY_S
    assert LONGEST_RETRY_S / 2 <= pauses[-1] <= LONGEST_RETRY_S
    assert due(queue) == [KEY]
    queue.done(KEY, 300.0)
    queue.wake(KEY)
    due(queue)
    assert queue.failed(KEY) <= FIRST_RETRY_S, "success is forgiving"


def test_a_dispute_is_no_hot_loop(queue: WorkQueue, clock: Clock) -> None:
    worked = 0
    for _ in range(100_000):
        queue.wake(KEY)
        if due(queue):
            worked += 1
            queue.done(KEY, 300.0)
        clock.now += 0.001
    assert worked <= 3 + 100 + 1, "a burst, and then one a second"
    assert worked >= 50


def test_a_dispute_of_one_does_not_hold_another_up(queue: WorkQueue) -> None:
    for _ in range(50):
        queue.wake(KEY)
        if due(queue):
            queue.done(KEY, 300.0)
    queue.wake(OTHER)
    assert due(queue) == [OTHER]


def test_nothing_is_given_out_while_the_api_server_wants_that(queue: WorkQueue, clock: Clock) -> None:
    queue.hold(5.0)
    queue.wake(KEY)
    taken: list[object] = []
    thread = threading.Thread(target=lambda: taken.append(queue.get()))
    thread.start()
    thread.join(0.2)
    assert taken == []
    queue.close()
    thread.join(10)
    assert taken == [None]


def test_an_api_server_that_asks_for_a_day_is_asked_earlier(queue: WorkQueue, clock: Clock) -> None:
    queue.hold(86400.0)
    queue.wake(KEY)
    clock.now += LONGEST_HOLD_S
    assert due(queue) == [KEY]


def test_what_is_gone_is_forgotten(queue: WorkQueue, clock: Clock) -> None:
    for number in range(500):
        key = ("ns", str(number))
        queue.wake(key)
        assert due(queue) == [key]
        queue.forget(key)
    assert not queue._entries
    queue.wake(KEY)
    assert due(queue) == [KEY]
    queue.wake(KEY)
    queue.forget(KEY)
    assert due(queue) == [KEY], "made anew meanwhile"


def test_its_memory_is_bounded(queue: WorkQueue, clock: Clock) -> None:
    for _ in range(10_000):
        queue.wake(KEY)
        if due(queue):
            queue.done(KEY, 300.0)
        clock.now += 1.0
    assert len(queue._heap) < 100


def test_many_threads_never_work_on_one_key_together() -> None:
    queue, working, seen = WorkQueue(rate=1e9, burst=1e9), set(), []
    lock = threading.Lock()

    def work() -> None:
        while (key := queue.get()) is not None:
            with lock:
                assert key not in working
                working.add(key)
            with lock:
                working.discard(key)
                seen.append(key)
            queue.done(key, 300.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(2000):
        queue.wake(("ns", str(number % 5)))
    waiting = threading.Event()
    for _ in range(1000):
        if not len(queue) and not any(entry.working for entry in queue._entries.values()):
            break
        waiting.wait(0.02)
    queue.close()
    for thread in threads:
        thread.join(30)
    assert {name for _, name in seen} == set("01234")


def test_pauses_differ_from_process_to_process() -> None:
    assert len({backoff_s(3, 1.0, 60.0) for _ in range(20)}) > 1
    backoff = Backoff(1.0, 4.0)
    assert [round(backoff.next() + 0.5) >= 1 for _ in range(3)] == [True] * 3
    assert backoff_s(10_000, 1.0, 60.0) <= 60.0
