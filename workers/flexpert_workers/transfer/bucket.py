"""The rate at which pages are copied: a token bucket that leaves the machine to serving when serving is busy."""

import threading
import time
from collections.abc import Callable

_LEAST_PAUSE_S = 0.001


class TokenBucket:
    """Lets bytes through at a rate that shrinks while serving is busy. Safe for several threads.

    Copies get the share `max(least_share, 1 - busy())`: they yield, but never starve. With a rate it is a share of the
    rate; without one it is a share of the time, so that what was `worked` is followed by a pause in proportion.

    Args:
        rate_bytes_per_s: With serving idle; None for as fast as they go.
        burst_bytes: How much may go at once after a pause. More than that at a time goes too, and is paid for after.
        busy: How busy serving is, from 0 (idle) to 1; asked at every `take`.
        least_share: Which copies get however busy serving is.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        rate_bytes_per_s: float | None,
        burst_bytes: int = 4 << 20,
        busy: Callable[[], float] = lambda: 0.0,
        least_share: float = 0.25,
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
        self._owed_s = 0.0
        self._paused_until = self._filled_at
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> float:
        """Take `num_bytes` and return 0.0, or take nothing and return the seconds after which to ask again."""
        share = self._share()
        with self._lock:
            now = self._clock()
            return self._pause(now) if self._rate is None else self._take(num_bytes, self._rate * share, now)

    def worked(self, seconds: float) -> None:
        """Tell what time it took to handle bytes that were taken, waiting for others not counted."""
        share = self._share()
        with self._lock:
            self._owed_s += seconds * (1 / share - 1)

    def _share(self) -> float:
        return max(self._least_share, 1.0 - min(1.0, max(0.0, self._busy())))

    def _take(self, num_bytes: int, rate: float, now: float) -> float:
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * rate)
        self._filled_at = now
        lacking = min(float(num_bytes), self._burst) - self._tokens
        if lacking >= 1:  # less than a byte is an error of rounding
            return lacking / rate
        self._tokens -= num_bytes
        return 0.0

    def _pause(self, now: float) -> float:
        if self._owed_s >= _LEAST_PAUSE_S and now >= self._paused_until:
            self._paused_until = now + self._owed_s
            self._owed_s = 0.0
        return max(0.0, self._paused_until - now)
