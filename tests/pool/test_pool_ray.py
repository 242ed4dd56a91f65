"""The pool inside Ray: controller actor, worker actors, an engine by Serve, on nodes of this host (DESIGN §9)."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import psutil
import pytest
import zmq

from flexpert_operator import local
from flexpert_proto import names, pool_pb2, pool_pb2_grpc
from flexpert_workers.messages import generation
from flexpert_workers.pool.state import Cause

pytestmark = pytest.mark.local

WAIT_S = 150.0
RAY = [sys.executable, "-m", "flexpert_operator.local.ray_start", "start", "--block"]
MINIMAL = Path(local.__file__).parent / "ray_minimal"
COMMON = [
    "--node-ip-address=127.0.0.1",
    "--object-store-memory=80000000",
    "--disable-usage-stats",
    "--dashboard-agent-listen-port=0",
    "--dashboard-agent-grpc-port=0",
    "--metrics-export-port=0",
    "--runtime-env-agent-port=0",
    "--min-worker-port=0",
    "--max-worker-port=0",
]


class Cluster:
    """Ray nodes and the head's launcher, each a session of its own, ended by pid."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uid = f"t{secrets.token_hex(3)}"
        self.gcs_port, self.control_port, self.ui_port = free_port(), free_port(), free_port()
        self.gcs_address = f"[::ffff:127.0.0.1]:{self.gcs_port}"  # Ray would put the outward address for 127.0.0.1
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        services = folder / "services.json"
        control = names.pool_control_address("tiny", "default")
        services.write_text(json.dumps({control: f"127.0.0.1:{self.control_port}"}))
        self.processes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ADDRESS": self.gcs_address,
            "RAY_enable_metrics_collection": "0",
            "RAY_START_HOOK": "flexpert_operator.local.ray_start_hook.keep_to_loopback",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(MINIMAL), os.environ.get("PYTHONPATH")))),
            names.ENV_POOL: json.dumps({"uid": self.uid, "name": "tiny", "namespace": "default"}),
            names.ENV_SERVICES: str(services),
            names.ENV_BIND_HOST: "127.0.0.1",
            names.port_variable(names.POOL_CONTROL_PORT_NAME): str(self.control_port),
            names.port_variable(names.UI_PORT_NAME): str(self.ui_port),
            names.port_variable(names.METRICS_PORT_NAME): "0",
        }

    def head(self) -> None:
        options = ["--head", f"--port={self.gcs_port}", "--num-cpus=0", "--include-dashboard=false"]
        self.node("h", options, {names.HEAD_RESOURCE: 1})

    def worker(self, name: str, resources: dict[str, int]) -> None:
        self.node(name, [f"--address={self.gcs_address}", "--num-cpus=1"], resources)

    def node(self, name: str, options: list[str], resources: dict[str, int]) -> None:
        """Start a node and wait for it; as a kubelet does, try again when it does not come up.

        On a busy machine it may not: a raylet gives its agents 15 seconds to start, and aborts.
        """
        arguments = [*options, *COMMON, f"--temp-dir={self.folder / name}", f"--resources={json.dumps(resources)}"]
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            process = self.start([*RAY, *arguments], name)
            log = self.folder / f"{name}-{len(self.processes) - 1}.log"
            while process.poll() is None:
                if "Ray runtime started" in log.read_text():
                    return
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
            time.sleep(1.0)  # as a kubelet pauses before it tries again
        raise AssertionError(f"node {name} does not start")

    def page(self) -> dict[str, Any]:
        """The state as the controller's page has it."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ui_port}/ui/api/pool", timeout=WAIT_S) as answer:
            return json.load(answer)

    def launcher(self) -> subprocess.Popen[bytes]:
        return self.start([sys.executable, "-m", "flexpert_workers.serving.head"], "h")

    def start(self, command: list[str], pod: str) -> subprocess.Popen[bytes]:
        folder = self.folder / pod
        folder.mkdir(exist_ok=True)
        own = {names.ENV_POD: f"pod-{pod}", names.ENV_NODE: "laptop", names.ENV_SOCKET_DIR: str(folder / "x")}
        log = (self.folder / f"{pod}-{len(self.processes)}.log").open("wb")
        process = subprocess.Popen(
            command,
            env={**self.environment, **own, "RAY_TMPDIR": str(folder)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def close(self) -> None:
        descendants = [one for process in self.processes for one in family(process.pid)]
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        psutil.wait_procs(descendants, timeout=8)
        for one in {*descendants, *(child for process in self.processes for child in family(process.pid))}:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        for process in self.processes:
            process.wait()


def family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="fxr", ignore_cleanup_errors=True) as folder:
        made = Cluster(Path(folder))
        try:
            yield made
        finally:
            made.close()


class Operator:
    """What the operator does: observes, grants a term, reconfigures."""

    def __init__(self, cluster: Cluster, source: str) -> None:
        self.cluster = cluster
        self.source = source
        channel = grpc.insecure_channel(f"127.0.0.1:{cluster.control_port}")
        self.control = pool_pb2_grpc.PoolControlStub(channel)

    def pool(self) -> pool_pb2.Pool:
        request = pool_pb2.GetPoolRequest(with_placement=True, with_loads=True)
        return self.control.GetPool(request, wait_for_ready=True, timeout=WAIT_S)

    def until(self, true: Callable[[pool_pb2.Pool], Any]) -> pool_pb2.Pool:
        request = pool_pb2.GetPoolRequest(with_placement=True)
        for pool in self.control.WatchPool(request, timeout=WAIT_S):
            if true(pool):
                return pool
        raise AssertionError("the stream ended")

    def configure(self, term: int) -> None:
        spec = pool_pb2.PoolSpec(
            uid=self.cluster.uid,
            name="tiny",
            namespace="default",
            model=pool_pb2.Model(source=self.source, dtype="Auto"),
            engines=pool_pb2.EngineSpec(replicas=1, max_batch_tokens=128, kv_cache_bytes=1 << 22),
            experts=pool_pb2.ExpertSpec(workers_per_pod=1, memory_per_worker_bytes=1 << 28),
        )
        incarnation = self.pool().incarnation
        self.control.Configure(pool_pb2.ConfigureRequest(incarnation=incarnation, term=term, generation=1, spec=spec))

    def place(self, name: str, cause: Cause) -> pool_pb2.Operation:
        pool = self.pool()
        workers = [worker.id for worker in pool.workers if worker.state == pool_pb2.Worker.READY]
        held = {worker.id: set(worker.experts) for worker in pool.workers}
        request = pool_pb2.ReconfigureRequest(
            operation_id=name, base_epoch=pool.epoch, cause=pool_pb2.Cause.Value(cause.value)
        )
        for number in range(pool.model.layers * pool.model.experts):
            expert = pool_pb2.Expert(layer=number // pool.model.experts, index=number % pool.model.experts)
            target = workers[number % len(workers)]
            request.plan.target.add(expert=expert, worker=target, share=1.0)
            if number not in held[target]:
                request.plan.moves.add(expert=expert, target=target, sources=[""])
        self.control.Reconfigure(request)
        *_, last = self.control.WatchOperation(pool_pb2.WatchOperationRequest(operation_id=name), timeout=WAIT_S)
        return last


def ready(pool: pool_pb2.Pool) -> list[pool_pb2.Worker]:
    return [worker for worker in pool.workers if worker.state == pool_pb2.Worker.READY]


def generate(endpoint: str, tokens: int) -> list[int]:
    """Greedy tokens through the engine's own socket."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(endpoint)
        submit = generation.Submit(1, (5, 6, 7, 8), (), generation.Sampling(max_tokens=tokens, temperature=0.0))
        dealer.send(msgspec.msgpack.encode([submit]))
        decoder = msgspec.msgpack.Decoder(list[generation.GenerationReply])
        ids: list[int] = []
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            if not dealer.poll(1000):
                continue
            for reply in decoder.decode(dealer.recv_multipart()[-1]):
                assert isinstance(reply, generation.TokenOutput), reply
                ids.extend(reply.token_ids)
                if reply.finish is not None:
                    assert reply.finish is generation.Finish.LENGTH
                    return ids
    raise AssertionError("no answer")


