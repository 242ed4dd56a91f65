"""How busy the workers of a domain are with serving, as they last told their page owner; its copies make way."""

import threading
import time
from collections.abc import Callable

_STALE_S = 3.0
"""A borrower that is busy says so more often; one that hangs is not waited for."""


class ServingLoad:
    """What borrowers told. Safe for several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def note(self, borrower: str, share: float) -> None:
        """A borrower says how busy it is, from 0 to 1."""
        with self._lock:
            self._told[borrower] = share, self._clock()

    def end(self, borrower: str) -> None:
        """A borrower is gone."""
        with self._lock:
            self._told.pop(borrower, None)

    def busy(self) -> float:
        """How busy the busiest borrower is."""
        with self._lock:
            fresh = self._clock() - _STALE_S
            return max((share for share, told_at in self._told.values() if told_at >= fresh), default=0.0)
