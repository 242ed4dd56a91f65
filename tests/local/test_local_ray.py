"""Two real Ray nodes, as the runtime starts them: they join, keep to loopback, and outlive a head that is killed."""

import json
import os
import signal
import subprocess
import sys
from typing import Any

import psutil
import pytest
from local_laptop import Laptop
from local_objects import Object, container

from flexpert_operator.kube import PODS, RAY_CLUSTERS
from flexpert_operator.local import processes
from flexpert_operator.local.layout import Layout
from flexpert_operator.local.runtime import books, containers, environment
from flexpert_operator.local.runtime.values import LocalPod

pytestmark = [pytest.mark.local, pytest.mark.timeout(600)]

READY_S = 180.0
DRIVER = """
import json, os, sys, ray
ray.init(address="auto", namespace="test", log_to_driver=False, logging_level="ERROR")

@ray.remote(num_cpus=0, resources={"worker": 1})
class Here:
    def where(self):
        return {name: os.environ.get(name) for name in ("FLEXPERT_POD_NAME", "OMP_NUM_THREADS")} | {"pid": os.getpid()}

here = Here.options(name="here", lifetime="detached", get_if_exists=True).remote()
print(json.dumps(ray.get(here.where.remote(), timeout=100)))
"""


def ray_container(name: str) -> Object:
    pod_name = {"name": "FLEXPERT_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    return container(name, env=[pod_name], resources={"limits": {"cpu": "1"}})


def cluster() -> Object:
    def group(name: str, resources: str, **more: Any) -> Object:
        spec = {"terminationGracePeriodSeconds": 10, "containers": [ray_container(name)]}
        parameters = {"num-cpus": "0", "resources": json.dumps(json.dumps({resources: 1}))}
        return {"rayStartParams": parameters, "template": {"spec": spec}, **more}

    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "moe", "namespace": "default"},
        "spec": {
            "headGroupSpec": group("ray-head", "head"),
            "workerGroupSpecs": [
                group("ray-worker", "worker", groupName="experts", replicas=1, minReplicas=0, maxReplicas=1)
            ],
        },
    }


def ready(laptop: Laptop) -> list[Object]:
    found = []
    for pod in laptop.pods():
        conditions = pod.get("status", {}).get("conditions", [])
        if any(item["type"] == "Ready" and item["status"] == "True" for item in conditions):
            found.append(pod)
    return found


def local_of(layout: Layout, *, head: bool) -> LocalPod:
    return next(pod for pod in books.load(layout.pods).values() if pod.is_head == head)


def run_driver(laptop: Laptop) -> dict[str, Any]:
    """Run a driver with the environment that a container of the head's pod would have."""
    head = local_of(laptop.layout, head=True)
    host = containers.Host(laptop.layout, {}, 1, loopback="[::ffff:127.0.0.1]")
    address = containers.gcs_address(host, head)
    values = environment.ray(
        head, str(laptop.layout.ray_token), address, loopback=True, module_path=os.environ.get("PYTHONPATH", "")
    )
    command = [sys.executable, "-c", DRIVER]
    done = subprocess.run(
        command, env={**os.environ, **values}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    [said] = [line for line in done.stdout.splitlines() if line.startswith("{")]  # Ray may say something too
    found: dict[str, Any] = json.loads(said)
    return found


def foreign_listeners(pids: list[int]) -> list[str]:
    """Addresses off the loopback interface that these processes listen on."""
    sockets = [item for pid in pids for item in psutil.Process(pid).net_connections("inet")]
    addresses = [item.laddr.ip for item in sockets if item.status == psutil.CONN_LISTEN]
    assert addresses
    return [address for address in addresses if address.removeprefix("::ffff:") != "127.0.0.1"]


def test_two_nodes_join_keep_to_loopback_and_outlive_a_killed_head(laptop: Laptop) -> None:
    laptop.kube.create(RAY_CLUSTERS, "default", cluster())
    laptop.wait(lambda: len(ready(laptop)) == 2, READY_S)
    first = run_driver(laptop)
    worker, head = local_of(laptop.layout, head=False), local_of(laptop.layout, head=True)
    assert first["FLEXPERT_POD_NAME"] == worker.name
    assert first["OMP_NUM_THREADS"] == "1"
    leaders = [item.process for pod in (worker, head) for item in pod.containers if item.process is not None]
    members = [pid for leader in leaders for pid in processes.session_members(leader)]
    assert first["pid"] in members
    assert foreign_listeners(members) == []

    assert head.containers[0].process is not None
    os.kill(head.containers[0].process.pid, signal.SIGKILL)

    def restarted() -> bool:
        [status] = laptop.kube.get(PODS, "default", head.name)["status"]["containerStatuses"]
        return bool(status["restartCount"] >= 1 and status["ready"])  # a busy machine may need a second try

    laptop.wait(restarted, READY_S)
    assert run_driver(laptop)["pid"] == first["pid"]

    laptop.kube.delete(RAY_CLUSTERS, "default", "moe")
    laptop.wait(lambda: not laptop.all_pods() and not books.load(laptop.layout.pods), READY_S)
    assert [leader for leader in leaders if processes.session_members(leader)] == []
