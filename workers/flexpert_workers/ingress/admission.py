"""Bounds the streams open at once, and predicts when the next one will end. Used by `intake.py`."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flexpert_workers.errors import Overloaded

REMEMBERED_ENDS = 32
SHORTEST_RETRY_S = 0.1
LONGEST_RETRY_S = 30.0


class Admission:
    """Lets in at most `max_streams` streams.

    Attributes:
        num_open: Streams let in that have not ended.
    """

    def __init__(self, max_streams: int, clock: Callable[[], float]) -> None:
        self._max_streams = max_streams
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=REMEMBERED_ENDS)
        self.num_open = 0

    @contextmanager
    def slot(self, num_streams: int = 1) -> Iterator[None]:
        """Hold a place for each stream while they are open.

        Raises:
            Overloaded: There are not so many places left.
        """
        if self.num_open + num_streams > self._max_streams:
            raise Overloaded(f"{self.num_open} of {self._max_streams} streams are open", self.retry_after_s())
        self.num_open += num_streams
        try:
            yield
        finally:
            self.num_open -= num_streams
            self._ends.append(self._clock())

    def retry_after_s(self) -> float:
        """Seconds until a place should be free: the mean time between the ends of the last streams."""
        if len(self._ends) < 2:
            return 1.0
        between_s = (self._clock() - self._ends[0]) / len(self._ends)
        return min(LONGEST_RETRY_S, max(SHORTEST_RETRY_S, between_s))
