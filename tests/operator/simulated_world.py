"""The operator for real (kopf, Kubernetes client, gRPC) against the embedded API, a simulated KubeRay and pool.

The tests of `test_operator_*.py` that need all of it share this.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer

import kopf
import pytest
import yaml
from faulty_api import FaultyApi
from operator_process import moe_deployment
from simulated_cluster import NAMESPACE, SimulatedCluster
from simulated_pool import SimulatedPool

from flexpert_operator.handlers import Scope, assemble
from flexpert_operator.kube import MOE_DEPLOYMENTS, PODS, POLICIES, RAY_CLUSTERS, Kube, Resource, api_client
from flexpert_operator.local.kubeapi import KubeApiServer
from flexpert_operator.local.up import install_crds
from flexpert_operator.metrics import Metrics
from flexpert_operator.nodes import NodeNotices
from flexpert_operator.settings import Settings
from flexpert_proto import names as pool_names

NODES = "/api/v1/nodes"
ROOT = Path(__file__).parents[2]
EVENTS = Resource("", "v1", "events")
SETTINGS = Settings(
    resync_s=0.5,
    busy_s=0.05,
    refresh_s=0.2,
    provision_deadline_s=10,
    inspect_retry_s=0.2,
    drain_deadline_s=60,
    headroom_wait_s=0.5,
    settle_s=0.5,
    streams_deadline_s=60,
)
PATIENT = replace(SETTINGS, provision_deadline_s=300)
"""Where pods may come late because the API server is made to fail."""

Object = dict[str, Any]


class Operator:
    """The operator in a thread of its own."""

    def __init__(self, kubeconfig: Path, settings: Settings = SETTINGS, clock: Callable[[], float] = time.time) -> None:
        self._kubeconfig = kubeconfig
        self._settings = settings
        self._clock = clock
        self.nodes = NodeNotices()
        self.metrics = Metrics()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="operator", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop it and wait until it has ended."""
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        scope = Scope((NAMESPACE,), self.nodes)
        registry = assemble(api_client(self._kubeconfig), self._settings, scope, self.metrics, clock=self._clock)
        asyncio.run(kopf.operator(registry=registry, standalone=True, namespaces=[NAMESPACE], stop_flag=self._stop))


class World:
    """The API, the simulated cluster, the operator (one in a thread, or whatever has `stop`), and what tests do."""

    def __init__(
        self,
        kubeconfig: Path,
        cluster: SimulatedCluster,
        operator: Any = None,
        proxy: FaultyApi | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.kubeconfig = kubeconfig
        self.clock = clock
        self.proxy = proxy
        self.kube = Kube(api_client(kubeconfig))
        self.cluster = cluster
        reached = proxy.write_kubeconfig(kubeconfig.with_name("faulty")) if proxy else kubeconfig
        self.operator: Any = operator or Operator(reached, PATIENT if proxy else SETTINGS, clock)
        self.servers: list[WSGIServer] = []
        self._pause = threading.Event()

    def until(self, what: str, holds: Callable[[], Any], seconds: float = 90.0) -> None:
        """Wait until something holds."""
        for _ in range(int(seconds / 0.02)):
            if holds():
                return
            self._pause.wait(0.02)
        there = [one for kind in (MOE_DEPLOYMENTS, POLICIES) for one in self.kube.list(kind, NAMESPACE, "")]
        pytest.fail(f"never came: {what}\n{yaml.safe_dump([{**one, 'metadata': None} for one in there])}")

    def clean(self) -> None:
        """Delete what a test leaves: an operator that looks after twenty objects at once is slower at each."""
        for body in self.kube.list(MOE_DEPLOYMENTS, NAMESPACE, ""):
            self.kube.delete(MOE_DEPLOYMENTS, NAMESPACE, body["metadata"]["name"])
        for node in self.kube.request("GET", NODES)["items"]:
            self.kube.request("DELETE", f"{NODES}/{node['metadata']['name']}")

    def apply(self, name: str, **experts: Any) -> SimulatedPool | None:
        """Create a MoEDeployment with two workers."""
        self.kube.create(MOE_DEPLOYMENTS, NAMESPACE, moe_deployment(name, **experts))
        return None

    def serve(self, name: str, **experts: Any) -> SimulatedPool:
        """Create a MoEDeployment and wait until it is served."""
        self.apply(name, **experts)
        self.until(f"{name} is ready", lambda: self.is_settled(name))
        return self.cluster.pools[name]

    def get(self, name: str) -> Object:
        """The MoEDeployment."""
        return self.kube.get(MOE_DEPLOYMENTS, NAMESPACE, name)

    def patch(self, name: str, spec: Object) -> None:
        """Change the spec."""
        self.kube.patch(MOE_DEPLOYMENTS, NAMESPACE, name, {"spec": spec})

    def scale(self, name: str, workers: int) -> None:
        """What `kubectl scale` does."""
        self.kube.patch(MOE_DEPLOYMENTS, NAMESPACE, name, {"spec": {"replicas": workers}}, subresource="scale")

    def condition(self, name: str, kind: str) -> tuple[str, str]:
        """Status and reason of a condition, of the newest spec."""
        body = self.get(name)
        for one in body.get("status", {}).get("conditions", ()):
            if one["type"] == kind and one["observedGeneration"] == body["metadata"]["generation"]:
                return one["status"], one["reason"]
        return "", ""

    def is_settled(self, name: str) -> bool:
        """Whether it serves and nothing is under way."""
        return self.condition(name, "Ready")[0] == "True" and self.condition(name, "Progressing")[0] == "False"

    def group(self, name: str, role: str = "experts") -> Object:
        """A worker group of its RayCluster."""
        groups = self.kube.get(RAY_CLUSTERS, NAMESPACE, name)["spec"]["workerGroupSpecs"]
        return next(group for group in groups if group["groupName"] == role)

    def reconciliations(self, name: str) -> float:
        """How often it was looked at, as the operator's metrics say."""
        labels = {"namespace": NAMESPACE, "name": name}
        found = self.operator.metrics.registry.get_sample_value("flexpert_reconciliations_total", labels)
        return found or 0.0

    def reasons(self, name: str) -> list[str]:
        """Reasons of its Events."""
        events = self.kube.list(EVENTS, NAMESPACE, "")
        return [event["reason"] for event in events if event["involvedObject"]["name"] == name]


@contextlib.contextmanager
def run_world(folder: Path, faulty: bool = False, clock: Callable[[], float] = time.time) -> Iterator[World]:
    """All of it, until the end of the context; where it is `faulty`, the operator reaches the API through a proxy.

    `clock`: by which policies are decided.
    """
    services = folder / "services.json"
    services.write_text("{}")
    patch = pytest.MonkeyPatch()
    patch.setenv(pool_names.ENV_SERVICES, str(services))
    with contextlib.ExitStack() as stack:
        api = stack.enter_context(KubeApiServer())
        proxy = stack.enter_context(FaultyApi(api.url, api.token)) if faulty else None
        kubeconfig = api.write_kubeconfig(folder / "kubeconfig")
        kube = Kube(api_client(kubeconfig))
        install_crds(kube)
        with SimulatedCluster(kube, services) as cluster:
            world = World(kubeconfig, cluster, proxy=proxy, clock=clock)
            yield world
            world.operator.stop()
            for server in world.servers:
                server.shutdown()
                server.server_close()
    patch.undo()


def pool_pods(world: World, name: str, role: str = "experts") -> list[Object]:
    selector = f"flexpert.io/moedeployment={name},flexpert.io/role={role}"
    return world.kube.list(PODS, NAMESPACE, selector)
