"""What a live pool exposes to Prometheus: parsed by Prometheus' own parsers, and compared with what is written down."""

import re
import urllib.request
from pathlib import Path

from observed_pool import NAME, NAMESPACE, ObservedPool
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from flexpert_operator.metrics import Metrics
from flexpert_proto import pool_pb2
from flexpert_proto.measuring import figures_of
from flexpert_proto.metrics import ENGINE, INGRESS, WORKER, Kind

POOL = {"namespace": NAMESPACE, "name": NAME}


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_controller_exposes_what_engines_and_workers_measured(pool: ObservedPool) -> None:
    pool.generate("def f(x):\n", 16)
    pool.eventually(lambda: figures_of(pool.pool(with_figures=True).figures).counter("engine_finished_requests") >= 1)
    told, text = pool.pool(with_figures=True), pool.http(pool.metrics_port, "/metrics")
    figures, found = figures_of(told.figures), samples(text)
    pool_labels = frozenset(POOL.items())
    for metric in (*ENGINE, *WORKER):
        if metric.kind is Kind.HISTOGRAM:
            histogram = figures.histogram(metric.name)
            below = 0
            for bound, count in zip(metric.bounds, histogram.counts, strict=False):
                below += count
                key = (f"{metric.exposed}_bucket", pool_labels | {("le", repr(bound))})
                assert found[key] >= 0 if below else found[key] == 0
            assert (metric.exposed + "_sum", pool_labels) in found
        else:
            assert (metric.exposed, pool_labels) in found
    assert found["flexpert_engine_finished_requests_total", pool_labels] >= 1
    assert not any(name.startswith("flexpert_ingress") for name, _ in found)


def test_it_exposes_how_the_pool_stands_and_what_reconfigurations_did(pool: ObservedPool) -> None:
    before = samples(pool.http(pool.metrics_port, "/metrics"))
    moved = [pool.move("there", 0), pool.move("and back", 1)]
    found = samples(pool.http(pool.metrics_port, "/metrics"))
    told = pool.pool(with_placement=True)

    def value(name: str, **labels: str) -> float:
        return found[f"flexpert_pool_{name}", frozenset({**POOL, **labels}.items())]

    rebalances = frozenset({**POOL, "cause": "rebalance", "outcome": "succeeded"}.items())
    key = ("flexpert_pool_reconfigurations_total", rebalances)
    assert found[key] - before[key] == 2
    bytes_key = ("flexpert_pool_moved_bytes_total", frozenset({**POOL, "cause": "rebalance"}.items()))
    assert found[bytes_key] - before[bytes_key] == sum(operation.moved_bytes for operation in moved)
    assert value("moved_bytes_total", cause="initial") > 0
    for phase in ("prepare", "commit", "retire"):
        assert value("reconfiguration_seconds_total", phase=phase) > 0
    assert value("workers", state="ready") == 2
    assert value("engines", state="ready") == 1
    assert value("replicas") == told.model.layers * told.model.experts
    assert (value("term"), value("epoch")) == (told.epoch.term, told.epoch.sequence)
    assert 0 < value("resident_bytes") <= value("expert_memory_bytes")
    assert value("lost_experts") == value("reconfiguring") == 0
    layers = [labels for name, labels in found if name == "flexpert_layer_imbalance_ratio"]
    assert len(layers) == told.model.layers


def test_an_ingress_exposes_what_clients_see(pool: ObservedPool) -> None:
    pool.generate("import os\n", 8)
    found = samples(pool.http(pool.ingress.http_port, "/metrics"))
    names = {name for name, _ in found}
    for metric in INGRESS:
        assert metric.exposed + ("_count" if metric.kind is Kind.HISTOGRAM else "") in names
    assert found["flexpert_ingress_ttft_seconds_count", frozenset(POOL.items())] >= 1
    assert found["flexpert_ingress_ended_total", frozenset({**POOL, "how": "length"}.items())] >= 1


def test_who_asks_for_openmetrics_gets_it(pool: ObservedPool) -> None:
    for port in (pool.metrics_port, pool.ingress.http_port):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics")
        request.add_header("accept", "application/openmetrics-text; version=1.0.0")
        with urllib.request.urlopen(request, timeout=60) as response:
            assert response.headers["content-type"].startswith("application/openmetrics-text")
            assert list(openmetrics.text_string_to_metric_families(response.read().decode()))


def test_series_are_few(pool: ObservedPool) -> None:
    found = samples(pool.http(pool.metrics_port, "/metrics"))
    layers = pool.pool(with_placement=True).model.layers
    assert len(found) < 600 + layers
    assert not any("expert" in dict(labels) for _, labels in found)
    assert pool_pb2.Pool.DESCRIPTOR.fields_by_name["loads"], "these are told by the API"


def test_the_documentation_lists_every_metric_with_its_labels(pool: ObservedPool) -> None:
    text = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
    rows = re.findall(r"^\| `(flexpert_\w+)` \| (\w+) \| (.*?) \|", text, re.MULTILINE)
    listed = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(listed) == len(rows), "each once"
    exposed = [pool.http(pool.metrics_port, "/metrics"), pool.http(pool.ingress.http_port, "/metrics")]
    found: dict[str, tuple[str, set[str]]] = {}
    for text in exposed:
        for family in text_string_to_metric_families(text):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels} - {"namespace", "name", "le"}
            found[name] = (family.type, labels)
    for collector in list(Metrics().registry._collector_to_names):
        (family,) = collector.describe() or collector.collect()
        name = family.name + ("_total" if family.type == "counter" else "")
        found[name] = (family.type, set(collector._labelnames) - {"namespace", "name"})
    assert listed == found
