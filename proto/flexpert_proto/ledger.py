"""What all processes of a pool have measured, added up as they tell it.

The pool controller keeps one, for `GetPool`; so does the operator where it reads figures from Prometheus. Sums only
grow as long as their keeper lives, whoever comes and goes; the next keeper begins at nothing, under its own
incarnation, and so whoever takes differences sees that.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from flexpert_proto.measuring import Figures, Histogram

_MOST_KNOWN = 4096
"""Processes whose last figures are kept; those that have been silent for longest are forgotten first."""


@dataclass
class _Told:
    figures: Figures
    at: float


class FiguresLedger:
    """Sums over processes.

    Args:
        incarnation: Of whoever keeps it.
        since: When counting began, seconds since the Unix epoch.
        clock: Monotonic seconds.
        now: Seconds since the Unix epoch.
        silence_s: Gauges of a process that has been silent for so long are left out.
    """

    def __init__(
        self,
        incarnation: str,
        since: float,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        silence_s: float = 5.0,
    ) -> None:
        self._incarnation = incarnation
        self._since = since
        self._clock = clock
        self._now = now
        self._silence_s = silence_s
        self._told: OrderedDict[str, _Told] = OrderedDict()
        self._counters: dict[str, float] = {}
        self._histograms: dict[str, Histogram] = {}

    def note(self, source: str, figures: Figures) -> None:
        """Take what a process tells; of one that is older than this ledger, only what is added from now on."""
        told = self._told.get(source)
        before = told.figures if told is not None and told.figures.incarnation == figures.incarnation else None
        if before is None and figures.since < self._since:
            before = figures
        self._add(figures.minus(before))
        self._told[source] = _Told(figures, self._clock())
        self._told.move_to_end(source)
        if len(self._told) > _MOST_KNOWN:
            self._told.popitem(last=False)

    def last(self, source: str) -> Figures | None:
        """What a process has told last."""
        told = self._told.get(source)
        return None if told is None else told.figures

    def total(self) -> Figures:
        """The sums; gauges are of those processes that are there."""
        gauges: dict[str, float] = {}
        heard_since = self._clock() - self._silence_s
        for told in self._told.values():
            if told.at >= heard_since:
                for name, value in told.figures.gauges.items():
                    gauges[name] = gauges.get(name, 0.0) + value
        counters, histograms = dict(self._counters), dict(self._histograms)
        return Figures(self._incarnation, self._since, self._now(), counters, gauges, histograms)

    def _add(self, added: Figures) -> None:
        for name, value in added.counters.items():
            self._counters[name] = self._counters.get(name, 0.0) + value
        for name, histogram in added.histograms.items():
            known = self._histograms.get(name)
            self._histograms[name] = histogram if known is None else known.plus(histogram)
