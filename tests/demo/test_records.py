"""The demo's arithmetic: what its report says follows from what was recorded."""

import pytest
from balance import Balance, Look
from records import Event, Request, percentile, report, tokens_per_s, tpot_ms_p99

TEXT = "return None"
REFERENCES = {"def ": TEXT}


def stream(started: float, gap: float, pieces: int, error: str | None = None) -> Request:
    arrivals = [(started + gap * (index + 1), 1) for index in range(pieces)]
    return Request(started, "def ", arrivals, started + gap * pieces, error, None if error else TEXT)


def test_rates_count_what_arrived_in_the_window() -> None:
    requests = [stream(0.0, 0.1, 20), stream(0.0, 0.2, 10)]
    assert tokens_per_s(requests, 0.0, 1.0) == pytest.approx(9 + 4)
    assert tpot_ms_p99(requests, 0.0, 10.0) == pytest.approx(200, rel=0.01)


def test_a_piece_of_several_tokens_counts_its_time_once_a_token() -> None:
    request = Request(0.0, "x", [(0.1, 1), (0.5, 4)])
    assert request.token_gaps() == [(0.5, pytest.approx(0.1))]


def test_failures_are_counted_in_total_and_at_the_event_they_overlap() -> None:
    requests = [stream(0.0, 0.1, 10), stream(20.0, 0.1, 10, error="Unavailable: gone"), stream(40.0, 0.1, 10)]
    events = [Event("scale-up", 2, 4, 19.0, 20.5, 100), Event("scale-down", 4, 2, 35.0, 36.0, 50)]
    result = report(requests, REFERENCES, events, 0, 12.3456)
    assert result["requests"] == {"total": 3, "failed": 1, "text_identical": True}
    assert [event["failed"] for event in result["events"]] == [1, 0]
    assert result["events"][0]["duration_s"] == pytest.approx(1.5)
    assert result["ready_s"] == pytest.approx(12.35)
    assert result["errors"] == ["Unavailable: gone"]


def test_one_wrong_text_shows() -> None:
    wrong = stream(0.0, 0.1, 3)
    wrong.text = "return 1"
    assert report([stream(0.0, 0.1, 3), wrong], REFERENCES, [], 0, 1.0)["requests"]["text_identical"] is False


def test_no_request_is_not_a_success() -> None:
    assert report([], REFERENCES, [], 0, 1.0)["requests"]["text_identical"] is False


def test_percentile_of_few_values() -> None:
    assert percentile([], 99) == 0
    assert percentile([3.0], 99) == 3
    assert percentile([float(v) for v in range(1, 101)], 99) == pytest.approx(99.01)


def look(time: float, tokens: dict[tuple[int, int], int], **placement: float) -> Look:
    """Two experts of one layer; `placement`: share of expert 0 that worker a serves; b has the rest and expert 1."""
    share = placement.get("a", 1.0)
    return Look(time, tokens, {(0, 0): {"a": share, "b": 1 - share}, (0, 1): {"b": 1.0}})


def test_imbalance_is_of_the_tokens_that_came_in_between() -> None:
    balance = Balance()
    assert balance.between(0.0, 10.0) is None
    balance.looks = [
        look(0.0, {(0, 0): 1000, (0, 1): 0}),
        look(1.0, {(0, 0): 1030, (0, 1): 10}, a=0.5),
        look(2.0, {(0, 0): 1030, (0, 1): 10}, a=2 / 3),
        look(3.0, {(0, 0): 1060, (0, 1): 20}, a=2 / 3),
    ]
    assert balance.between(0.0, 1.0) == pytest.approx(30 / 20)
    assert balance.between(2.0, 3.0) == pytest.approx(1.0)
    assert balance.between(1.0, 2.0) is None, "no token came"
    assert balance.between(0.5, 1.5) is None, "one look is none"


def test_the_report_shows_the_imbalance_before_and_after() -> None:
    events = [Event("text-change", 4, 4, 1.0, 2.0, 100, (1.61849, 1.0421)), Event("scale-up", 2, 4, 3.0, 4.0, 0)]
    shown = [event["imbalance"] for event in report([stream(0.0, 0.1, 3)], REFERENCES, events, 0, 1.0)["events"]]
    assert shown == [{"before": 1.618, "after": 1.042}, {"before": None, "after": None}]
