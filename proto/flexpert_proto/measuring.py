"""Counting what happens, and the frozen figures that come of it: added up over processes, differenced over time.

Engines, workers and ingresses keep a `Recorder`; its `Figures` go to the pool controller, which adds them up, and from
there (`Pool.figures`) to the autoscaling, `flexpert top` and the page. Everything but gauges only ever grows as long as
the incarnation is the same; another incarnation begins at nothing, so a reset can be seen and never has to be guessed.
"""

import math
import secrets
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping

import msgspec

from flexpert_proto import pool_pb2
from flexpert_proto.metrics import Kind, Metric


class Histogram(msgspec.Struct, frozen=True):
    """Observations by bucket.

    Attributes:
        bounds: Ascending; a bucket holds what is at most its bound and more than the bound before.
        counts: One more than bounds: the last bucket has no bound.
        total: Sum of all observations.
        seconds: Spent on the observations of each bucket, where that is measured; else empty.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float = 0.0
    seconds: tuple[float, ...] = ()

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """NaN where nothing was observed."""
        return self.total / self.count if self.count else math.nan

    def plus(self, other: "Histogram") -> "Histogram":
        """Both together, by these buckets."""
        return self._combined(other, 1)

    def minus(self, earlier: "Histogram") -> "Histogram":
        """What was observed since the same process had `earlier`; all of it where that cannot have been."""
        later = self._combined(earlier, -1)
        return later if min(later.counts, default=0) >= 0 else self

    def quantile(self, part: float) -> float:
        """The value that `part` of the observations do not exceed; evenly spread within a bucket, as Prometheus has it.

        NaN where nothing was observed. What lies beyond the last bound is told as that bound.
        """
        wanted, below, lower = part * self.count, 0, 0.0
        if not self.count:
            return math.nan
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= wanted:
                return lower + (bound - lower) * max(wanted - below, 0.0) / count
            below, lower = below + count, bound
        return self.bounds[-1]

    def share_within(self, limit: float) -> float:
        """Part of the observations that are at most `limit`; NaN where nothing was observed."""
        within, lower = 0.0, 0.0
        if not self.count:
            return math.nan
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if bound > limit:
                within += count * max(limit - lower, 0.0) / (bound - lower)
                break
            within, lower = within + count, bound
        return within / self.count

    def _combined(self, other: "Histogram", sign: int) -> "Histogram":
        counts, seconds = list(self.counts), list(self.seconds)
        for number, count in enumerate(other.counts):
            place = self._place(other, number)
            counts[place] += sign * count
            if seconds and other.seconds:
                seconds[place] += sign * other.seconds[number]
        return Histogram(self.bounds, tuple(counts), self.total + sign * other.total, tuple(seconds))

    def _place(self, other: "Histogram", number: int) -> int:
        """Which of these buckets one of another histogram's belongs to."""
        if self.bounds == other.bounds:
            return number
        return bisect_left(self.bounds, other.bounds[number]) if number < len(other.bounds) else len(self.bounds)


class Figures(msgspec.Struct, frozen=True):
    """What a process, or all of them together, measured from `since` to `at`, seconds since the Unix epoch.

    Attributes:
        incarnation: Of whoever counted; another one began at nothing.
    """

    incarnation: str
    since: float
    at: float
    counters: dict[str, float] = {}
    gauges: dict[str, float] = {}
    histograms: dict[str, Histogram] = {}

    def counter(self, name: str) -> float:
        """A counter's value, 0 where nothing was counted."""
        return self.counters.get(name, 0.0)

    def gauge(self, name: str) -> float:
        """A gauge's value, 0 where nobody tells it."""
        return self.gauges.get(name, 0.0)

    def histogram(self, name: str) -> Histogram:
        """A histogram, empty where nothing was observed."""
        return self.histograms.get(name) or Histogram((), (0,))

    def minus(self, earlier: "Figures | None") -> "Figures":
        """What was counted since `earlier`, with the gauges of now; everything if another incarnation told that."""
        if earlier is None or earlier.incarnation != self.incarnation:
            return self
        if any(value < earlier.counter(name) for name, value in self.counters.items()):
            return self
        counters = {name: value - earlier.counter(name) for name, value in self.counters.items()}
        histograms = {
            name: one.minus(earlier.histograms[name]) if name in earlier.histograms else one
            for name, one in self.histograms.items()
        }
        return Figures(self.incarnation, earlier.at, self.at, counters, self.gauges, histograms)


class Buckets:
    """A histogram while it is counted. One thread observes, any may read."""

    __slots__ = ("_bounds", "_counts", "_seconds", "_total")

    def __init__(self, bounds: tuple[float, ...], by_size: bool = False) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._seconds = [0.0] * (len(bounds) + 1) if by_size else []
        self._total = 0.0

    def observe(self, value: float, seconds: float = 0.0) -> None:
        """Count an observation, and the seconds that were spent on it."""
        place = bisect_left(self._bounds, value)
        self._counts[place] += 1
        self._total += value
        if self._seconds:
            self._seconds[place] += seconds

    @property
    def total(self) -> float:
        """Sum of all observations."""
        return self._total

    def read(self) -> Histogram:
        """What was observed so far."""
        return Histogram(self._bounds, tuple(self._counts), self._total, tuple(self._seconds))


class Recorder:
    """The figures of one process. One thread counts, any may read.

    Attributes:
        counters: By name; whoever counts adds to them.
        buckets: By name; whoever measures observes by them.
    """

    def __init__(self, metrics: Iterable[Metric], clock: Callable[[], float] = time.time) -> None:
        known = tuple(metrics)
        self.incarnation = secrets.token_hex(8)
        self.counters = {metric.name: 0.0 for metric in known if metric.kind is Kind.COUNTER}
        self.buckets = {
            metric.name: Buckets(metric.bounds, metric.by_size) for metric in known if metric.kind is Kind.HISTOGRAM
        }
        self._clock = clock
        self._since = clock()

    def read(self, gauges: Mapping[str, float], counters: Mapping[str, float]) -> Figures:
        """The figures now, with gauges, and with counters that somebody else keeps."""
        return Figures(
            self.incarnation,
            self._since,
            self._clock(),
            {**self.counters, **counters},
            dict(gauges),
            {name: one.read() for name, one in self.buckets.items()},
        )


def figures_message(figures: Figures) -> pool_pb2.Figures:
    """As they travel."""
    histograms = {
        name: pool_pb2.Histogram(bounds=one.bounds, counts=one.counts, total=one.total, seconds=one.seconds)
        for name, one in figures.histograms.items()
    }
    return pool_pb2.Figures(
        incarnation=figures.incarnation,
        since=figures.since,
        at=figures.at,
        counters=figures.counters,
        gauges=figures.gauges,
        histograms=histograms,
    )


def figures_of(message: pool_pb2.Figures) -> Figures:
    """As they travelled; a histogram whose parts do not fit each other is left out."""
    histograms = {
        name: Histogram(tuple(one.bounds), tuple(one.counts), one.total, tuple(one.seconds))
        for name, one in message.histograms.items()
        if len(one.counts) == len(one.bounds) + 1 and len(one.seconds) in (0, len(one.counts))
    }
    counters, gauges = dict(message.counters), dict(message.gauges)
    return Figures(message.incarnation, message.since, message.at, counters, gauges, histograms)
