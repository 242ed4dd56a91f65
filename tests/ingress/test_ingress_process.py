"""The ingress as a server: health, reflection, HTTP, its configuration, and the process under SIGTERM."""

import asyncio
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from ingress_fake_engine import expected_token
from ingress_fake_pool import FakePool
from ingress_program import ingress_process

from flexpert_proto import pool_pb2
from flexpert_proto.client import AsyncGenerationClient, Unavailable
from flexpert_workers.ingress import IngressConfig
from flexpert_workers.ingress.admission import Admission
from flexpert_workers.ingress.config import from_environment
from flexpert_workers.ingress.engines import engine_facts

Start = Callable[..., Any]


async def check_health(port: int, service: str) -> int:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int((await stub.Check(health_pb2.HealthCheckRequest(service=service))).status)


async def get(port: int, path: str) -> tuple[int, str]:
    def fetch() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(fetch)


async def test_health_and_readiness_follow_the_first_engine(
    pool: FakePool, start_engine: Start, start_ingress: Start
) -> None:
    response = health_pb2.HealthCheckResponse
    async with start_ingress(wait=False) as ingress:
        assert await check_health(ingress.grpc_port, "") == response.NOT_SERVING
        assert await get(ingress.http_port, "/ready") == (503, "not ready\n")
        assert await get(ingress.http_port, "/health") == (200, "ok\n")
        pool.set_engines({"a": start_engine().endpoint})
        while await check_health(ingress.grpc_port, "flexpert.v1.Generation") != response.SERVING:
            pass
        assert await get(ingress.http_port, "/ready") == (200, "ready\n")


async def test_an_ingress_of_a_pool_that_idles_takes_requests_and_tells_that_they_wait(
    pool: FakePool, start_engine: Start, start_ingress: Start
) -> None:
    async with start_ingress(wait=False) as ingress, AsyncGenerationClient(f"127.0.0.1:{ingress.grpc_port}") as client:
        pool.let_idle()
        while await get(ingress.http_port, "/ready") != (200, "ready\n"):
            pass
        status, models = await get(ingress.http_port, "/v1/models")
        assert (status, "tiny" in models) == (200, True)
        waiting = asyncio.create_task(client.generate((1, 2), max_tokens=5))
        async with asyncio.timeout(60):
            while (await pool.reports.get()).figures.gauges["ingress_waiting"] != 1:
                pass
        pool.set_engines({"a": start_engine().endpoint})
        assert len((await waiting).tokens) == 5


async def test_metrics_count(pool: FakePool, start_engine: Start, start_ingress: Start) -> None:
    pool.set_engines({"a": start_engine().endpoint})
    async with start_ingress() as ingress, AsyncGenerationClient(f"127.0.0.1:{ingress.grpc_port}") as client:
        await client.generate((1, 2), max_tokens=5)
        status, text = await get(ingress.http_port, "/metrics")
    lines = text.splitlines()
    assert status == 200
    assert "flexpert_ingress_tokens_total 5.0" in lines
    assert 'flexpert_ingress_ended_total{how="length"} 1.0' in lines


async def test_reflection_describes_the_service(start_ingress: Start) -> None:
    request = reflection_pb2.ServerReflectionRequest
    async with (
        start_ingress(wait=False) as ingress,
        grpc.aio.insecure_channel(f"127.0.0.1:{ingress.grpc_port}") as channel,
    ):
        asked = [request(list_services=""), request(file_containing_symbol="flexpert.v1.Generation")]
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        services, files = [response async for response in stub.ServerReflectionInfo(iter(asked))]
    listed = {service.name for service in services.list_services_response.service}
    assert {"flexpert.v1.Generation", "grpc.health.v1.Health"} <= listed
    described = descriptor_pb2.FileDescriptorProto.FromString(files.file_descriptor_response.file_descriptor_proto[0])
    assert [method.name for method in described.service[0].method] == ["Generate", "Tokenize"]


