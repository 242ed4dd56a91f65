"""The operator as its chart runs it: the Deployment's arguments, and the chart's service account and nothing else."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from chart_release import NAMESPACE as OPERATOR_NAMESPACE
from chart_release import RELEASE, Chart, Object
from simulated_cluster import SimulatedCluster
from simulated_world import World

from flexpert_operator.kube import Kube, api_client
from flexpert_operator.local.kubeapi import KubeApiServer, ServerConfig
from flexpert_operator.local.kubeapi.authorization import Attributes, service_account
from flexpert_operator.local.up import install_crds
from flexpert_proto import names as pool_names

TOKEN = "the-operators"
PLURALS = {"NetworkPolicy": "networkpolicies"}
Permission = tuple[str, str, str]
"""(API group, resource, verb)."""


class Operator:
    """The operator's process; `stop` ends it."""

    def __init__(self, kubeconfig: Path, arguments: list[str], services: Path, log: Path) -> None:
        own = [one for one in arguments if not one.startswith(("--liveness=", "--metrics="))]
        ports = [f"--metrics=127.0.0.1:{free_port()}", f"--liveness=http://127.0.0.1:{free_port()}/healthz"]
        command = [sys.executable, "-m", "flexpert_operator", "--kubeconfig", str(kubeconfig), *own, *ports]
        self.log = log
        with log.open("w") as output:
            environment = os.environ | {pool_names.ENV_SERVICES: str(services)}
            self._process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)

    def stop(self) -> None:
        """End it and wait."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Recorder:
    """What a user asked of the API."""

    def __init__(self, user: str) -> None:
        self._user = user
        self._lock = threading.Lock()
        self._asked: set[Permission] = set()

    def __call__(self, asked: Attributes) -> None:
        """Told by the server."""
        if asked.user.name == self._user:
            with self._lock:
                self._asked.add((asked.group, asked.resource, asked.verb))

    @property
    def asked(self) -> set[Permission]:
        """So far."""
        with self._lock:
            return set(self._asked)


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def create(kube: Kube, body: Object) -> None:
    """Create any object, in its namespace or at cluster scope."""
    group, _, version = body["apiVersion"].rpartition("/")
    base = f"/apis/{group}/{version}" if group else f"/api/{version}"
    namespace = body["metadata"].get("namespace")
    scope = f"/namespaces/{namespace}" if namespace else ""
    plural = PLURALS.get(body["kind"], body["kind"].lower() + "s")
    kube.request("POST", f"{base}{scope}/{plural}", body)


@contextlib.contextmanager
def run_release(chart: Chart, values: Object, folder: Path) -> Iterator[tuple[World, Recorder]]:
    """The chart's release in an API of its own with a simulated KubeRay, until the end of the context."""
    services = folder / "services.json"
    services.write_text("{}")
    account = chart.one("Deployment", values)["spec"]["template"]["spec"]["serviceAccountName"]
    user = service_account(OPERATOR_NAMESPACE, account)
    recorder = Recorder(user.name)
    with KubeApiServer(ServerConfig(users={TOKEN: user}, audit=recorder)) as api:
        kubeconfig = api.write_kubeconfig(folder / "kubeconfig")
        kube = Kube(api_client(kubeconfig))
        install_crds(kube)
        create(kube, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OPERATOR_NAMESPACE}})
        for body in chart.objects(values):
            create(kube, body)
        (container,) = chart.one("Deployment", values)["spec"]["template"]["spec"]["containers"]
        # The release's own Deployment has no pods here: the operator is a process, and the simulated cluster
        # only plays the namespace of the pools.
        with SimulatedCluster(kube, services) as cluster:
            own = api.write_kubeconfig(folder / "operator-kubeconfig", TOKEN)
            operator = Operator(own, container["args"], services, folder / f"{RELEASE}.log")
            try:
                yield World(kubeconfig, cluster, operator), recorder
            finally:
                operator.stop()
