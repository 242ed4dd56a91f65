"""One pool of processes: API, operator, pool controller, page owners, workers, engines, ingress, clients.

Every part is a process of the host but the API and KubeRay, which the tests play. A test holds a phase, kills or stops
somebody, lets go, and waits until the pool has the wanted size again.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from faults_clients import Clients, reference
from faults_cluster import COPY_BYTES_PER_S, HostCluster, HostPool
from faults_nodes import NUM_ENGINES, Nodes, Process
from faults_pool import MODEL, NAME, NAMESPACE, SOURCE, WatchedPool

from flexpert_operator.kube import MOE_DEPLOYMENTS, Kube, api_client
from flexpert_operator.local.kubeapi import KubeApiServer
from flexpert_operator.local.up import install_crds
from flexpert_proto import names
from flexpert_workers import threads
from flexpert_workers.memory.owner.config import OwnerConfig

HEAD_AWAY_S = 5.0


class World:
    """The pool and all around it; `start` makes it serve with two workers, and clients stream."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes = Nodes(folder)
        services = folder / "services.json"
        services.write_text("{}")
        self._environment = {**os.environ, **threads.environment(1), names.ENV_SERVICES: str(services)}
        self._environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        os.environ[names.ENV_SERVICES] = str(services)
        command = [sys.executable, str(Path(__file__).with_name("faults_host.py")), str(folder), SOURCE]
        self._host = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=self._environment)
        self._expected = reference(MODEL)
        self._api = KubeApiServer().start()
        self._kubeconfig = self._api.write_kubeconfig(folder / "kubeconfig")
        self.kube = Kube(api_client(self._kubeconfig))
        install_crds(self.kube)
        self.uid = self._create()
        self._port = free_port()
        address = f"127.0.0.1:{self._port}"
        pool = HostPool(self.nodes, self._port, self._owner_config)
        self.cluster = HostCluster(self.kube, services, NAME, pool, self.ingress_address)
        clients = self.new_clients()
        self.pool = WatchedPool(folder, self.kube, lambda: address, NUM_ENGINES, clients, self._tails)
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
            names.ENV_ENGINE_WAIT: "300",
            names.port_variable(names.GRPC_PORT_NAME): "0",
            names.port_variable(names.HTTP_PORT_NAME): "0",
        }
        self.nodes.ask("start", name="ingress", kind="ingress", arguments=[], environment=environment, keep=True)
        self.cluster.start()
        self.pool.settle(2)
        self.pool.clients.start()

    def new_clients(self) -> Clients:
        """Clients that do not stream yet."""
        return Clients(self.ingress_address, self._expected)

    def ingress_address(self, port: str = "grpc_port") -> str:
        """Where the ingress listens."""
        ports = [one.said.get(port) for one in self.nodes.processes("ingress")]
        return f"127.0.0.1:{ports[0]}" if ports else ""

    def close(self) -> None:
        """End everything."""
        self.pool.close()
        self.cluster.stop()
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

    def _tails(self) -> str:
        said = [f"{path.name}: {path.read_text()[-1500:]}" for path in sorted(self.folder.glob("*.log"))]
        return "\n".join(said)

    @contextmanager
    def deletions_held(self) -> Iterator[Callable[[], None]]:
        """Hold pods that are to be deleted; gives what waits until one is to be."""
        self.cluster.holds_deletions = True
        try:
            yield lambda: self.pool.until("a pod is to go", self.pool.to_delete)
        finally:
            self.cluster.holds_deletions = False

    def lose_head(self) -> None:
        """As far as processes can play it: the pool controller dies, and no other comes until a head is back."""
        self.nodes.ask("lose_head", away_s=HEAD_AWAY_S)

    def processes(self, kind: str) -> list[Process]:
        """Those of a kind that run."""
        return self.nodes.processes(kind)


def kill(process: Process) -> None:
    """SIGKILL."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
