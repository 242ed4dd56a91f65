"""Threads that work beside those that serve."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

from flexpert_workers import threads


def niceness():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_a_thread_that_yields_to_serving_alone_becomes_nicer():
    before = niceness()
    with ThreadPoolExecutor(1, initializer=threads.yield_to_serving) as pool:
        assert pool.submit(niceness).result() == max(before, 10)
    assert niceness() == before


def test_a_thread_that_is_nicer_already_stays_so():
    def twice():
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        threads.yield_to_serving()
        return niceness()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(twice).result() == 19
