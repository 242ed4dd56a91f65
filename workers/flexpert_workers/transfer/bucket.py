"""The rate at which pages are copied: a token bucket that leaves the machine to serving when serving is busy."""

import threading
import time
from collections.abc import Callable


class TokenBucket:
    """Lets bytes through at a rate that shrinks while serving is busy. Safe for several threads.

    The rate is `rate_bytes_per_s * max(least_share, 1 - busy())`: copies yield, but never starve.

    Args:
        rate_bytes_per_s: With serving idle; None for no limit at all.
        burst_bytes: How much may go at once after a pause. More than that at a time goes too, and is paid for after.
        busy: How busy serving is, from 0 (idle) to 1; asked at every `take`.
        least_share: Of the rate, which copies get however busy serving is.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        rate_bytes_per_s: float | None,
        burst_bytes: int = 4 << 20,
        busy: Callable[[], float] = lambda: 0.0,
        least_share: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if rate_bytes_per_s is not None and rate_bytes_per_s <= 0:
            raise ValueError(f"a rate of {rate_bytes_per_s} bytes/s lets nothing through: give a positive one, or None")
        if burst_bytes <= 0 or not 0 < least_share <= 1:
            raise ValueError("the burst must be positive and the least share in (0, 1]")
        self._rate = rate_bytes_per_s
        self._burst = float(burst_bytes)
        self._busy = busy
        self._least_share = least_share
        self._clock = clock
        self._tokens = self._burst
        self._filled_at = clock()
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> float:
        """Take `num_bytes` and return 0.0, or take nothing and return the seconds after which to ask again."""
        if self._rate is None:
            return 0.0
        rate = self._rate * max(self._least_share, 1.0 - min(1.0, max(0.0, self._busy())))
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * rate)
            self._filled_at = now
            lacking = min(float(num_bytes), self._burst) - self._tokens
            if lacking >= 1:  # less than a byte is an error of rounding
                return lacking / rate
            self._tokens -= num_bytes
            return 0.0
