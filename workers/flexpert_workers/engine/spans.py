"""Spans of the requests that an engine computes: made by `meter` of the times that it measures anyway.

A request's span has three parts, queue, prefill and decode, and of some of its steps a part for each MoE layer's
dispatch: of the first one, and of every `DISPATCH_EVERY`th that the engine makes for a traced request.
"""

from collections.abc import Sequence
from typing import NamedTuple

from flexpert_proto.tracing import Attributes, Span, Tracing
from flexpert_workers.engine.request import Request

DISPATCH_EVERY = 32


class Dispatched(NamedTuple):
    """One dispatch of a step, by the clock, and the computing of it on the slowest worker."""

    layer: int
    began: float
    ended: float
    compute_us: int


class EngineSpans:
    """Spans of one engine; used from the loop's thread."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._sampled: Span | None = None
        self._steps = 0

    def arrived(self, request: Request) -> None:
        """A request came, of somebody who traces it."""
        attributes: Attributes = {
            "flexpert.request_id": request.request_id,
            "flexpert.prompt_tokens": request.num_prompt,
            "flexpert.resumed_tokens": request.num_output,
        }
        request.span = self._tracing.begin("engine", request.traceparent, request.arrived_at, attributes, serving=True)

    def scheduled(self, request: Request, first: bool) -> None:
        """A traced request is in the step that begins, for the first time or not."""
        if self._sampled is None:
            self._steps += 1
            if first or self._steps % DISPATCH_EVERY == 0:
                self._sampled = request.span

    def stepped(self, dispatches: Sequence[Dispatched]) -> None:
        """The step has ended."""
        sampled, self._sampled = self._sampled, None
        if sampled is None:
            return
        for one in dispatches:
            attributes = {"flexpert.layer": one.layer, "flexpert.compute_us": one.compute_us}
            sampled.child("dispatch", one.began, one.ended, attributes)

    def left(self, request: Request, now: float) -> None:
        """A request is over here, however: its parts are known."""
        span, request.span = request.span, None
        if span is None:
            return
        span.child("queue", request.arrived_at, request.begun_at or now)
        if request.begun_at is not None:
            attributes = {"flexpert.cached_tokens": request.num_cached or 0}
            span.child("prefill", request.begun_at, request.first_at or now, attributes)
        if request.first_at is not None:
            tokens = request.num_output - request.first_output
            span.child("decode", request.first_at, now, {"flexpert.tokens": tokens})
        span.end(now, {"flexpert.output_tokens": request.num_output})
