"""Tokens per expert, added up over workers that are alive or gone, and how even they are. Kept by the fleet."""

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
_WINDOW_S = 30.0


class LoadLedger:
    """What each worker has last told; the counts of a worker that died stay in the sum.

    Attributes:
        since: Seconds since the Unix epoch at which counting began.
    """

    def __init__(self, since: float) -> None:
        self.since = since
        self._told: dict[str, IntArray] = {}
        self._before: dict[str, IntArray] = {}

    def note(self, worker: str, tokens: Sequence[int], adopted: bool) -> None:
        """Take a worker's counts since it started; of one that an earlier controller started, only what is added."""
        told = np.array(tokens, dtype=np.int64)
        if adopted and worker not in self._before:
            self._before[worker] = told
        self._told[worker] = told

    def total(self, num_experts: int) -> tuple[int, ...]:
        """Tokens per expert since `since`, packed layer * experts + index, `num_experts` of them."""
        return tuple(self.counts(num_experts).tolist())

    def counts(self, num_experts: int) -> IntArray:
        """`total` as an array of its own."""
        sums = np.zeros(num_experts, dtype=np.int64)
        for worker, told in self._told.items():
            sums[: len(told)] += told - self._before.get(worker, 0)
        return sums


class LayerBalance:
    """How unevenly the work of each MoE layer was spread over workers, in the last half to whole minute.

    With a worker's first tokens it begins anew: what the others did before it served says nothing of how it is now.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turned_at = clock()
        self._now: dict[str, IntArray] = {}
        self._middle: dict[str, IntArray] = {}
        self._before: dict[str, IntArray] = {}

    def note(self, worker: str, tokens: Sequence[int]) -> None:
        """Take a worker's tokens per expert since it started."""
        counts = np.array(tokens, dtype=np.int64)
        self._before.setdefault(worker, counts)
        if counts.any() and not np.any(self._now.get(worker, 0)):
            self._before, self._middle = {**self._now, worker: counts}, {}
            self._turned_at = self._clock()
        elif self._clock() - self._turned_at >= _WINDOW_S:
            self._before, self._middle = {**self._before, **self._middle}, dict(self._now)
            self._turned_at = self._clock()
        self._now[worker] = counts

    def imbalance(self, workers: Iterable[str], layers: int) -> tuple[float, ...]:
        """[layers] tokens of the busiest of `workers` over their average; 1 where nothing was computed."""
        known = [worker for worker in workers if worker in self._now]
        if not known:
            return (1.0,) * layers
        counts = [(self._now[one] - self._before[one]).reshape(layers, -1).sum(axis=1) for one in known]
        busiest, mean = np.max(counts, axis=0), np.mean(counts, axis=0)
        return tuple(np.divide(busiest, mean, out=np.ones(layers), where=mean > 0).tolist())

    def forget(self, worker: str) -> None:
        """A worker is gone."""
        for known in (self._now, self._middle, self._before):
            known.pop(worker, None)
