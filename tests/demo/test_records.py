"""The demo's arithmetic: what its report says follows from what was recorded."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "demo"))

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
