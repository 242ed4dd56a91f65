"""A pool controller's ports are sent what is no message, and messages that ask for what cannot be."""

import asyncio
import http.client
import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from malformed import HTTP, NUM_FRAMES, bodies, broken, either, flat, messages, send_all, send_and_leave

from flexpert_proto import pool_pb2 as pb
from flexpert_workers.pool.metrics_server import serve_metrics
from flexpert_workers.pool.service import serve
from flexpert_workers.ui import serve_ui

pytestmark = pytest.mark.timeout(max(300, NUM_FRAMES))
RIGHT = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.PERMISSION_DENIED,
}
PEEK_S = 0.2
"""Streams that have begun are left after this."""

PLAN = pb.Plan(
    moves=[pb.Move(expert=pb.Expert(layer=0, index=0), target="w-1", sources=[""])],
    target=[pb.Replica(expert=pb.Expert(layer=0, index=index), worker="w-1", share=1.0) for index in range(4)],
)
SPEC = pb.PoolSpec(
    uid="uid-1",
    name="tiny",
    namespace="default",
    model=pb.Model(source="file:///model"),
    engines=pb.EngineSpec(replicas=1),
    experts=pb.ExpertSpec(memory_per_worker_bytes=10_000),
)
REPORT = pb.EngineReport(engine=pb.Engine(id="e", state=pb.Engine.READY), pool="uid-1", digest="digest")
FIGURES = pb.Figures(incarnation="i", at=1.0, histograms={"a": pb.Histogram(bounds=[1.0], counts=[1, 2])})


def requests(incarnation: str) -> dict[str, tuple[type[Message], Message]]:
    """A message of each method that could be valid."""
    reconfigure = pb.ReconfigureRequest(operation_id="op", cause=pb.SCALE, plan=PLAN)
    control: dict[str, Message] = {
        "Configure": pb.ConfigureRequest(incarnation=incarnation, term=1, generation=1, spec=SPEC),
        "InspectModel": pb.InspectModelRequest(model=SPEC.model),
        "GetPool": pb.GetPoolRequest(with_placement=True, with_loads=True, with_figures=True),
        "WatchPool": pb.GetPoolRequest(refresh_seconds=1.0),
        "Drain": pb.DrainRequest(workers=["w-1"]),
        "Plan": reconfigure,
        "Reconfigure": reconfigure,
        "WatchOperation": pb.WatchOperationRequest(operation_id="op"),
        "Cancel": pb.CancelRequest(operation_id="op"),
        "RecordTrace": pb.RecordTraceRequest(tokens=5, seconds=0.05),
    }
    membership: dict[str, Message] = {
        "Attach": REPORT,
        "WatchEngines": pb.WatchEnginesRequest(),
        "ReportIngress": pb.IngressReport(pool="uid-1", ingress="i", figures=FIGURES),
        "SendTrace": pb.TraceChunk(recording="r", engine="e", layers=2, top_k=1, sequences=[0], lengths=[1]),
    }
    found = {f"/flexpert.v1.PoolControl/{name}": one for name, one in control.items()}
    found |= {f"/flexpert.v1.PoolMembership/{name}": one for name, one in membership.items()}
    return {method: (type(one), one) for method, one in found.items()}


class Port:
    """Sends frames to methods, and judges their ends."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def send(self, method: str, frame: bytes) -> None:
        name = method.rpartition("/")[2]
        peeks = name in ("WatchPool", "WatchOperation", "WatchEngines", "Attach", "RecordTrace")
        call = self._channel.stream_stream(method)(iter((frame,)), timeout=PEEK_S if peeks else 300)
        try:
            for _ in call:
                if peeks:
                    call.cancel()
        except grpc.RpcError as error:
            ends = {grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED} if peeks else set()
            assert error.code() in RIGHT | ends, error  # noqa: PT017 - a wrong one is the failure


async def test_what_is_malformed_gets_the_right_status(rig: Any) -> None:
    server, port = await serve(rig.controller, "127.0.0.1:0")
    asked = requests(rig.controller.incarnation)

    def attack(number: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            sender = Port(channel)
            for method, (kind, valid) in asked.items():
                frames = either(broken(valid.SerializeToString()), messages(kind, valid))
                send_all(frames, lambda frame, method=method: sender.send(method, frame), number)

    await asyncio.to_thread(flat, attack, number=max(20, NUM_FRAMES // len(asked)))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.unary_unary("/flexpert.v1.PoolControl/GetPool", response_deserializer=pb.Pool.FromString)
        assert (await ask(b"", timeout=60)).incarnation == rig.controller.incarnation
    await server.stop(None)


PLAN_BODY = {"without": ["w-1"], "replicas": 1, "moves": 3, "seconds": 0.1}


async def test_page_and_metrics_take_any_bytes(rig: Any) -> None:
    page, metrics = await serve_ui(rig.controller, "127.0.0.1:0"), await serve_metrics(rig.controller, "127.0.0.1:0")

    def ask(method: str, port: int, path: str, body: bytes | None = None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request(method, path, body, {"content-type": "application/json"})
            return connection.getresponse().status
        finally:
            connection.close()

    def plan(body: bytes) -> None:
        assert ask("POST", page.port, "/ui/api/plan", body) in (400, 409)  # there is nothing to plan here

    def attack(number: int) -> None:
        for port, path in ((page.port, b"/ui/api/plan"), (metrics.port, b"/metrics")):
            frames = broken(HTTP.replace(b"/v1/completions", path))
            send_all(frames, lambda frame, port=port: send_and_leave(port, frame), number)
        send_all(either(broken(json.dumps(PLAN_BODY).encode()), bodies(PLAN_BODY, "other")), plan, number)

    await asyncio.to_thread(flat, attack)
    assert await asyncio.to_thread(ask, "GET", page.port, "/ui/api/pool") == 200
    assert await asyncio.to_thread(ask, "GET", metrics.port, "/metrics") == 200
    await page.stop()
    await metrics.stop()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Frames of strangers are no reason for a traceback in a log."""
    yield
    assert not [record for record in caplog.records if record.exc_info and record.name.startswith("grpc")]
