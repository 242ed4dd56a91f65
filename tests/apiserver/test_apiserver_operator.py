"""The operator on a real API server: its faults, and the election. Pods and pools are played (`tests/operator`)."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from operator_process import OperatorProcess, moe_deployment
from real_api_server import RealApiServer
from simulated_cluster import NAMESPACE, SimulatedCluster
from simulated_world import PATIENT, Operator, World

from flexpert_operator.errors import KubeError
from flexpert_operator.kube import MOE_DEPLOYMENTS, RAY_CLUSTERS, Kube, Resource, api_client
from flexpert_operator.local.up import install_crds
from flexpert_proto import names as pool_names

pytestmark = pytest.mark.envtest
LEASES = Resource("coordination.k8s.io", "v1", "leases")
AWAY_S = 30.0
LEASE_S = 9.0


@pytest.fixture(scope="module")
def kubeconfig(api: RealApiServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = api.write_kubeconfig(tmp_path_factory.mktemp("operator") / "kubeconfig")
    kube = Kube(api_client(path))
    install_crds(kube)
    for resource in (MOE_DEPLOYMENTS, RAY_CLUSTERS):
        for _ in range(300):
            with contextlib.suppress(KubeError):
                kube.list(resource, NAMESPACE, "")
                break
            wait(0.2)
    return path


@pytest.fixture(scope="module")
def world(kubeconfig: Path) -> Iterator[World]:
    services = kubeconfig.with_name("services.json")
    services.write_text("{}")
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv(pool_names.ENV_SERVICES, str(services))
        cluster = stack.enter_context(SimulatedCluster(Kube(api_client(kubeconfig)), services))
        world = World(kubeconfig, cluster, Operator(kubeconfig, PATIENT))
        stack.callback(world.operator.stop)
        yield world


def wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def test_it_scales(world: World) -> None:
    pool = world.serve("plain")
    world.scale("plain", 3)
    world.until("three workers", lambda: world.is_settled("plain") and len(pool.holders()) == 3)
    world.scale("plain", 2)
    world.until("two workers", lambda: world.is_settled("plain") and len(pool.holders()) == 2)
    assert world.cluster.random_deletions == []


def test_nothing_is_written_when_nothing_changes(world: World) -> None:
    world.serve("still")
    world.until("it has come to rest", lambda: world.is_settled("still"))
    wait(2.0)
    before = world.get("still")["metadata"]["resourceVersion"]
    looks = world.reconciliations("still")
    world.until("it has been looked at", lambda: world.reconciliations("still") >= looks + 5)
    assert world.get("still")["metadata"]["resourceVersion"] == before


def test_an_api_server_that_is_killed_in_the_middle_of_a_reconfiguration(world: World, api: RealApiServer) -> None:
    pool = world.serve("killed")
    pool.hold = True
    world.scale("killed", 4)
    world.until("preparing", lambda: world.condition("killed", "Progressing") == ("True", "Preparing"))
    with api.killed():
        wait(AWAY_S / 2)
        pool.release()
        wait(AWAY_S / 2)
    world.until("four workers", lambda: world.is_settled("killed") and len(pool.holders()) == 4, 180)
    assert len({request.operation_id for request in pool.requests}) == len(pool.requests) == 2
    assert world.cluster.random_deletions == []


def test_etcd_that_is_paused(world: World, api: RealApiServer) -> None:
    pool = world.serve("paused")
    world.scale("paused", 3)
    with api.etcd_paused():
        wait(AWAY_S / 2)
    world.until("three workers", lambda: world.is_settled("paused") and len(pool.holders()) == 3, 180)
    assert world.cluster.random_deletions == []


def holder(kube: Kube) -> str:
    found = kube.find(LEASES, "default", "election")
    return str((found or {"spec": {}})["spec"].get("holderIdentity", ""))


def test_the_election_on_a_real_lease(kubeconfig: Path, tmp_path: Path, api: RealApiServer) -> None:
    kube = Kube(api_client(kubeconfig))
    kube.request("POST", "/api/v1/namespaces", {"metadata": {"name": "elected"}})
    options = ("--leader-elect", "--lease-namespace", "default", "--lease-name", "election")
    options += ("--lease-seconds", str(LEASE_S), "--namespace", "elected")
    with OperatorProcess(kubeconfig, tmp_path / "a.log", *options) as one:
        one.until("it leads", lambda: holder(kube))
        first = holder(kube)
        with OperatorProcess(kubeconfig, tmp_path / "b.log", *options) as other:
            other.until("it waits", lambda: "waits for the lease" in other.log())
            one.process.send_signal(signal.SIGSTOP)
            other.until("another leads", lambda: holder(kube) not in ("", first))
            kube.create(MOE_DEPLOYMENTS, "elected", moe_deployment("led"))
            other.until("its RayCluster", lambda: kube.find(RAY_CLUSTERS, "elected", "led"))
            one.process.send_signal(signal.SIGCONT)
            assert one.process.wait(60) == 1
            other.process.send_signal(signal.SIGTERM)
            assert other.process.wait(60) == 0
            assert holder(kube) == ""
