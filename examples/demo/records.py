"""What the demo measures: a record a request, an event a change, and the report made of both. All pure."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WINDOW_S = 5.0
"""How long before and after an event its figures are taken."""


@dataclass
class Request:
    """One stream under load.

    Attributes:
        arrivals: (time, number of tokens) of each piece, in seconds on the demo's clock.
        error: Why it failed, or None.
        text: What was answered; None while it runs or when it failed.
    """

    started: float
    prompt: str
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    finished: float | None = None
    error: str | None = None
    text: str | None = None

    def token_gaps(self) -> list[tuple[float, float]]:
        """(time, seconds a token) between one piece and the next."""
        return [
            (now, (now - before) / num_tokens)
            for (before, _), (now, num_tokens) in zip(self.arrivals, self.arrivals[1:], strict=False)
            if num_tokens
        ]

    def overlaps(self, start: float, end: float) -> bool:
        """Whether it ran at any time in [start, end]."""
        return self.started <= end and (self.finished is None or self.finished >= start)


@dataclass(frozen=True)
class Event:
    """A change made to the pool while it served.

    Attributes:
        imbalance: Busiest worker's tokens over the average, before and after; None where no token told.
    """

    name: str
    before: int
    after: int
    start: float
    end: float
    moved_bytes: int
    imbalance: tuple[float | None, float | None] = (None, None)


def tokens_per_s(requests: Sequence[Request], start: float, end: float) -> float:
    """Tokens that arrived in [start, end), per second."""
    tokens = sum(count for request in requests for time, count in request.arrivals if start <= time < end)
    return tokens / (end - start) if end > start else 0.0


def tpot_ms_p99(requests: Sequence[Request], start: float, end: float) -> float:
    """99th percentile of the time per output token over the pieces that arrived in [start, end), in milliseconds."""
    gaps = [gap for request in requests for time, gap in request.token_gaps() if start <= time < end]
    return percentile(gaps, 99) * 1000


def percentile(values: Sequence[float], percent: int) -> float:
    """The `percent`-th percentile; 0 without values."""
    if len(values) < 2:
        return max(values, default=0.0)
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def windows(event: Event) -> dict[str, tuple[float, float]]:
    """The spans before, during and after an event."""
    return {
        "before": (event.start - WINDOW_S, event.start),
        "during": (event.start, event.end),
        "after": (event.end, event.end + WINDOW_S),
    }


def event_report(event: Event, requests: Sequence[Request]) -> dict[str, Any]:
    """One entry of the report's `events`."""
    spans = windows(event)
    failed = [r for r in requests if r.error is not None and r.overlaps(event.start, event.end + WINDOW_S)]
    return {
        "name": event.name,
        "from": event.before,
        "to": event.after,
        "duration_s": round(event.end - event.start, 3),
        "moved_bytes": event.moved_bytes,
        "imbalance": {
            when: round(value, 3) if value is not None else None
            for when, value in zip(("before", "after"), event.imbalance, strict=True)
        },
        "failed": len(failed),
        "tokens_per_s": {name: round(tokens_per_s(requests, *span), 1) for name, span in spans.items()},
        "tpot_ms_p99": {name: round(tpot_ms_p99(requests, *span), 2) for name, span in spans.items()},
    }


def report(
    requests: Sequence[Request],
    references: Mapping[str, str],
    events: Sequence[Event],
    engine_expert_bytes: int,
    ready_s: float,
) -> dict[str, Any]:
    """The whole of `build/demo/report.json`; `references` is the text that each prompt should give."""
    ended = [request for request in requests if request.finished is not None]
    failed = [request for request in ended if request.error is not None]
    return {
        "requests": {
            "total": len(ended),
            "failed": len(failed),
            "text_identical": bool(ended) and all(r.text == references[r.prompt] for r in ended if r.error is None),
        },
        "events": [event_report(event, requests) for event in events],
        "engine_expert_bytes": engine_expert_bytes,
        "ready_s": round(ready_s, 2),
        "errors": sorted({request.error for request in failed if request.error}),
    }
