"""The runtime as a process against the embedded API, with cheap containers: what KubeRay and a kubelet would do."""

import json
import os
import signal

from local_laptop import Laptop
from local_objects import Object, container

from flexpert_operator.kube import DEPLOYMENTS, PODS, RAY_CLUSTERS, SERVICES
from flexpert_operator.local import processes
from flexpert_operator.local.runtime import books

SLEEP = ("import time", "print('up', flush=True)", "time.sleep(600)")
# Listens on its named port, after a while, and says on which.
LISTEN = (
    "import os, socketserver",
    "port = int(os.environ['FLEXPERT_GRPC_PORT'])",
    "socketserver.TCPServer((os.environ['FLEXPERT_BIND_HOST'], port), socketserver.BaseRequestHandler).serve_forever()",
)


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
