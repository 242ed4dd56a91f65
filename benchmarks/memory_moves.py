"""For `bench_memory`: how long a move makes the compute thread stand still, and what populating costs beside it.

A worker's own store, arena and turns, with a thread that does what a worker's compute thread does: it reads an expert's
weights before each turn. A turn always finds the caches as computing leaves them, whatever the size of what is moved.
"""

import select
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from flexpert_workers.checkpoint.layout import make_layout
from flexpert_workers.expert.store import ExpertStore
from flexpert_workers.expert.turns import ComputeTurns
from flexpert_workers.memory.host import HostBackend
from flexpert_workers.memory.loans import Loan, Origin

MIB = 1 << 20
SIZES_MIB = (1, 4, 16, 64)
MOVES = 40
WEIGHTS_BYTES = 16 * MIB
"""What the compute thread reads before a turn: more than a core's caches hold."""


class TimedTurns(ComputeTurns):
    """Counts the seconds of the turns that the compute thread took."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def run(self, act: Callable[[], None], timeout_s: float | None = None) -> float:
        taken = super().run(act, timeout_s)
        self.seconds += taken
        return taken


@contextmanager
def computing(turns: ComputeTurns) -> Iterator[None]:
    """A thread that takes turns when the bell rings, as a dispatch server's loop does."""
    ended = threading.Event()
    ready = threading.Event()
    weights = np.ones(WEIGHTS_BYTES // 4, dtype=np.float32)

    def loop() -> None:
        with turns.computing():
            ready.set()
            while not ended.is_set():
                if select.select([turns.fileno()], [], [], 0.1)[0]:
                    weights.sum()
                    turns.take()

    thread = threading.Thread(target=loop)
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def measure_moves(size_mib: int) -> dict[str, Any]:
    """Move an expert of this size again and again: bring one, flip, drop the other. Medians over the moves."""
    backend = HostBackend()
    layout = make_layout([("weights", (size_mib * MIB // 2,))], "BFloat16")
    arena = backend.reserve(3, layout.page_bytes)
    turns = TimedTurns()
    store = ExpertStore(1, 2, layout, arena, turns, lambda _: None, lambda _: None)
    loans = [_loan(backend, index, layout.page_bytes) for index in range(2)]
    stopped: list[float] = []
    populated: list[float] = []
    with computing(turns):
        for move in range(MOVES + 2):
            new, old = loans[move % 2], loans[1 - move % 2]
            turns.seconds = 0.0
            store.reserve([new.key])
            populate_s = store.hold(new).populate
            store.flip(10.0)
            store.drop([old.key], 10.0)
            stopped.append(turns.seconds)
            populated.append(populate_s)
    for loan in loans:
        loan.page.close()
    arena.close()
    turns.close()
    return {
        "measure": "move",
        "size_mib": size_mib,
        "flip_us": statistics.median(stopped[2:]) * 1e6,
        "flip_us_longest": max(stopped[2:]) * 1e6,
        "populate_us_per_mib": statistics.median(populated[2:]) * 1e6 / size_mib,
        "moves": MOVES,
    }


def _loan(backend: HostBackend, index: int, nbytes: int) -> Loan:
    page = backend.create(nbytes)
    checksum = page.fill(lambda target: None)
    return Loan((0, index), page.seal(), checksum, Origin.ATTACHED)
