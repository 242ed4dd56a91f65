"""Histograms against the observations themselves, differences over time, and the pool's sums."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexpert_proto import metrics
from flexpert_proto.ledger import FiguresLedger
from flexpert_proto.measuring import Buckets, Figures, Histogram, Recorder, figures_message, figures_of
from flexpert_workers.pool.loads import LayerBalance

TIMES = st.lists(st.floats(1e-4, 600.0), min_size=1, max_size=200)


def histogram_of(values: list[float]) -> Histogram:
    buckets = Buckets(metrics.SECONDS)
    for value in values:
        buckets.observe(value)
    return buckets.read()


@given(TIMES, st.floats(0.0, 1.0))
def test_a_percentile_lies_in_the_bucket_of_the_true_one(values: list[float], part: float) -> None:
    true = sorted(values)[max(math.ceil(part * len(values)) - 1, 0)]
    told = histogram_of(values).quantile(part)
    upper = next(bound for bound in metrics.SECONDS if bound >= true)
    lower = max((bound for bound in metrics.SECONDS if bound < true), default=0.0)
    assert lower <= told <= upper


@given(TIMES, st.sampled_from(metrics.SECONDS))
def test_the_part_within_a_bound_is_exact_at_the_buckets_bounds(values: list[float], limit: float) -> None:
    within = sum(value <= limit for value in values) / len(values)
    assert histogram_of(values).share_within(limit) == pytest.approx(within)


def test_percentiles_of_many_times_are_near_the_true_ones() -> None:
    numbers = random.Random(7)
    values = [numbers.lognormvariate(-2.0, 0.8) for _ in range(20_000)]
    told, ordered = histogram_of(values), sorted(values)
    for part in (0.5, 0.9, 0.99):
        assert told.quantile(part) == pytest.approx(ordered[int(part * len(values))], rel=0.1)
    assert told.mean == pytest.approx(sum(values) / len(values))


def test_nothing_observed_is_not_a_number_and_beyond_the_last_bound_is_the_bound() -> None:
    assert math.isnan(Histogram((1.0,), (0, 0)).quantile(0.99))
    assert math.isnan(Histogram((), (0,)).share_within(1.0))
    assert Histogram((1.0, 2.0), (0, 0, 5)).quantile(0.5) == 2.0


@given(TIMES, TIMES)
def test_what_came_in_between_is_the_difference(first: list[float], second: list[float]) -> None:
    between = histogram_of(first + second).minus(histogram_of(first))
    assert between.counts == histogram_of(second).counts
    assert between.total == pytest.approx(sum(second), abs=1e-6)
    assert histogram_of(first).plus(histogram_of(second)).counts == histogram_of(first + second).counts


def test_histograms_of_other_buckets_are_added_by_their_bounds() -> None:
    coarse = Histogram((1.0, 10.0), (3, 2, 1), 30.0)
    fine = Histogram((0.5, 1.0, 5.0, 10.0), (1, 1, 1, 1, 1), 25.0)
    assert coarse.plus(fine) == Histogram((1.0, 10.0), (5, 4, 2), 55.0)


def test_seconds_are_kept_by_size() -> None:
    buckets = Buckets((1.0, 8.0), by_size=True)
    for rows, seconds in ((1, 0.1), (4, 0.2), (6, 0.3), (99, 4.0)):
        buckets.observe(rows, seconds)
    assert buckets.read().seconds == pytest.approx((0.1, 0.5, 4.0))


def figures(incarnation: str, requests: float, since: float = 100.0, waiting: float = 0.0) -> Figures:
    histogram = histogram_of([0.01] * int(requests))
    return Figures(
        incarnation,
        since,
        since + requests,
        {"engine_requests": requests},
        {"engine_waiting": waiting},
        {"engine_ttft_seconds": histogram},
    )


def test_a_reset_is_seen_by_the_incarnation_or_by_a_counter_that_fell() -> None:
    assert figures("a", 5).minus(figures("a", 2)).counter("engine_requests") == 3
    assert figures("b", 5).minus(figures("a", 2)).counter("engine_requests") == 5
    assert figures("a", 2).minus(figures("a", 5)).histogram("engine_ttft_seconds").count == 2
    assert figures("a", 2).minus(None) == figures("a", 2)


def test_figures_travel() -> None:
    recorder = Recorder(metrics.ENGINE)
    recorder.counters["engine_requests"] += 2
    recorder.buckets["engine_step_tokens"].observe(3, 0.5)
    told = recorder.read({"engine_waiting": 1.0}, {})
    assert figures_of(figures_message(told)) == told
    message = figures_message(told)
    message.histograms["engine_step_tokens"].counts.append(1)
    assert "engine_step_tokens" not in figures_of(message).histograms, "its parts do not fit"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_pools_sums_survive_whoever_comes_and_goes() -> None:
    clock = Clock()
    ledger = FiguresLedger("controller", 100.0, clock, now=clock)
    ledger.note("e1", figures("x", 4, waiting=2.0))
    ledger.note("e1", figures("x", 6, waiting=1.0))
    ledger.note("e2", figures("y", 1, waiting=5.0))
    assert ledger.total().counter("engine_requests") == 7
    assert ledger.total().gauge("engine_waiting") == 6.0
    clock.now += 60
    ledger.note("e1", figures("z", 2))  # began anew under its name
    total = ledger.total()
    assert total.counter("engine_requests") == 9
    assert total.histogram("engine_ttft_seconds").count == 9
    assert total.gauge("engine_waiting") == 0.0, "one is silent, the other has none"
    assert (total.incarnation, total.since, total.at) == ("controller", 100.0, 1060.0)


def test_of_a_process_that_was_there_before_only_what_comes_counts() -> None:
    ledger = FiguresLedger("controller", 200.0)
    ledger.note("e1", figures("x", 50))
    ledger.note("e1", figures("x", 53))
    assert ledger.total().counter("engine_requests") == 3
    assert ledger.total().histogram("engine_ttft_seconds").count == 3


def test_a_layers_balance_is_of_late_and_of_those_that_serve() -> None:
    clock = Clock()
    balance = LayerBalance(clock)
    balance.note("a", (100, 100, 0, 0))
    balance.note("b", (0, 0, 0, 0))
    assert balance.imbalance(["a", "b"], 2) == (1.0, 1.0), "what was before does not count"
    balance.note("b", (0, 1, 1, 0))
    balance.note("a", (130, 100, 0, 0))
    balance.note("b", (0, 11, 5, 4))
    assert balance.imbalance(["a", "b"], 2) == (1.5, 2.0)
    assert balance.imbalance(["b"], 2) == (1.0, 1.0)
    for _ in range(3):
        clock.now += 31
        balance.note("a", (130, 100, 0, 0))
        balance.note("b", (0, 11, 5, 4))
    assert balance.imbalance(["a", "b"], 2) == (1.0, 1.0), "it is long ago"
    assert balance.imbalance(["c"], 2) == (1.0, 1.0)


def test_what_others_did_before_a_worker_served_says_nothing_of_the_balance() -> None:
    balance = LayerBalance(Clock())
    balance.note("a", (0, 0))
    balance.note("a", (1000, 1000))
    balance.note("a", (2000, 2000))
    balance.note("b", (0, 0))
    assert balance.imbalance(["a", "b"], 2) == (2.0, 2.0), "one holds no experts yet"
    balance.note("b", (10, 5))
    balance.note("a", (2100, 2100))
    balance.note("b", (110, 105))
    assert balance.imbalance(["a", "b"], 2) == (1.0, 1.0)
