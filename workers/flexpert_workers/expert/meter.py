"""What a worker measures of itself: the compute thread counts, the control thread reads."""

import time
from collections.abc import Callable

from flexpert_proto.measuring import Figures, Recorder
from flexpert_proto.metrics import WORKER
from flexpert_workers.expert.busyness import BusyMeter


class WorkerMeter:
    """Counts for one worker; the one computing thread alone counts, and takes no lock.

    Args:
        busy: Of the computing thread.
        clock: Monotonic seconds.
    """

    def __init__(self, busy: BusyMeter, clock: Callable[[], float] = time.monotonic) -> None:
        self._busy = busy
        self._clock = clock
        self._began = clock()
        self._recorder = Recorder(WORKER)
        self._service = self._recorder.buckets["worker_service_seconds"]
        self._rows = self._recorder.buckets["worker_rows"]
        self._pairs = self._refusals = 0

    def computed(self, rows: int, pairs: int, seconds: float) -> None:
        """A dispatch of so many rows and (row, expert) pairs was computed."""
        self._pairs += pairs
        self._rows.observe(rows, seconds)
        self._service.observe(seconds)

    def refused(self) -> None:
        """A dispatch was not computed."""
        self._refusals += 1

    def read(self) -> Figures:
        """The figures now."""
        counters = {
            "worker_busy_seconds": self._busy.total_s,
            "worker_up_seconds": self._clock() - self._began,
            "worker_pairs": float(self._pairs),
            "worker_refusals": float(self._refusals),
        }
        return self._recorder.read({}, counters)