@pytest.mark.timeout(900)
def test_pool_inside_ray(cluster: Cluster, tiny_checkpoint: str) -> None:
    cluster.head()
    launcher = cluster.launcher()
    operator = Operator(cluster, tiny_checkpoint)
    cluster.worker("a", {names.WORKER_RESOURCE: 1, names.ENGINE_RESOURCE: 1})
    cluster.worker("b", {names.WORKER_RESOURCE: 1})
    assert operator.pool().term == 0
    assert cluster.page()["pool"]["uid"] == cluster.uid
    operator.configure(term=1)
    pool = operator.until(lambda pool: len(ready(pool)) == 2)
    assert {worker.pod for worker in pool.workers} == {"pod-a", "pod-b"}
    assert operator.place("initial", Cause.INITIAL).phase == pool_pb2.SUCCEEDED
    pool = operator.until(lambda pool: any(engine.state == pool_pb2.Engine.READY for engine in pool.engines))
    engine = pool.engines[0]
    assert engine.expert_bytes == 0
    before = generate(engine.endpoint, 8)
    assert len(before) == 8

    victim = ready(pool)[0]
    os.kill(victim.pid, signal.SIGKILL)
    assert generate(engine.endpoint, 8) == before
    pool = operator.until(lambda pool: len(ready(pool)) == 2 and victim.id not in [one.id for one in ready(pool)])
    assert not pool.lost
    assert pool.operation.cause == pool_pb2.FAILURE

    # The controller dies: Ray makes the next incarnation, which finds everything and asks for a higher term.
    (controller,) = descendants_named(cluster, "ControllerActor")
    incarnation = pool.incarnation
    controller.kill()
    assert generate(engine.endpoint, 8) == before
    heir = next_incarnation(operator, incarnation)
    assert heir.epoch == pool.epoch
    found = (pool_pb2.Worker.READY, pool_pb2.Worker.STANDBY)  # until it is told how many are wanted, the empty stand by
    assert {worker.id for worker in heir.workers if worker.state in found} == {worker.id for worker in ready(pool)}
    with pytest.raises(grpc.RpcError) as refused:
        operator.configure(term=1)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    operator.configure(term=2)
    pool = operator.until(lambda pool: pool.epoch.term == 2 and len(pool.engines) == 1)
    assert pool.engines[0].id == engine.id, "a new controller replaces no engine"

    # The launcher comes and goes; its end takes nothing along, and nodes that join later are still used.
    launcher.terminate()
    assert launcher.wait() == 0
    cluster.worker("c", {names.WORKER_RESOURCE: 1})
    pool = operator.until(lambda pool: len(ready(pool)) == 3)
    assert operator.place("grow", Cause.SCALE).phase == pool_pb2.SUCCEEDED
    assert generate(engine.endpoint, 8) == before


def next_incarnation(operator: Operator, old: str) -> pool_pb2.Pool:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(grpc.RpcError):
            pool = operator.pool()
            if pool.incarnation != old:
                return pool
    raise AssertionError("no other incarnation came")


def descendants_named(cluster: Cluster, title: str) -> list[psutil.Process]:
    return [one for node in cluster.processes for one in family(node.pid) if title in " ".join(one.cmdline())]
