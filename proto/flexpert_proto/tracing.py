"""Spans by OpenTelemetry, for the processes that are told to by the standard OTEL_* variables; nothing for the others.

`main` functions ask `tracing_if_usable` and hand what they get to the part that they run; None, as it is by default,
costs a comparison with None. Nothing of OpenTelemetry is imported before somebody asks for traces. Spans are made from
times that were measured anyway: begun and ended after the fact, so that the parts' own code reads as without them.

| variable | |
|---|---|
| OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT | where to, by OTLP over HTTP; either turns it on |
| OTEL_TRACES_EXPORTER | `otlp`, `console`, or `none`, which turns it off |
| OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG | which requests that bring no decision of their own; default: all |
| OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES | who tells; default: flexpert-ingress and so on |
| OTEL_SDK_DISABLED | `true` turns it off |

and the others of the OTLP exporter and the batch processor (headers, certificates, time-outs), as OpenTelemetry's
Python SDK reads them.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan

log = logging.getLogger(__name__)

TRACEPARENT = "traceparent"
"""W3C's header, and the gRPC metadata of that name."""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

Attributes = Mapping[str, str | int | float | bool]


class TracingUnusable(ValueError):
    """The variables ask for what cannot be had; the message says what to change."""


def traceparent_of(headers: Mapping[str, str]) -> str:
    """The caller's, if it sent one that is well formed; else ""."""
    sent = headers.get(TRACEPARENT, "")
    return sent if _TRACEPARENT.fullmatch(sent) else ""


class Span:
    """Something that takes its time. `Tracing.begin` makes it.

    Attributes:
        traceparent: What whoever goes on with it is sent; "" when it is not recorded.
    """

    def __init__(self, tracing: "Tracing", span: "OtelSpan") -> None:
        self._tracing = tracing
        self._span = span
        context = span.get_span_context()
        self.traceparent = (
            f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
            if span.is_recording()
            else ""
        )

    def child(self, name: str, began: float, ended: float, attributes: Attributes | None = None) -> None:
        """A part of it that has ended; times by the clock."""
        if self.traceparent:
            self._tracing.begin(name, self, began, attributes).end(ended)

    def end(self, at: float, attributes: Attributes | None = None, error: str = "") -> None:
        """It ended; with what is known by then, and why it failed if it did."""
        if attributes:
            self._span.set_attributes(dict(attributes))
        if error:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(self._tracing.nanoseconds(at))

    @property
    def otel(self) -> "OtelSpan":
        """OpenTelemetry's own."""
        return self._span


class Tracing:
    """Makes spans of one process.

    Args:
        provider: Where they go.
        clock: By which times are given.
        now: Seconds since the Unix epoch.
    """

    def __init__(
        self,
        provider: "TracerProvider",
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("flexpert")
        self._offset_s = now() - clock()

    def nanoseconds(self, at: float) -> int:
        """A time of the clock, since the Unix epoch."""
        return round((at + self._offset_s) * 1e9)

    def begin(
        self, name: str, parent: Span | str, at: float, attributes: Attributes | None = None, *, serving: bool = False
    ) -> Span:
        """Begin a span.

        Args:
            name: What goes on.
            parent: Of the same process; or a traceparent, "" for a trace of its own.
            at: When it began, by the clock.
            attributes: What is known of it.
            serving: Whether it answers another process.
        """
        from opentelemetry import trace

        kind = trace.SpanKind.SERVER if serving else trace.SpanKind.INTERNAL
        span = self._tracer.start_span(name, _context(parent), kind, dict(attributes or {}), None, self.nanoseconds(at))
        return Span(self, span)

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()


def tracing_if_usable(service: str) -> Tracing | None:
    """Tracing as this process's variables say; where they cannot be followed that is logged, and serving goes on."""
    try:
        return tracing_of(service)
    except TracingUnusable as wrong:
        log.warning("no traces: %s", wrong)
        return None


def tracing_of(service: str, environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """Tracing as the variables say; None where they ask for none.

    Raises:
        TracingUnusable: They ask for what there is not.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER", "otlp" if any(map(environment.get, _ENDPOINTS)) else "none")
    if exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        processor = BatchSpanProcessor(_exporter(exporter, environment))
        named = {"service.name": service} if not environment.get("OTEL_SERVICE_NAME") else {}
        provider = TracerProvider(resource=Resource.create(named))
    except ImportError as missing:
        text = f"they are asked for, but {missing.name} is not installed: install the extra 'tracing'"
        raise TracingUnusable(text) from missing
    provider.add_span_processor(processor)
    return Tracing(provider)


def _exporter(name: str, environment: Mapping[str, str]) -> Any:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if name != "otlp":
        raise TracingUnusable(f"OTEL_TRACES_EXPORTER is {name!r}: it is otlp, console or none")
    protocol = next(filter(None, map(environment.get, _PROTOCOLS)), "http/protobuf")
    if protocol != "http/protobuf":
        raise TracingUnusable(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}: only http/protobuf is spoken here")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _context(parent: Span | str) -> Any:
    from opentelemetry import trace
    from opentelemetry.context import Context

    if isinstance(parent, Span):
        return trace.set_span_in_context(parent.otel, Context())
    if not parent:
        return Context()
    _, trace_id, span_id, flags = parent.split("-")
    context = trace.SpanContext(int(trace_id, 16), int(span_id, 16), True, trace.TraceFlags(int(flags, 16)))
    return trace.set_span_in_context(trace.NonRecordingSpan(context), Context())
