"""The dashboard's queries over what a live pool exposes, and figures as the operator reads them from a Prometheus.

Where Debian's `prometheus` is installed (or FLEXPERT_PROMETHEUS names one) both are asked of a real one.
"""

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from observed_pool import NAME, NAMESPACE, ObservedPool
from prometheus_client.parser import text_string_to_metric_families
from prometheus_servers import RealPrometheus, real_prometheus, small

from flexpert_operator.autoscale import Observation, PoolCount
from flexpert_operator.decide.measured import Look, observation_of
from flexpert_operator.decide.observation import Cause, Epoch, Operation, Phase
from flexpert_operator.decide.rebalancing import Decision
from flexpert_operator.metrics import Metrics
from flexpert_operator.policies import look_at
from flexpert_operator.pool_client import pool_of
from flexpert_operator.prometheus import SILENCE_S, Measured, Prometheus, PrometheusFigures, PrometheusUnavailable
from flexpert_proto.measuring import figures_of
from flexpert_proto.metrics import ENGINE, INGRESS, WORKER, Kind

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "charts" / "flexpert" / "dashboards" / "flexpert.json").read_text()
)
needs_prometheus = pytest.mark.skipif(
    real_prometheus() is None, reason="no prometheus here: install Debian's package, or set FLEXPERT_PROMETHEUS"
)


