"""Turns of the compute thread: short things that it alone may do, done between two dispatches.

The control and the preparing thread hand them in (mapping a page, unmapping one, flipping the slot table); the dispatch
server's loop takes them. So nothing is ever unmapped that somebody computes from, without a lock on the way of a token.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator


class _Turn:
    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act
        self.done = threading.Event()
        self.seconds = 0.0
        self.error: Exception | None = None

    def take(self) -> None:
        started = time.perf_counter()
        try:
            self.act()
        except Exception as error:  # noqa: BLE001  raised where the turn was handed in
            self.error = error
        self.seconds = time.perf_counter() - started


class ComputeTurns:
    """A queue of turns; while no thread computes they are taken at once, by whoever hands them in."""

    def __init__(self) -> None:
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._waiting: deque[_Turn] = deque()
        self._computing = False

    def fileno(self) -> int:
        """Readable when a turn waits."""
        return self._bell

    def run(self, act: Callable[[], None], timeout_s: float | None = None) -> float:
        """Have the compute thread do something, and wait for it; `act` hands nothing in itself.

        Returns:
            Seconds that it took, which is how long the compute thread stood still for it.

        Raises:
            TimeoutError: The thread has not come to it within `timeout_s`; it will not do it.
        """
        turn = _Turn(act)
        with self._lock:
            if self._computing:
                self._waiting.append(turn)
                os.eventfd_write(self._bell, 1)
            else:
                turn.take()
                turn.done.set()
        if not turn.done.wait(timeout_s) and self._withdraw(turn):
            raise TimeoutError("the compute thread is busy")
        turn.done.wait()
        if turn.error is not None:
            raise turn.error
        return turn.seconds

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """For the compute thread: from now on turns wait for `take`, until the context ends."""
        with self._lock:
            self._computing = True
        try:
            yield
        finally:
            with self._lock:
                self._computing = False
            self.take()

    def take(self) -> None:
        """For the compute thread: take every turn that waits."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        while True:
            with self._lock:
                if not self._waiting:
                    return
                turn = self._waiting.popleft()
            turn.take()
            turn.done.set()

    def close(self) -> None:
        """Close the bell; turns are taken at once from now on."""
        os.close(self._bell)

    def _withdraw(self, turn: _Turn) -> bool:
        """Take a turn back that has not begun; whether it has not."""
        with self._lock:
            if turn not in self._waiting:
                return False
            self._waiting.remove(turn)
            return True
