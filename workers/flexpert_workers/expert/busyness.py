"""How busy serving is: the share of time that a worker's compute thread computes. Its page owner makes way for it."""

import threading
import time
from collections.abc import Callable

_INTERVAL_S = 0.1


class BusyMeter:
    """Measures one thread's share of busy time, over intervals of a tenth of a second or more."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._busy_s = 0.0
        self._counted_s = 0.0
        self._since = clock()
        self._share = 0.0
        self._lock = threading.Lock()

    def note(self, seconds: float) -> None:
        """Add busy time; the one busy thread alone calls it, and takes no lock."""
        self._busy_s += seconds

    @property
    def total_s(self) -> float:
        """Busy time since the start. For any thread."""
        return self._busy_s

    def share(self) -> float:
        """From 0 (idle) to 1, over the last interval. For any thread."""
        with self._lock:
            now, busy_s = self._clock(), self._busy_s
            elapsed = now - self._since
            if elapsed >= _INTERVAL_S:
                self._share = min(1.0, (busy_s - self._counted_s) / elapsed)
                self._since, self._counted_s = now, busy_s
            return self._share