def queries() -> list[str]:
    """Every query of the dashboard's panels."""
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def selectors() -> list[str]:
    """What its variables take their values from."""
    found = [one["query"]["query"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
    return [re.fullmatch(r"label_values\((.*), \w+\)", query)[1] for query in found]  # type: ignore[index]


def told_operator() -> Metrics:
    """An operator's metrics that everything was told once."""
    metrics = Metrics()
    operation = Operation("o", Cause.SCALE, Phase.SUCCEEDED, Epoch(1, 1), 3, 1000, "", 0.0, 1.0)
    metrics.note_reconciled(NAMESPACE, NAME, 0.1)
    metrics.note_error(NAMESPACE, NAME, "Conflict")
    metrics.note_watch_restart("pods")
    metrics.note_loads(NAMESPACE, NAME, 1.2, 0.1, 0)
    metrics.note_operation(NAMESPACE, NAME, operation)
    metrics.note_decision(
        NAMESPACE,
        NAME,
        Decision("Move", "Gain", "", True, gain_percent=10.0, benefit_s=1.0, hold_s=2.0, cost_s=0.1, cost_bytes=5),
    )
    return metrics


def exposed(*texts: str) -> dict[str, set[str]]:
    """Labels of every series, by its name; also of those that have none yet."""
    found: dict[str, set[str]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_each_query_is_over_metrics_and_labels_that_are_exposed(pool: ObservedPool) -> None:
    pool.generate("import re\n", 4)
    pool.move("for a cause", 0)
    registry = told_operator().registry
    operator = exposed_by(registry)
    pools = exposed(pool.http(pool.metrics_port, "/metrics"), pool.http(pool.ingress.http_port, "/metrics"))
    known = operator | pools
    for query in [*queries(), *selectors()]:
        names = re.findall(r"\bflexpert_\w+", query)
        assert names, query
        assert not [name for name in names if name not in known], query
        labels = set().union(*(known[name] for name in names))
        used = set(re.findall(r"(\w+)=~?\"", query))
        for grouping in re.findall(r"by \(([^)]*)\)", query):
            used |= {label.strip() for label in grouping.split(",")}
        assert used <= labels, query


def exposed_by(registry: Any) -> dict[str, set[str]]:
    from prometheus_client import generate_latest

    return exposed(generate_latest(registry).decode())


@pytest.fixture(scope="module")
def scraped(pool: ObservedPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPrometheus]:
    """A real Prometheus that has seen the pool work."""
    program = real_prometheus()
    assert program is not None
    server, thread = told_operator().serve("127.0.0.1", 0)
    ports = (server.server_port, pool.metrics_port, pool.ingress.http_port)
    prometheus = RealPrometheus(program, tmp_path_factory.mktemp("prometheus"), [f"127.0.0.1:{port}" for port in ports])
    try:
        prometheus.wait("count(up == 1) == 3")
        pool.move("seen by Prometheus", 1)
        pool.generate("def g(y):\n", 32)
        prometheus.wait('increase(flexpert_pool_reconfigurations_total{outcome="succeeded"}[1m]) > 0')
        prometheus.wait("increase(flexpert_ingress_ttft_seconds_count[1m]) > 0")
        prometheus.wait("increase(flexpert_engine_finished_requests_total[1m]) > 0")
        yield prometheus
    finally:
        prometheus.close()
        server.shutdown()
        server.server_close()
        thread.join()


@needs_prometheus
def test_a_real_prometheus_has_an_answer_to_each_query(scraped: RealPrometheus) -> None:
    for query in queries():
        asked = query.replace("$namespace", ".*").replace("$name", ".*").replace("$__rate_interval", "1m")
        assert scraped.query(asked), asked
    for selector in selectors():
        assert scraped.series(selector.replace("$namespace", ".*")), selector


def assert_tells_the_same(pool: ObservedPool, measured: Measured | None) -> None:
    assert measured is not None
    told = pool.pool(with_figures=True)
    known = figures_of(told.figures)
    for metric in (*ENGINE, *WORKER, *INGRESS):
        kinds = {
            Kind.COUNTER: measured.figures.counters,
            Kind.GAUGE: measured.figures.gauges,
            Kind.HISTOGRAM: measured.figures.histograms,
        }
        assert metric.name in kinds[metric.kind]
    assert measured.figures.gauge("engine_kv_bytes") == known.gauge("engine_kv_bytes")
    assert len(measured.layer_imbalance) == len(told.layer_imbalance)


def grown(pool: ObservedPool, reader: PrometheusFigures) -> Measured:
    """What was counted in a look at one request, once Prometheus has seen all of it."""

    def all_told() -> bool:
        told = figures_of(pool.pool(with_figures=True).figures)
        counted = (told.counter(f"{one}_finished_requests") for one in ("engine", "ingress"))
        return all(count == pool.num_generated for count in counted)

    def seen() -> Measured:
        """Once it has seen the end of every request so far: parts tell once a second, and Prometheus scrapes."""
        pool.eventually(all_told)
        since, found = time.time(), []

        def scraped_since() -> bool:
            now = reader.look()
            assert now is not None
            found[:] = [now]
            return now.at > since

        pool.eventually(scraped_since)
        return found[0]

    before = seen()
    pool.generate("class A:\n", 16)
    after = seen()
    assert after.at > before.at
    return Measured(after.at, after.figures.minus(before.figures), after.layer_imbalance)


def test_figures_are_read_by_the_query_api(pool: ObservedPool) -> None:
    targets = [f"127.0.0.1:{port}" for port in (pool.metrics_port, pool.ingress.http_port)]
    with small(targets) as server:
        reader = PrometheusFigures(Prometheus(server.url), NAMESPACE, NAME)
        assert_tells_the_same(pool, reader.look())
        since = grown(pool, reader)
        assert (
            since.figures.counter("ingress_finished_tokens") == since.figures.counter("engine_generated_tokens") == 16
        )
        assert since.figures.histogram("ingress_ttft_seconds").count == 1
        assert since.figures.histogram("ingress_ttft_seconds").quantile(0.99) > 0
        steps = since.figures.histogram("engine_step_seconds")
        assert steps.count >= 16
        assert steps.mean > since.figures.histogram("engine_dispatch_seconds").mean > 0

        server.down = {targets[1]}
        without = reader.look()
        assert without is not None
        assert without.figures.gauge("ingress_engines") == 0, "gauges are of those that are there"
        assert without.figures.counter("ingress_tokens") >= 16, "what was counted stays"
        server.scraped_at = 1000.0
        stale = reader.look()
        assert stale is not None
        assert stale.at == 1000.0, "old figures say so"
        server.down = set(targets)
        assert reader.look() is None
        assert PrometheusFigures(Prometheus(server.url), "elsewhere", NAME).look() is None


def test_a_policy_observes_the_same_by_prometheus_as_by_the_pool(pool: ObservedPool) -> None:
    targets = [f"127.0.0.1:{port}" for port in (pool.metrics_port, pool.ingress.http_port)]
    members = PoolCount(1, 1), PoolCount(2, 2)
    with small(targets) as server:
        reader = PrometheusFigures(Prometheus(server.url), NAMESPACE, NAME)

        def looks() -> tuple[Look, Look]:
            told = pool_of(pool.pool(with_figures=True))
            return look_at(reader, told, time.time()), Look(time.time(), told)

        before = looks()
        pool.generate("def h(z):\n", 48)

        def observed() -> list[Observation]:
            found = zip(looks(), before, strict=True)
            return [observation_of(time.time(), now, then, *members, None, 30.0) for now, then in found]

        def complete() -> bool:
            return all(one.counters.finished_tokens >= 48 and one.engine_utilisation > 0 for one in observed())

        pool.eventually(complete)
        ours, theirs = observed()
        assert theirs.measured_at is not None
        assert ours.measured_at is not None
        assert ours.engine_step_s == pytest.approx(theirs.engine_step_s, rel=0.2)
        assert ours.expert_step_s == pytest.approx(theirs.expert_step_s, rel=0.2)
        assert ours.running == pytest.approx(theirs.running, rel=0.2)
        gone = server.url
    blind = look_at(PrometheusFigures(Prometheus(gone), NAMESPACE, NAME), pool_of(pool.pool()), time.time())
    assert observation_of(time.time(), blind, None, *members, None, 30.0).measured_at is None, "then sizes are held"


def test_what_is_no_prometheus_is_told(pool: ObservedPool, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    with small([]) as server:
        Prometheus(server.url, token).query('{job="a"}')
        assert server.asked[-1]["Authorization"] == "Bearer secret"
        with pytest.raises(PrometheusUnavailable, match=r"400.*not a selector"):
            Prometheus(server.url).query("sum(x)")
        with pytest.raises(PrometheusUnavailable, match="missing"):
            Prometheus(server.url, tmp_path / "missing").query('{job="a"}')
        gone = server.url
    for url in (gone, f"http://127.0.0.1:{pool.metrics_port}"):
        with pytest.raises(PrometheusUnavailable, match=re.escape(url)):
            Prometheus(url).query('{job="a"}')


def test_one_that_hangs_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [0.0], []

    def hangs(request: urllib.request.Request, timeout: float) -> None:
        asked.append(now[0])
        raise TimeoutError("timed out")

    monkeypatch.setattr(urllib.request, "urlopen", hangs)
    prometheus = Prometheus("http://prometheus:9090", clock=lambda: now[0])
    for now[0], why in ((0.0, "timed out"), (1.0, "just not answered"), (SILENCE_S, "timed out")):
        with pytest.raises(PrometheusUnavailable, match=why):
            prometheus.query('{job="a"}')
    assert asked == [0.0, SILENCE_S]


@needs_prometheus
def test_figures_are_read_from_a_real_prometheus(pool: ObservedPool, scraped: RealPrometheus) -> None:
    reader = PrometheusFigures(Prometheus(scraped.url), NAMESPACE, NAME)
    assert_tells_the_same(pool, reader.look())
    since = grown(pool, reader)
    assert since.figures.counter("engine_generated_tokens") == 16
    assert since.figures.histogram("engine_tpot_seconds").count == 1
