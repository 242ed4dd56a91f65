"""A pool's figures as a Prometheus has them: what the policy loop decides from where one is configured.

Two queries a look: all series of the pool as they are, and when they were scraped. Engines' and workers' figures are
the pool controller's series, the ingresses' their own; all are added up as the pool controller would have done.
"""

import json
import math
import secrets
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexpert_proto.ledger import FiguresLedger
from flexpert_proto.measuring import Figures, Histogram
from flexpert_proto.metrics import BY_NAME, Kind

TIMEOUT_S = 5.0
SILENCE_S = 5.0
"""For which one that did not answer is not asked again: a thousand policies do not wait for it one after the other."""
LAYERS = "flexpert_layer_imbalance_ratio"
CLOCK = "flexpert_(engine|ingress)_up_seconds_total"
"""These series' scrapes tell when figures are of: both kinds of targets have one."""

_OWN_LABELS = frozenset(("__name__", "le", "layer"))


class PrometheusUnavailable(Exception):
    """It does not answer, or not as Prometheus does; the message says how."""


@dataclass(frozen=True)
class Measured:
    """What Prometheus has of a pool.

    Attributes:
        at: When the older of its targets was scraped last, seconds since the Unix epoch.
        figures: As the pool controller would tell them; gauges are of those targets that Prometheus still sees.
        layer_imbalance: [layers] as `Pool.layer_imbalance`.
    """

    at: float
    figures: Figures
    layer_imbalance: tuple[float, ...]


class Prometheus:
    """A Prometheus' HTTP API.

    Args:
        url: Its address, as http://prometheus.monitoring:9090.
        token_file: File with a bearer token, read at every query; None: none is sent.
        clock: Monotonic seconds.
    """

    def __init__(self, url: str, token_file: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url.rstrip("/")
        self._token_file = token_file
        self._clock = clock
        self._silent_until = -math.inf

    def query(self, expression: str) -> list[tuple[Mapping[str, str], float]]:
        """(labels, value) of each series of an instant vector.

        Raises:
            PrometheusUnavailable: There is no such answer.
        """
        if self._clock() < self._silent_until:
            raise PrometheusUnavailable(f"{self._url} has just not answered")
        body = urllib.parse.urlencode({"query": expression}).encode()
        request = urllib.request.Request(f"{self._url}/api/v1/query", data=body)
        try:
            if self._token_file is not None:
                request.add_header("Authorization", f"Bearer {self._token_file.read_text().strip()}")
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                return _vector(json.load(response))
        except urllib.error.HTTPError as refused:
            said = refused.read(500).decode(errors="replace")
            raise PrometheusUnavailable(f"{self._url} answers {refused.code}: {said}") from refused
        except OSError as failure:
            self._silent_until = self._clock() + SILENCE_S
            raise PrometheusUnavailable(f"{self._url}: {failure}") from failure
        except ValueError as failure:
            raise PrometheusUnavailable(f"{self._url}: {failure}") from failure


class PrometheusFigures:
    """Figures of one pool, look by look."""

    def __init__(self, prometheus: Prometheus, namespace: str, name: str) -> None:
        self._prometheus = prometheus
        self._matchers = f"namespace={json.dumps(namespace)},name={json.dumps(name)}"
        self._ledger = FiguresLedger(secrets.token_hex(8), time.time(), silence_s=0.0)

    def look(self) -> Measured | None:
        """What is known now; None where Prometheus has nothing of this pool.

        Raises:
            PrometheusUnavailable: See there.
        """
        kinds = "engine|worker|ingress|layer"
        # The times first: a scrape between the two questions makes figures newer than is said, never older.
        scraped = self._prometheus.query(f'timestamp({{__name__=~"{CLOCK}",{self._matchers}}})')
        times = [at for _, at in scraped if math.isfinite(at)]
        series = self._prometheus.query(f'{{__name__=~"flexpert_({kinds})_.+",{self._matchers}}}')
        if not series or not times:
            return None
        gauges: dict[str, float] = {}
        for target, samples in _by_target(series).items():
            figures = _figures(samples)
            self._ledger.note(target, figures)
            for name, value in figures.gauges.items():
                gauges[name] = gauges.get(name, 0.0) + value
        total = self._ledger.total()
        known = Figures(total.incarnation, total.since, min(times), total.counters, gauges, total.histograms)
        return Measured(min(times), known, _layers(series))


Series = Iterable[tuple[Mapping[str, str], float]]


def _vector(answer: Any) -> list[tuple[Mapping[str, str], float]]:
    try:
        if answer["status"] != "success" or answer["data"]["resultType"] != "vector":
            raise PrometheusUnavailable(f"it answers {answer.get('error') or answer['data']['resultType']}")
        return [(one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]
    except (KeyError, TypeError, IndexError, AttributeError) as wrong:
        raise PrometheusUnavailable(f"that is no answer of Prometheus: {wrong!r}") from wrong


def _by_target(series: Series) -> dict[str, dict[tuple[str, str], float]]:
    """Samples of each target, by name and bucket."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    for labels, value in series:
        target = json.dumps(sorted((name, text) for name, text in labels.items() if name not in _OWN_LABELS))
        found.setdefault(target, {})[labels.get("__name__", ""), labels.get("le", "")] = value
    return found


def _figures(samples: Mapping[tuple[str, str], float]) -> Figures:
    """The figures of a target; it counts from when it is seen first, and anew where a counter fell."""
    counters: dict[str, float] = {}
    gauges: dict[str, float] = {}
    histograms: dict[str, Histogram] = {}
    for metric in BY_NAME.values():
        value = samples.get((metric.exposed, ""))
        if metric.kind is Kind.HISTOGRAM:
            histogram = _histogram(metric.exposed, samples)
            if histogram is not None:
                histograms[metric.name] = histogram
        elif value is not None and math.isfinite(value):
            (counters if metric.kind is Kind.COUNTER else gauges)[metric.name] = value
    return Figures("", 0.0, 0.0, counters, gauges, histograms)


def _histogram(name: str, samples: Mapping[tuple[str, str], float]) -> Histogram | None:
    buckets = sorted((float(le), count) for (sample, le), count in samples.items() if sample == f"{name}_bucket")
    if not buckets or not math.isinf(buckets[-1][0]):
        return None
    below = [0.0, *(count for _, count in buckets[:-1])]
    counts = tuple(round(count - before) for (_, count), before in zip(buckets, below, strict=True))
    return Histogram(tuple(bound for bound, _ in buckets[:-1]), counts, samples.get((f"{name}_sum", ""), 0.0))


def _layers(series: Series) -> tuple[float, ...]:
    found = {int(labels["layer"]): value for labels, value in series if labels.get("__name__") == LAYERS}
    return tuple(value for _, value in sorted(found.items()))
