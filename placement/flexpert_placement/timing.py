"""How much of its time a solve has used; every stage of the solver asks."""

from collections.abc import Callable


class Timer:
    """Counts a time limit down, and ends at once when the caller wants to stop."""

    def __init__(self, limit_s: float, clock: Callable[[], float], cancelled: Callable[[], bool]) -> None:
        """Begins now; `clock`: seconds that never go back."""
        self._limit_s, self._clock, self._cancelled = limit_s, clock, cancelled
        self._started = clock()

    def __call__(self, fraction: float = 1.0) -> bool:
        """Whether this fraction of the time has passed, or all is to stop."""
        return self._cancelled() or self.seconds() > self._limit_s * fraction

    def seconds(self) -> float:
        """Since the beginning."""
        return self._clock() - self._started

    def seconds_left(self) -> float:
        """Until the limit."""
        return self._limit_s - self.seconds()

    def spent(self) -> float:
        """The fraction of the time that has passed."""
        return self.seconds() / self._limit_s if self._limit_s > 0 else 1.0
