"""The runtime as a process against the embedded API, with cheap containers: what KubeRay and a kubelet would do."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_objects import Object, container

from flexpert_operator.errors import KubeNotFound
from flexpert_operator.kube import DEPLOYMENTS, PODS, RAY_CLUSTERS, SERVICES, Kube, Resource, api_client
from flexpert_operator.local import processes
from flexpert_operator.local.kubeapi import KubeApiServer
from flexpert_operator.local.layout import ENV_SCRATCH_ROOT, Layout
from flexpert_operator.local.processes import Command, ProcessId
from flexpert_operator.local.runtime import books

RAY_CRD = Path(__file__).parents[2] / "operator/flexpert_operator/local/crds/rayclusters.yaml"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
SLEEP = ("import time", "print('up', flush=True)", "time.sleep(600)")
# Listens on its named port, after a while, and says on which.
LISTEN = (
    "import os, socketserver",
    "port = int(os.environ['FLEXPERT_GRPC_PORT'])",
    "socketserver.TCPServer((os.environ['FLEXPERT_BIND_HOST'], port), socketserver.BaseRequestHandler).serve_forever()",
)


@dataclass
class Laptop:
    layout: Layout
    kube: Kube
    runtime: ProcessId | None = None

    def start(self) -> None:
        argv = [sys.executable, "-m", "flexpert_operator.local.runtime"]
        argv += ["--kubeconfig", str(self.layout.kubeconfig), "--state-dir", str(self.layout.root)]
        environment = {**os.environ, ENV_SCRATCH_ROOT: str(self.layout.root / "scratch")}
        log = self.layout.root / "runtime.log"
        self.runtime, _ = processes.start(Command(argv, environment, log, self.layout.root))

    def kill(self) -> None:
        assert self.runtime is not None
        os.kill(self.runtime.pid, signal.SIGKILL)

    def pods(self, **labels: str) -> list[Object]:
        return [pod for pod in self.all_pods(**labels) if "deletionTimestamp" not in pod["metadata"]]

    def all_pods(self, **labels: str) -> list[Object]:
        return self.kube.list(PODS, "default", ",".join(f"ray.io/{key}={value}" for key, value in labels.items()))

    def running(self, **labels: str) -> list[str]:
        found = [pod for pod in self.pods(**labels) if pod.get("status", {}).get("phase") == "Running"]
        return sorted(pod["metadata"]["name"] for pod in found)

    def is_gone(self, resource: Resource, name: str) -> bool:
        return self.kube.find(resource, "default", name) is None

    def wait(self, what: Callable[[], Any], timeout_s: float = 40) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := what()):
            assert time.monotonic() < deadline, processes.tail(self.layout.root / "runtime.log", 40)
            time.sleep(0.05)
        return found

    def process_of(self, pod: str, name: str = "main") -> ProcessId:
        found = next(item for item in books.load(self.layout.pods).values() if item.name == pod)
        process = found.container(name).process
        assert process is not None
        return process

    def pids(self) -> list[ProcessId]:
        local = books.load(self.layout.pods).values()
        return [item.process for pod in local for item in pod.containers if item.process is not None]


@pytest.fixture(scope="module")
def api() -> Iterator[KubeApiServer]:
    with KubeApiServer() as server:
        yield server


@pytest.fixture
def laptop(api: KubeApiServer, tmp_path: Path) -> Iterator[Laptop]:
    layout = Layout(tmp_path)
    api.write_kubeconfig(layout.kubeconfig)
    kube = Kube(api_client(layout.kubeconfig))
    crd = yaml.safe_load(RAY_CRD.read_text())
    try:
        kube.request("GET", f"{CRDS}/{crd['metadata']['name']}")
    except KubeNotFound:
        kube.request("POST", CRDS, crd)
    here = Laptop(layout, kube)
    here.start()
    yield here
    for resource in (RAY_CLUSTERS, DEPLOYMENTS, SERVICES):
        for obj in kube.list(resource, "default", ""):
            if obj["metadata"]["name"] != "kubernetes":
                kube.delete(resource, "default", obj["metadata"]["name"])
    assert here.runtime is not None
    processes.end_sessions([here.runtime], 20)
    processes.end_sessions(here.pids(), 0)
    for pod in here.all_pods():
        kube.request("DELETE", PODS.path("default", pod["metadata"]["name"]), {"gracePeriodSeconds": 0})


def cluster(num_experts: int, *code: str, grace_s: int = 5) -> Object:
    template = {
        "metadata": {"labels": {"app": "moe"}},
        "spec": {"terminationGracePeriodSeconds": grace_s, "containers": [container("main", *(code or SLEEP))]},
    }
    experts = {"groupName": "experts", "replicas": num_experts, "minReplicas": 0, "maxReplicas": 9}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "moe", "namespace": "default"},
        "spec": {
            "headGroupSpec": {"rayStartParams": {}, "template": template},
            "workerGroupSpecs": [{**experts, "rayStartParams": {}, "template": template}],
        },
    }


def resize(laptop: Laptop, replicas: int, *names: str) -> None:
    found = laptop.kube.get(RAY_CLUSTERS, "default", "moe")
    [experts] = found["spec"]["workerGroupSpecs"]
    experts |= {"replicas": replicas, "scaleStrategy": {"workersToDelete": list(names)}}
    laptop.kube.patch(RAY_CLUSTERS, "default", "moe", {"spec": {"workerGroupSpecs": [experts]}})


def test_a_cluster_comes_up_grows_shrinks_by_name_and_goes(laptop: Laptop) -> None:
    laptop.kube.create(RAY_CLUSTERS, "default", cluster(2))
    laptop.wait(lambda: len(laptop.running()) == 3)
    laptop.wait(lambda: laptop.kube.get(RAY_CLUSTERS, "default", "moe").get("status", {}).get("state") == "ready")
    before = laptop.running(group="experts")
    assert all(processes.alive(laptop.process_of(pod)) for pod in before)

    resize(laptop, 3)
    laptop.wait(lambda: len(laptop.running(group="experts")) == 3)
    assert set(before) < set(laptop.running(group="experts"))

    victim = laptop.process_of(before[0])
    resize(laptop, 2, before[0])
    laptop.wait(lambda: laptop.is_gone(PODS, before[0]))
    assert not processes.alive(victim)
    assert len(laptop.pods(group="experts")) == 2
    assert before[1] in laptop.running()

    everything = laptop.pids()
    laptop.kube.delete(RAY_CLUSTERS, "default", "moe")
    laptop.wait(lambda: not laptop.all_pods())
    laptop.wait(lambda: not books.load(laptop.layout.pods))
    assert [process for process in everything if processes.session_members(process)] == []


def test_a_killed_container_is_started_again_in_its_pod(laptop: Laptop) -> None:
    laptop.kube.create(RAY_CLUSTERS, "default", cluster(1))
    [name] = laptop.wait(lambda: laptop.running(group="experts"))
    first = laptop.process_of(name)
    os.kill(first.pid, signal.SIGKILL)

    def restarted() -> bool:
        statuses = laptop.kube.get(PODS, "default", name)["status"]["containerStatuses"]
        return bool(statuses[0]["restartCount"] == 1 and statuses[0]["ready"])

    laptop.wait(restarted)
    assert laptop.process_of(name) != first
    assert (
        laptop.kube.get(PODS, "default", name)["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"]
        == 137
    )


def test_a_deleted_pod_is_replaced_and_its_deaf_process_killed(laptop: Laptop) -> None:
    deaf = ("import signal, time", "signal.signal(signal.SIGTERM, signal.SIG_IGN)", "time.sleep(600)")
    laptop.kube.create(RAY_CLUSTERS, "default", cluster(1, *deaf, grace_s=1))
    [name] = laptop.wait(lambda: laptop.running(group="experts"))
    process = laptop.process_of(name)
    laptop.kube.delete(PODS, "default", name)
    laptop.wait(lambda: laptop.is_gone(PODS, name) and laptop.running(group="experts"))
    assert not processes.alive(process)


def test_a_deployment_behind_a_service_is_found_once_its_probe_answers(laptop: Laptop) -> None:
    main = container("main", *LISTEN, ports=[{"name": "grpc", "containerPort": 9000}])
    main["readinessProbe"] = {"tcpSocket": {"port": "grpc"}}
    labels = {"app": "web"}
    owned = {"name": "web", "labels": {"app.kubernetes.io/managed-by": "flexpert-operator"}}
    body = {
        "metadata": owned,
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [main]}},
        },
    }
    port = {"name": "grpc", "port": 9000, "targetPort": "grpc"}
    laptop.kube.create(
        SERVICES, "default", {"metadata": {"name": "web"}, "spec": {"selector": labels, "ports": [port]}}
    )
    laptop.kube.create(DEPLOYMENTS, "default", {"apiVersion": "apps/v1", "kind": "Deployment", **body})
    laptop.wait(lambda: laptop.kube.get(DEPLOYMENTS, "default", "web").get("status", {}).get("readyReplicas") == 1)
    table = laptop.wait(lambda: json.loads(laptop.layout.services.read_text()))
    [pod] = books.load(laptop.layout.pods).values()
    assert table["web.default.svc:9000"] == f"127.0.0.1:{pod.ports['grpc']}"

    laptop.kube.delete(DEPLOYMENTS, "default", "web")
    laptop.wait(lambda: json.loads(laptop.layout.services.read_text()) == {})


def test_the_next_runtime_adopts_the_processes_of_one_that_was_killed(laptop: Laptop) -> None:
    laptop.kube.create(RAY_CLUSTERS, "default", cluster(2))
    laptop.wait(lambda: len(laptop.running()) == 3)
    before = {process.pid for process in laptop.pids()}
    laptop.kill()
    gone = laptop.running(group="experts")[0]
    process = laptop.process_of(gone)
    laptop.kube.request("DELETE", PODS.path("default", gone), {"gracePeriodSeconds": 0})  # its object is gone at once
    laptop.start()
    laptop.wait(lambda: len(laptop.running(group="experts")) == 2)
    laptop.wait(lambda: not processes.session_members(process))
    assert len(before & {item.pid for item in laptop.pids()}) == 2


def test_a_container_that_cannot_start_says_why_in_its_status(laptop: Laptop) -> None:
    body = cluster(0)
    del body["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["command"]
    laptop.kube.create(RAY_CLUSTERS, "default", body)

    def message() -> str:
        statuses = [s for pod in laptop.pods() for s in pod.get("status", {}).get("containerStatuses", [])]
        return str(statuses[0]["state"]["waiting"].get("message", "")) if statuses else ""

    assert "no command" in laptop.wait(message)
