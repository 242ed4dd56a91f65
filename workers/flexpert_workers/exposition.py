"""Figures as Prometheus reads them. The ingress exposes its own, the pool controller those of engines and workers."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from flexpert_proto import metrics
from flexpert_proto.measuring import Figures, Histogram
from flexpert_proto.metrics import Kind

Labels = Mapping[str, str]
Values = Mapping[tuple[str, ...], float]
"""By the values of further labels."""


class _Families:
    """What `prometheus_client` takes for a collector: families that are there already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """The families."""
        return self._families


def render(families: Iterable[Metric], accept: str) -> tuple[bytes, str]:
    """Families as text, and its content type: OpenMetrics for who accepts it, else Prometheus' own."""
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families))
    return encode(registry), content_type


def families_of(figures: Figures, known: Iterable[metrics.Metric], labels: Labels) -> Iterator[Metric]:
    """A family for each of the `known` figures, all with the same labels; what nobody has told yet is 0."""
    for metric in known:
        name, names, values = f"flexpert_{metric.name}", list(labels), list(labels.values())
        match metric.kind:
            case Kind.COUNTER:
                counter = CounterMetricFamily(name, metric.meaning, labels=names)
                counter.add_metric(values, figures.counter(metric.name))
                yield counter
            case Kind.GAUGE:
                yield gauge(name, metric.meaning, labels, figures.gauge(metric.name))
            case Kind.HISTOGRAM:
                histogram = figures.histograms.get(metric.name)
                family = HistogramMetricFamily(name, metric.meaning, labels=names)
                told = histogram or Histogram(metric.bounds, (0,) * (len(metric.bounds) + 1))
                family.add_metric(values, _buckets(told), told.total)
                yield family


def gauge(name: str, meaning: str, labels: Labels, value: float) -> Metric:
    """A gauge of one value."""
    return gauges(name, meaning, labels, (), {(): value})


def gauges(name: str, meaning: str, labels: Labels, by: tuple[str, ...], values: Values) -> Metric:
    """A gauge with further labels `by`, of which `values` has the combinations."""
    family = GaugeMetricFamily(name, meaning, labels=[*labels, *by])
    for key, value in values.items():
        family.add_metric([*labels.values(), *key], value)
    return family


def counters(name: str, meaning: str, labels: Labels, by: tuple[str, ...], values: Values) -> Metric:
    """The same as a counter."""
    family = CounterMetricFamily(name, meaning, labels=[*labels, *by])
    for key, value in values.items():
        family.add_metric([*labels.values(), *key], value)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*(repr(bound) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True))
