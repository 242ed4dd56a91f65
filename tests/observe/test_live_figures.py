"""Figures of a pool that generates: what the pool controller tells agrees with what was asked of the pool."""

from observed_pool import ObservedPool

from flexpert_proto.measuring import Figures, figures_of
from flexpert_proto.metrics import BY_NAME, Kind

PROMPT = "def read(path):\n"
TOKENS, REQUESTS = 24, 3


def figures(pool: ObservedPool) -> Figures:
    return figures_of(pool.pool(with_figures=True).figures)


def test_the_pool_tells_what_was_measured(pool: ObservedPool) -> None:
    before = figures(pool)
    for _ in range(REQUESTS):
        pool.generate(PROMPT, TOKENS)
    told = ("engine_finished_requests", "ingress_finished_requests")
    pool.eventually(lambda: all(figures(pool).minus(before).counter(name) >= REQUESTS for name in told))
    since = figures(pool).minus(before)

    assert since.incarnation == pool.controller.incarnation
    for name in ("engine_requests", "ingress_requests"):
        assert since.counter(name) == REQUESTS
    for name in ("engine_generated_tokens", "ingress_tokens", "ingress_finished_tokens"):
        assert since.counter(name) == REQUESTS * TOKENS
    assert since.counter("ingress_prompt_tokens") == since.counter("engine_prompt_tokens") > REQUESTS
    for name in ("ttft", "tpot", "queue"):
        for process in ("engine", "ingress"):
            histogram = since.histogram(f"{process}_{name}_seconds")
            assert histogram.count == REQUESTS
            assert histogram.quantile(0.99) > 0
    steps = since.histogram("engine_step_seconds")
    for name in ("engine_step_tokens", "engine_dispatch_seconds", "engine_kv_use_ratio"):
        assert since.histogram(name).count == steps.count >= TOKENS
    assert since.histogram("engine_step_tokens").total >= REQUESTS * (TOKENS - 1)
    assert 0 < since.histogram("engine_dispatch_seconds").total < steps.total
    assert since.counter("engine_busy_seconds") <= since.counter("engine_up_seconds")


def test_workers_tell_their_service_time_by_size_and_how_busy_they_are(pool: ObservedPool) -> None:
    pool.generate(PROMPT, TOKENS)
    layers = pool.pool().model.layers
    pool.eventually(lambda: figures(pool).histogram("worker_service_seconds").count >= TOKENS * layers)
    told = pool.pool(with_figures=True)
    all_workers = figures_of(told.figures)
    rows, service = all_workers.histogram("worker_rows"), all_workers.histogram("worker_service_seconds")
    assert rows.count == service.count
    assert abs(sum(rows.seconds) - service.total) < 1e-6 * service.count + 1e-9
    assert all((count > 0) == (seconds > 0) for count, seconds in zip(rows.counts, rows.seconds, strict=True))
    assert all(0 < worker.busy_seconds < worker.up_seconds for worker in told.workers)
    assert len(told.layer_imbalance) == layers
    assert all(1.0 <= one <= 2.0 for one in told.layer_imbalance)


def test_every_figure_is_told_and_none_that_nobody_wrote_down(pool: ObservedPool) -> None:
    pool.eventually(lambda: figures(pool).gauge("ingress_engines") == 1.0)
    told = figures(pool)
    kinds = {Kind.COUNTER: told.counters, Kind.GAUGE: told.gauges, Kind.HISTOGRAM: told.histograms}
    for kind, values in kinds.items():
        assert set(values) == {metric.name for metric in BY_NAME.values() if metric.kind is kind}
    assert told.gauge("engine_kv_bytes") > 0


def test_figures_are_told_only_to_those_who_ask(pool: ObservedPool) -> None:
    told = pool.pool()
    assert not told.HasField("figures")
    assert not told.layer_imbalance
    assert not any(worker.up_seconds for worker in told.workers)
