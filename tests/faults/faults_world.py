"""One pool for all fault injections: API, operator, pool controller, page owners, workers, engines, ingress, clients.

Every part is a process of the host but the API and KubeRay, which the tests play. A test holds a phase, kills or stops
somebody, lets go, and waits until the pool has the wanted size again.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from faults_clients import Clients, reference
from faults_cluster import COPY_BYTES_PER_S, HostCluster, HostPool
from faults_nodes import NUM_ENGINES, Nodes, Process

from flexpert_operator import crds
from flexpert_operator.kube import MOE_DEPLOYMENTS, RAY_CLUSTERS, Kube, api_client
from flexpert_operator.local.kubeapi import KubeApiServer
from flexpert_proto import names, pool_pb2, pool_pb2_grpc
from flexpert_workers import threads
from flexpert_workers.memory.owner.config import OwnerConfig

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "models" / "tiny-moe"
SOURCE = f"file://{MODEL}"
NAME, NAMESPACE = "tiny", "default"
PATIENCE_S = 90.0
LOOK_S = 0.02
RUNNING = (pool_pb2.PENDING, pool_pb2.PREPARE, pool_pb2.COMMIT, pool_pb2.RETIRE)

RAY_CLUSTER_CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "rayclusters.ray.io"},
    "spec": {
        "group": "ray.io",
        "scope": "Namespaced",
        "names": {
            "kind": "RayCluster",
            "listKind": "RayClusterList",
            "plural": "rayclusters",
            "singular": "raycluster",
        },
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


@dataclass(frozen=True)
class Standing:
    """Where a pool stands: its size, the epoch of its table, and who serves."""

    epoch: tuple[int, int]
    workers: tuple[str, ...]


class World:
    """The pool and all around it; `start` makes it serve with two workers, and clients stream."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ended: dict[str, pool_pb2.Phase.ValueType] = {}
        self.nodes = Nodes(folder)
        self._pause = threading.Event()
        services = folder / "services.json"
        services.write_text("{}")
        self._environment = {**os.environ, **threads.environment(1), names.ENV_SERVICES: str(services)}
        self._environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        os.environ[names.ENV_SERVICES] = str(services)
        command = [sys.executable, str(Path(__file__).with_name("faults_host.py")), str(folder), SOURCE]
        self._host = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=self._environment)
        expected = reference(MODEL)
        self._api = KubeApiServer().start()
        self._kubeconfig = self._api.write_kubeconfig(folder / "kubeconfig")
        self.kube = Kube(api_client(self._kubeconfig))
        for crd in (*crds.load_crds(), RAY_CLUSTER_CRD):
            self.kube.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        self.uid = self._create()
        self._port = free_port()
        pool = HostPool(self.nodes, self._port, self._owner_config)
        self.cluster = HostCluster(self.kube, services, NAME, pool, self._ingress_address)
        self.clients = Clients(self._ingress_address, expected)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{self._port}")
        self._control = pool_pb2_grpc.PoolControlStub(self._channel)
        assert self._host.stdout is not None
        assert self._host.stdout.readline() == "ready\n"

    # ---- life

    def _create(self) -> str:
        spec = {
            "model": {"source": SOURCE, "dtype": "Float32"},
            "engines": {"replicas": NUM_ENGINES, "maxBatchTokens": 256, "kvCacheMemory": "32Mi"},
            "experts": {"workers": 2, "memoryPerWorker": "64Mi"},
            "placement": {"rebalance": {"enabled": False}, "solver": {"timeLimitSeconds": 1}},
        }
        body = {"apiVersion": "flexpert.io/v1alpha1", "kind": "MoEDeployment", "metadata": {"name": NAME}, "spec": spec}
        self.kube.create(MOE_DEPLOYMENTS, NAMESPACE, body)
        return str(self.kube.get(MOE_DEPLOYMENTS, NAMESPACE, NAME)["metadata"]["uid"])

    def start(self) -> None:
        """Start every part, and wait until the pool serves."""
        control = names.pool_control_address(NAME, NAMESPACE)
        arguments = [str(self.folder), self.uid, control, f"127.0.0.1:{self._port}"]
        self.nodes.ask("start", name="controller", kind="controller", arguments=arguments, keep=True)
        arguments = [str(self._kubeconfig), NAMESPACE]
        self.nodes.ask("start", name="operator", kind="operator", arguments=arguments, keep=True)
        environment = {
            names.ENV_POOL_CONTROL: control,
            names.ENV_BIND_HOST: "127.0.0.1",
            names.port_variable(names.GRPC_PORT_NAME): "0",
            names.port_variable(names.HTTP_PORT_NAME): "0",
        }
        self.nodes.ask("start", name="ingress", kind="ingress", arguments=[], environment=environment, keep=True)
        self.cluster.start()
        self.settle(2)
        self.clients.start()

    def close(self) -> None:
        """End everything."""
        self.clients.stop()
        self.cluster.stop()
        self._channel.close()
        self.nodes.ask("end")
        self._host.wait()
        assert self._host.stdout is not None
        self._host.stdout.close()
        self._api.stop()
        del os.environ[names.ENV_SERVICES]

    def _owner_config(self, pod: str) -> OwnerConfig:
        return OwnerConfig(
            domain=pod,
            pool=self.uid,
            source=SOURCE,
            dtype="Float32",
            budget_bytes=64 << 20,
            socket=self.nodes.owner_socket(pod),
            bind_host="127.0.0.1",
            socket_dir=str(self.folder / "s"),
            ahead=0,
            copy_bytes_per_s=COPY_BYTES_PER_S,
        )

    def _ingress_address(self) -> str:
        ports = [one.said.get("grpc_port") for one in self.nodes.processes("ingress")]
        return f"127.0.0.1:{ports[0]}" if ports else ""

    # ---- waiting

    def until(self, what: str, holds: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
        """Wait until something holds; returns it."""
        for _ in range(int(seconds / LOOK_S)):
            found = holds()
            if found:
                return found
            self._pause.wait(LOOK_S)
        pytest.fail(f"never came: {what}\n{self.describe()}")

    def describe(self) -> str:
        """All that helps to see why something did not come."""
        said = [f"{path.name}: {path.read_text()[-1500:]}" for path in sorted(self.folder.glob("*.log"))]
        status = self.kube.get(MOE_DEPLOYMENTS, NAMESPACE, NAME).get("status")
        return "\n".join([str(status), str(self.pool()), *said])

    def settle(self, workers: int) -> Standing:
        """Wait until the pool serves with so many workers, and nothing is under way."""

        def settled() -> Standing | None:
            pool = self.pool()
            self._note_end(pool)
            return standing(pool) if pool is not None and self._is_quiet(pool, workers) else None

        found = self.until(f"{workers} workers", settled)
        assert isinstance(found, Standing)
        return found

    def _is_quiet(self, pool: pool_pb2.Pool, workers: int) -> bool:
        ready = {one.id for one in pool.workers if one.state == pool_pb2.Worker.READY}
        holders = {replica.worker for replica in pool.placement}
        engines = [one for one in pool.engines if one.state == pool_pb2.Engine.READY]
        current = all(one.epoch == pool.epoch for one in engines)
        return (
            len(ready) == workers
            and ready == holders
            and not pool.lost
            and len(engines) == NUM_ENGINES
            and current
            and not is_running(pool)
            and self._is_told(workers)
        )

    def _is_told(self, workers: int) -> bool:
        body = self.kube.get(MOE_DEPLOYMENTS, NAMESPACE, NAME)
        status, generation = body.get("status", {}), body["metadata"]["generation"]
        conditions = {
            one["type"]: one["status"]
            for one in status.get("conditions", ())
            if one["observedGeneration"] == generation
        }
        is_settled = conditions.get("Ready") == "True" and conditions.get("Progressing") == "False"
        return is_settled and status["experts"]["workers"] == workers

    # ---- what is there

    def pool(self) -> pool_pb2.Pool | None:
        """What the pool controller knows; None while it is away."""
        try:
            request = pool_pb2.GetPoolRequest(with_placement=True)
            return self._control.GetPool(request, timeout=5.0, wait_for_ready=True)
        except grpc.RpcError:
            return None

    def operation(self) -> str:
        """Id of the operation that runs, or empty."""
        pool = self.pool()
        return pool.operation.id if pool is not None and is_running(pool) else ""

    def ended(self, operation: str) -> str:
        """How an operation ended, as far as `settle` has seen it."""
        if not operation:
            return "done"
        phase = self._ended.get(operation)
        if phase == pool_pb2.SUCCEEDED:
            return "carried through"
        return "rolled back, then done" if phase == pool_pb2.ROLLED_BACK else "taken up by the next controller"

    def _note_end(self, pool: pool_pb2.Pool | None) -> None:
        if pool is not None and not is_running(pool):
            self._ended[pool.operation.id] = pool.operation.phase

    def processes(self, kind: str) -> list[Process]:
        """Those of a kind that run."""
        return self.nodes.processes(kind)

    # ---- what a test does

    def scale(self, workers: int) -> None:
        """What `kubectl scale` does."""
        self.kube.patch(MOE_DEPLOYMENTS, NAMESPACE, NAME, {"spec": {"replicas": workers}}, subresource="scale")

    @contextmanager
    def held(self, kind: str, let_pass: int = 0) -> Iterator[Callable[[], None]]:
        """Hold messages of a kind to workers; gives what waits until one of them is held."""
        gate, held = self.folder / "gate", self.folder / "held"
        held.unlink(missing_ok=True)
        new = self.folder / "gate.new"
        new.write_text(f"{kind} {let_pass}")
        new.replace(gate)
        try:
            yield lambda: self.until(f"{kind} is sent", held.exists)
        finally:
            gate.unlink()

    @contextmanager
    def deletions_held(self) -> Iterator[Callable[[], None]]:
        """Hold pods that are to be deleted; gives what waits until one is to be."""
        self.cluster.holds_deletions = True
        try:
            yield lambda: self.until("a pod is to go", self.to_delete)
        finally:
            self.cluster.holds_deletions = False

    def to_delete(self) -> list[str]:
        """Pods that the operator wants to be deleted."""
        groups = self.kube.get(RAY_CLUSTERS, NAMESPACE, NAME)["spec"]["workerGroupSpecs"]
        return [pod for group in groups for pod in group["scaleStrategy"]["workersToDelete"]]

    def streams_go_on(self) -> None:
        """Wait until clients have received something more, and completed as many requests as there are clients."""
        completed = self.clients.completed + 2
        self.until("completions", lambda: self.clients.completed >= completed or self.clients.wrong)


def is_running(pool: pool_pb2.Pool) -> bool:
    """Whether an operation is under way; a new controller has none to tell of."""
    return pool.HasField("operation") and pool.operation.phase in RUNNING


def standing(pool: pool_pb2.Pool) -> Standing:
    """Where a pool stands."""
    ready = sorted(one.id for one in pool.workers if one.state == pool_pb2.Worker.READY)
    return Standing((pool.epoch.term, pool.epoch.sequence), tuple(ready))


def kill(process: Process) -> None:
    """SIGKILL."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