async def test_a_hanging_engine_is_left(
    pool: FakePool, start_engine: Start, start_engine_process: Start, start_ingress: Start
) -> None:
    hanging = start_engine_process(delay_s=0.01)
    pool.set_engines({"a": hanging.endpoint})
    async with (
        start_ingress(hang_timeout_s=2.0) as ingress,
        AsyncGenerationClient(f"127.0.0.1:{ingress.grpc_port}") as client,
    ):
        pieces = client.generate_stream((1, 2), max_tokens=40, seed=3)
        first = await anext(pieces)
        hanging.process.send_signal(signal.SIGSTOP)
        pool.set_engines({"b": start_engine().endpoint})
        ids = first.token_ids + tuple([token async for piece in pieces for token in piece.token_ids])
    assert ids == tuple(expected_token((1, 2), 3, position) for position in range(40))


async def test_streams_go_on_while_the_pool_controller_is_away(
    pool: FakePool, start_engine: Start, start_ingress: Start
) -> None:
    first, second = start_engine(), start_engine()
    pool.set_engines({"a": first.endpoint})
    async with start_ingress() as ingress, AsyncGenerationClient(f"127.0.0.1:{ingress.grpc_port}") as client:
        await pool.stop()
        await client.generate((1, 2), max_tokens=5)
        pool.set_engines({})
        await pool.start()
        await client.generate((1, 2), max_tokens=5)
        pool.set_engines({"b": second.endpoint})
        while not second.submitted:
            await client.generate((1, 2), max_tokens=5)


async def generate_for_ever(client: AsyncGenerationClient) -> None:
    while True:
        await client.generate((1, 2), max_tokens=1)


async def test_sigterm_lets_open_streams_end_and_takes_no_more(pool: FakePool, start_engine: Start) -> None:
    pool.set_engines({"a": start_engine(delay_s=0.01).endpoint})
    async with ingress_process(pool) as (process, ports):
        address = f"127.0.0.1:{ports['grpc_port']}"
        async with AsyncGenerationClient(address) as client, AsyncGenerationClient(address, tries=1) as late:
            pieces = client.generate_stream((1, 2), max_tokens=60, seed=3)
            first = await anext(pieces)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(Unavailable):
                await generate_for_ever(late)
            ids = first.token_ids + tuple([token async for piece in pieces for token in piece.token_ids])
        assert await process.wait() == 0
    assert ids == tuple(expected_token((1, 2), 3, position) for position in range(60))


def test_an_ingress_needs_neither_torch_nor_ray() -> None:
    code = "import sys, flexpert_workers.ingress; print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_configuration_comes_from_the_environment() -> None:
    environment = {
        "FLEXPERT_POOL_CONTROL": "tiny-pool-control.default.svc:7000",
        "FLEXPERT_POOL": '{"uid": "u", "name": "tiny", "namespace": "default"}',
        "FLEXPERT_GRPC_PORT": "1234",
    }
    config = from_environment(environment)
    assert config == IngressConfig(
        pool_control="tiny-pool-control.default.svc:7000",
        model_name="tiny",
        namespace="default",
        bind_host="0.0.0.0",
        grpc_port=1234,
        http_port=8000,
    )


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, "FLEXPERT_POOL_CONTROL"),
        ({"FLEXPERT_POOL_CONTROL": "a:1", "FLEXPERT_POOL": "{"}, "FLEXPERT_POOL must"),
        ({"FLEXPERT_POOL_CONTROL": "a:1", "FLEXPERT_HTTP_PORT": "x"}, "FLEXPERT_HTTP_PORT"),
    ],
)
def test_a_bad_environment_is_named(environment: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        from_environment(environment)


def test_the_wait_predicted_is_the_time_between_ends() -> None:
    now = [0.0]
    admission = Admission(2, lambda: now[0])
    assert admission.retry_after_s() == 1.0
    for _ in range(10):
        with admission.slot():
            now[0] += 2.0
    assert admission.retry_after_s() == pytest.approx(1.8)
    assert admission.num_open == 0


def test_engines_given_up_or_without_an_address_are_not_dialled() -> None:
    engine, state = pool_pb2.Engine, pool_pb2.Engine
    listed = pool_pb2.EngineList(
        engines=[
            engine(id="r", endpoint="ipc://r", state=state.READY, running=2, waiting=1),
            engine(id="s", endpoint="ipc://s", state=state.STARTING),
            engine(id="l", endpoint="ipc://l", state=state.LOST),
            engine(id="n", state=state.STARTING),
        ]
    )
    facts = engine_facts(listed)
    assert [(f.id, f.ready, f.load) for f in facts] == [("r", True, 3), ("s", False, 0)]
