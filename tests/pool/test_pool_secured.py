"""A whole pool of processes over TCP with everything on: it answers its client, and nobody else."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from certificates import Authority, pool_credentials, pool_environment
from pool_processes import PATIENCE_S, POOL, facts_of, patient

from flexpert_proto import generation_pb2 as pb
from flexpert_proto import names
from flexpert_proto.client import AsyncGenerationClient, GenerationError, GenerationFailed, Unavailable
from flexpert_proto.credentials import serving_identity
from flexpert_workers.ingress import Ingress, IngressConfig
from flexpert_workers.pool.controller import PoolController
from flexpert_workers.pool.links import ControlLink
from flexpert_workers.pool.service import serve
from flexpert_workers.pool.state import Cause, Phase, PoolSpec, Slot
from flexpert_workers.pool.subprocesses import Host, SubprocessEngines, SubprocessWorkers

NAME, NAMESPACE, HOST = "tiny-moe", "default", "127.0.0.1"
SOURCE = f"file://{Path(__file__).parents[2] / 'examples' / 'models' / 'tiny-moe'}"
TOKEN = "a-token-of-a-test-" + "x" * 20
SPEC = PoolSpec(
    uid=POOL,
    name=NAME,
    namespace=NAMESPACE,
    source=SOURCE,
    dtype="Float32",
    memory_per_worker_bytes=1 << 28,
    kv_cache_bytes=1 << 26,
    engine_replicas=1,
    engine_threads=1,
    worker_threads=1,
)


@dataclass
class Secured:
    """What a client of the pool is given, and what it talks to."""

    rig: Any
    ingress: Ingress
    credentials: grpc.ChannelCredentials
    pids: Callable[[], list[int]]

    def client(self, token: str = TOKEN, credentials: grpc.ChannelCredentials | None = None) -> AsyncGenerationClient:
        address = f"{HOST}:{self.ingress.grpc_port}"
        return AsyncGenerationClient(address, token=token, credentials=credentials or self.credentials, tries=2)


def certificates(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[IngressConfig, grpc.ChannelCredentials]:
    """Everything that Secrets would hold, and what a client needs."""
    members, front, clients = Authority("members"), Authority("front"), Authority("clients")
    for name, value in pool_environment(pool_credentials(folder / "pool", members, NAME, NAMESPACE)).items():
        monkeypatch.setenv(name, value)
    client = clients.issue(folder / "client", "alice")
    (folder / "tokens.json").write_text(json.dumps({"tokens": [{"name": "alice", "token": TOKEN}]}))
    identity = serving_identity(
        {
            names.ENV_SERVING_CERTIFICATE: str(front.issue(folder / "front", HOST)),
            names.ENV_CLIENT_AUTHORITIES: str(client),
        }
    )
    plain, name = names.pool_control_address(NAME, NAMESPACE), names.pool_identity(NAME, NAMESPACE)
    config = IngressConfig(
        pool_control=names.secured(plain, name), identity=identity, tokens_file=str(folder / "tokens.json")
    )
    shown = [(client / file).read_bytes() for file in (names.PRIVATE_KEY_KEY, names.CERTIFICATE_KEY)]
    return config, grpc.ssl_channel_credentials(front.certificate, *shown)


@pytest.fixture
async def secured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    controller_settings: Any,
    rig_type: Any,
    new_slot: Callable[[int], Slot],
) -> AsyncIterator[Secured]:
    config, credentials = certificates(tmp_path, monkeypatch)
    services = tmp_path / "services.json"
    monkeypatch.setenv(names.ENV_SERVICES, str(services))
    workers = SubprocessWorkers([new_slot(0), new_slot(1)], Host())
    engines = SubprocessEngines(config.pool_control, Host())

    async def inspect(source: str, revision: str, dtype: str) -> Any:
        return await asyncio.to_thread(facts_of, source, revision, dtype)

    controller = PoolController(patient(controller_settings()), workers, engines, ControlLink, inspect)
    server, port = await serve(controller, f"{HOST}:0")
    services.write_text(json.dumps({names.pool_control_address(NAME, NAMESPACE): f"{HOST}:{port}"}))
    await controller.start()
    rig = rig_type(controller, workers)
    ingress = Ingress(config)
    try:
        controller.configure(controller.incarnation, 1, 1, SPEC)
        await rig.ready(2, timeout_s=PATIENCE_S)
        assert (await rig.reconfigure("initial", placement(rig, 0), Cause.INITIAL)).phase is Phase.SUCCEEDED
        await ingress.start()
        await rig.until(lambda: ingress.ready, timeout_s=PATIENCE_S)

        def pids() -> list[int]:
            return [*engines.pids(), *(workers.pid(worker.id) for worker in controller.fleet.all())]

        yield Secured(rig, ingress, credentials, pids)
    finally:
        await ingress.stop()
        await controller.stop()
        await server.stop(None)
        engines.kill_all()
        workers.kill_all()


def placement(rig: Any, shift: int) -> dict[tuple[int, int], dict[str, float]]:
    """Every expert on one of the two workers; another shift moves all of them."""
    both = sorted(worker.id for worker in rig.controller.fleet.all())
    experts = sorted(rig.controller.model.all_experts())
    return {expert: {both[(number + shift) % 2]: 1.0} for number, expert in enumerate(experts)}


def listening(pid: int) -> list[int]:
    sockets = psutil.Process(pid).net_connections("inet")
    return [one.laddr.port for one in sockets if one.status == psutil.CONN_LISTEN]


def said_to_a_stranger(port: int) -> bytes:
    """All that a port says to one who speaks ZeroMQ without a key, until it hangs up."""
    with socket.create_connection((HOST, port), timeout=PATIENCE_S) as sock:
        sock.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48))
        heard = b""
        try:
            while piece := sock.recv(4096):
                heard += piece
        except ConnectionError:
            pass
    return heard


@pytest.mark.timeout(900)
async def test_a_pool_with_everything_on_answers_its_client_alone(secured: Secured) -> None:
    async with secured.client() as client:
        before = await client.generate("def ", max_tokens=12, temperature=0, timeout_s=PATIENCE_S)
        assert before.finish_reason == pb.FINISH_LENGTH

        moved = await secured.rig.reconfigure("swap", placement(secured.rig, 1))  # every page goes to the other worker
        assert moved.phase is Phase.SUCCEEDED, moved.message
        assert moved.moved_experts > 0
        after = await client.generate("def ", max_tokens=12, temperature=0, timeout_s=PATIENCE_S)
        assert after.text == before.text

    async with secured.client(token="another-" + "y" * 20) as client:
        with pytest.raises(GenerationFailed, match="UNAUTHENTICATED"):
            await client.generate("def ", max_tokens=1)
    strangers: tuple[grpc.ChannelCredentials, ...] = (grpc.ssl_channel_credentials(), grpc.local_channel_credentials())
    for credentials in strangers:
        async with secured.client(credentials=credentials) as client:
            with pytest.raises((Unavailable, GenerationError)):
                await client.generate("def ", max_tokens=1)

    ports = [port for pid in secured.pids() for port in listening(pid)]
    assert len(ports) >= 1 + 2 * 3  # an engine's; of each worker for dispatches, control and copies
    for port in ports:
        heard = await asyncio.to_thread(said_to_a_stranger, port)
        assert b"NULL" not in heard  # a ZeroMQ socket greets with CURVE, and another one with an alert or nothing
