"""The operator as its chart runs it: the Deployment's arguments, and the chart's service account and nothing else."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from chart_release import NAMESPACE as OPERATOR_NAMESPACE
from chart_release import RELEASE, Chart, Object
from simulated_cluster import SimulatedCluster
from simulated_world import World

from flexpert_operator.errors import KubeNotFound, KubeUnavailable
from flexpert_operator.kube import MOE_DEPLOYMENTS, RAY_CLUSTERS, Kube, Resource, api_client
from flexpert_operator.local.kubeapi import KubeApiServer, ServerConfig
from flexpert_operator.local.kubeapi.authorization import Attributes, service_account
from flexpert_operator.local.up import install_crds
from flexpert_proto import names as pool_names

TOKEN = "the-operators"
LOG = "operator.log"
USER = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{RELEASE}-flexpert"
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


class Server(Protocol):
    """An API server with a release in it."""

    def write_kubeconfig(self, path: Path, token: str | None = None) -> Path:
        """An administrator's, or of whoever the token belongs to."""

    def token_of(self, namespace: str, account: str) -> str:
        """A token of a ServiceAccount."""

    def asked_by(self, user: str) -> set[Permission]:
        """What a user has asked for."""


class EmbeddedServer:
    """The embedded API as a `Server`; a context manager."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: set[tuple[str, Permission]] = set()
        accounts = {TOKEN: service_account(OPERATOR_NAMESPACE, f"{RELEASE}-flexpert")}
        self._api = KubeApiServer(ServerConfig(users=accounts, audit=self._note))

    def _note(self, asked: Attributes) -> None:
        with self._lock:
            self._asked.add((asked.user.name, (asked.group, asked.resource, asked.verb)))

    def __enter__(self) -> "EmbeddedServer":
        self._api.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._api.stop()

    def write_kubeconfig(self, path: Path, token: str | None = None) -> Path:
        """An administrator's, or of whoever the token belongs to."""
        return self._api.write_kubeconfig(path, token)

    def token_of(self, namespace: str, account: str) -> str:
        """The one that there is."""
        assert (namespace, account) == (OPERATOR_NAMESPACE, f"{RELEASE}-flexpert")
        return TOKEN

    def asked_by(self, user: str) -> set[Permission]:
        """What a user has asked for."""
        with self._lock:
            return {permission for name, permission in self._asked if name == user}


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


def await_kinds(kube: Kube, *kinds: Resource, seconds: int = 60) -> None:
    """Wait until what was just defined is served: a MoEDeployment and a RayCluster, unless other kinds are named."""
    pause = threading.Event()
    for _ in range(seconds * 10):
        with contextlib.suppress(KubeNotFound, KubeUnavailable):
            for kind in kinds or (MOE_DEPLOYMENTS, RAY_CLUSTERS):
                kube.list(kind, "default", "")
            return
        pause.wait(0.1)
    raise AssertionError("the kinds are not served")


@contextlib.contextmanager
def run_release(
    chart: Chart, values: Object, folder: Path, server: Server, cluster_type: type[SimulatedCluster] = SimulatedCluster
) -> Iterator[World]:
    """The chart's release in an API server with a simulated KubeRay, until the end of the context.

    The operator runs with the Deployment's arguments as a process, with the rights of its service account.
    """
    services = folder / "services.json"
    services.write_text("{}")
    kubeconfig = server.write_kubeconfig(folder / "kubeconfig")
    kube = Kube(api_client(kubeconfig))
    install_crds(kube)
    await_kinds(kube)
    create(kube, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OPERATOR_NAMESPACE}})
    for body in chart.objects(values):
        create(kube, body)
    pod = chart.one("Deployment", values)["spec"]["template"]["spec"]
    token = server.token_of(OPERATOR_NAMESPACE, pod["serviceAccountName"])
    own = server.write_kubeconfig(folder / "operator-kubeconfig", token)
    with cluster_type(kube, services) as cluster:
        operator = Operator(own, pod["containers"][0]["args"], services, folder / LOG)
        try:
            yield World(kubeconfig, cluster, operator)
        finally:
            operator.stop()
