"""Exponential back-off with jitter, for whoever tries again: `informers`, `work_queue`, `pool_feed`."""

import random


class Backoff:
    """Pauses that double up to a longest one; each is drawn between half of it and all of it.

    Args:
        first_s: The first pause.
        longest_s: None is longer.
    """

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._failures = 0

    def next(self) -> float:
        """The pause before the next attempt, after one more failure."""
        pause = backoff_s(self._failures, self._first_s, self._longest_s)
        self._failures += 1
        return pause

    def reset(self) -> None:
        """It worked."""
        self._failures = 0


def backoff_s(failures: int, first_s: float, longest_s: float) -> float:
    """The pause after so many earlier failures."""
    pause: float = min(first_s * 2.0 ** min(failures, 62), longest_s)
    return pause * random.uniform(0.5, 1.0)
