"""Traces of a live pool, as a real OTLP receiver gets them: one request, one reconfiguration; and none by default."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from observed_pool import ObservedPool
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from flexpert_proto import generation_pb2, generation_pb2_grpc
from flexpert_proto.tracing import Tracing, TracingUnusable, tracing_if_usable, tracing_of
from flexpert_workers.engine.spans import EngineSpans
from flexpert_workers.ingress.caller import caller_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
PARTS = ("flexpert-ingress", "flexpert-engine", "flexpert-pool-controller")


class Receiver(ThreadingHTTPServer):
    """Takes spans by OTLP over HTTP."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[tuple[str, Span]] = []

    def of(self, trace: str) -> list[tuple[str, Span]]:
        return [(service, span) for service, span in list(self.spans) if span.trace_id.hex() == trace]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        import gzip

        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.server.spans += [(attributes["service.name"], span) for span in scope.spans]
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def traced(receiver: Receiver) -> Iterator[ObservedPool]:
    """A pool of its own, whose parts are told by the standard variables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.server_address[1]}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        tracings = {part: tracing_if_usable(part) for part in PARTS}
        pool = ObservedPool(*tracings.values())
        try:
            pool.start()
            yield pool
        finally:
            pool.close()


def named(spans: list[tuple[str, Span]], name: str, service: str = "") -> list[Span]:
    return [span for who, span in spans if span.name == name and service in ("", who)]


def attributes_of(span: Span) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def assert_is_whole(spans: list[tuple[str, Span]], tokens: int, caller: bytes, layers: int) -> None:
    (generate,) = named(spans, "generate", "flexpert-ingress")
    (queue,) = named(spans, "queue", "flexpert-ingress")
    (engine,) = named(spans, "engine", "flexpert-engine")
    assert generate.parent_span_id == caller
    assert generate.kind == engine.kind == Span.SPAN_KIND_SERVER
    assert queue.parent_span_id == engine.parent_span_id == generate.span_id
    parts = [named(spans, name, "flexpert-engine") for name in ("queue", "prefill", "decode")]
    ends = engine.start_time_unix_nano
    for (part,) in parts:
        assert part.parent_span_id == engine.span_id
        assert abs(part.start_time_unix_nano - ends) < 1000, "one part follows another"
        ends = part.end_time_unix_nano
    assert ends == engine.end_time_unix_nano
    assert generate.start_time_unix_nano <= engine.start_time_unix_nano + 1_000_000
    dispatches = named(spans, "dispatch", "flexpert-engine")
    assert {attributes_of(one)["flexpert.layer"] for one in dispatches} == set(range(layers))
    assert len(dispatches) < tokens * layers, "they are sampled"
    for dispatch in dispatches:
        assert dispatch.parent_span_id == engine.span_id
        took_us = (dispatch.end_time_unix_nano - dispatch.start_time_unix_nano) / 1000
        assert 0 < attributes_of(dispatch)["flexpert.compute_us"] <= took_us
    said = attributes_of(generate)
    assert said["flexpert.output_tokens"] == tokens
    assert said["flexpert.finish"] == "length"
    assert said["flexpert.ttft_s"] > 0


def test_a_request_over_grpc_is_one_trace_with_the_callers(traced: ObservedPool, receiver: Receiver) -> None:
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{traced.ingress.grpc_port}") as channel:
        parameters = generation_pb2.SamplingParameters(max_tokens=12, ignore_eos=True)
        request = generation_pb2.GenerateRequest(text="def f():\n", parameters=parameters)
        metadata = (("traceparent", TRACEPARENT), ("x-request-id", "mine"))
        list(generation_pb2_grpc.GenerationStub(channel).Generate(request, metadata=metadata))
    traced.eventually(lambda: {"generate", "engine", "dispatch"} <= {span.name for _, span in receiver.of(TRACE)})
    traced.eventually(lambda: len(named(receiver.of(TRACE), "decode")) == 1)
    assert_is_whole(receiver.of(TRACE), 12, bytes.fromhex(CALLER), traced.pool().model.layers)
    for name in ("generate", "engine"):
        assert attributes_of(named(receiver.of(TRACE), name)[0])["flexpert.request_id"] == "mine"


def test_a_request_over_http_is_one_too(traced: ObservedPool, receiver: Receiver) -> None:
    trace = TRACE[::-1]
    with openai.OpenAI(base_url=f"http://127.0.0.1:{traced.ingress.http_port}/v1", api_key="-") as client:
        headers = {"traceparent": f"00-{trace}-{CALLER}-01"}
        client.completions.create(
            model="", prompt="x = ", max_tokens=5, extra_headers=headers, extra_body={"ignore_eos": True}
        )
    traced.eventually(lambda: {"generate", "engine"} <= {span.name for _, span in receiver.of(trace)})
    assert_is_whole(receiver.of(trace), 5, bytes.fromhex(CALLER), traced.pool().model.layers)


def test_what_the_caller_does_not_sample_is_not_told(traced: ObservedPool, receiver: Receiver) -> None:
    unsampled, own = "a" * 32, len(receiver.spans)
    with openai.OpenAI(base_url=f"http://127.0.0.1:{traced.ingress.http_port}/v1", api_key="-") as client:
        headers = {"traceparent": f"00-{unsampled}-{CALLER}-00"}
        client.completions.create(model="", prompt="x = ", max_tokens=2, extra_headers=headers)
        client.completions.create(model="", prompt="x = ", max_tokens=2, extra_headers={"traceparent": "nonsense"})
    traced.eventually(lambda: any(span.name == "generate" for _, span in receiver.spans[own:]))
    assert not receiver.of(unsampled)


def test_a_reconfiguration_is_a_trace_with_its_phases(traced: ObservedPool, receiver: Receiver) -> None:
    operation = traced.move("traced", 0)
    found: list[Span] = []

    def came() -> bool:
        spans = named(receiver.spans, "reconfiguration", "flexpert-pool-controller")
        found[:] = [span for span in spans if attributes_of(span)["flexpert.operation"] == "traced"]
        return bool(found)

    traced.eventually(came)
    said = attributes_of(found[0])
    assert (said["flexpert.cause"], said["flexpert.outcome"]) == ("rebalance", "succeeded")
    assert said["flexpert.moved_bytes"] == operation.moved_bytes
    assert found[0].status.code != Status.STATUS_CODE_ERROR
    parts = [span for _, span in receiver.of(found[0].trace_id.hex()) if span.parent_span_id == found[0].span_id]
    phases = [span.name for span in sorted(parts, key=lambda span: span.start_time_unix_nano)]
    assert [name for name in phases if name != "pending"] == ["prepare", "commit", "retire"]


def test_nothing_is_imported_or_made_where_nobody_asks() -> None:
    assert tracing_of("flexpert-ingress", {}) is None
    for off in ({"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}):
        assert tracing_of("x", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", **off}) is None
    code = (
        "import sys, flexpert_proto.tracing as t, flexpert_workers.ingress.meter, flexpert_workers.engine.meter\n"
        "assert t.tracing_if_usable('x') is None\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, "otlp, console or none"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf"),
    ],
)
def test_what_cannot_be_had_is_told(variables: dict[str, str], says: str) -> None:
    with pytest.raises(TracingUnusable, match=says):
        tracing_of("x", variables)


@pytest.mark.parametrize("sent", ["", "00-0-0-01", f"00-{'0' * 32}-{CALLER}-01", f"00-{TRACE}-{'0' * 16}-01", TRACE])
def test_a_traceparent_that_is_none_is_not_passed_on(sent: str) -> None:
    assert caller_of({"traceparent": sent}, "host").traceparent == ""
    assert caller_of({"traceparent": TRACEPARENT}, "host").traceparent == TRACEPARENT


def test_spans_go_where_they_are_told_in_a_process() -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider, clock=lambda: 5.0, now=lambda: 1005.0)
    span = tracing.begin("a", "", 6.0, {"x": 1})
    span.child("b", 6.5, 7.0)
    span.end(8.0, error="it broke")
    EngineSpans(tracing).stepped([])
    child, parent = exporter.get_finished_spans()
    assert (parent.start_time, parent.end_time) == (1006 * 10**9, 1008 * 10**9)
    assert (child.start_time, child.end_time) == (1006_500_000_000, 1007 * 10**9)
    assert child.parent is not None
    assert child.parent.span_id == parent.context.span_id  # type: ignore[union-attr]
    assert parent.status.description == "it broke"
    tracing.close()
