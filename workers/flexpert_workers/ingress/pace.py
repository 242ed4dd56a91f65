"""How long a new request would wait, by how fast the queue moved of late. Used by `fleet.py`."""

from collections import deque
from collections.abc import Callable

REMEMBERED = 32
LEAST_REMEMBERED = 4
SHORTEST_S = 0.1
LONGEST_S = 30.0


class Pace:
    """The time between grants while others wait."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._between_s: deque[float] = deque(maxlen=REMEMBERED)
        self._last: float | None = None

    def granted(self, num_left: int) -> None:
        """A request was given to an engine. While others wait, it counts how long the next one takes."""
        now = self._clock()
        if self._last is not None:
            self._between_s.append(now - self._last)
        self._last = now if num_left else None

    def wait_s(self, num_ahead: int) -> float | None:
        """Seconds until a request behind `num_ahead` others is given to an engine; None where that is not known."""
        if not num_ahead:
            return 0.0
        if len(self._between_s) < LEAST_REMEMBERED:
            return None
        mean_s = sum(self._between_s) / len(self._between_s)
        # While nothing moves the wait since the last grant tells more than what was before it.
        stuck_s = 0.0 if self._last is None else self._clock() - self._last
        return max(mean_s, stuck_s / (len(self._between_s) + 1)) * num_ahead


def bounded(wait_s: float | None) -> float:
    """A wait to tell a client."""
    return min(LONGEST_S, max(SHORTEST_S, 1.0 if wait_s is None else wait_s))
