"""Plays KubeRay, the Deployment controller and kube-proxy for tests: pods are objects only, pools are `SimulatedPool`s.

It deletes a random pod where KubeRay would, and counts that: the operator must never let it come to this.
"""

import contextlib
import json
import threading
from pathlib import Path
from typing import Any

from simulated_pool import SimulatedPool

from flexpert_operator.api import names
from flexpert_operator.decide.leaving import why_node_leaves
from flexpert_operator.errors import KubeError, KubeNotFound
from flexpert_operator.kube import DEPLOYMENTS, PODS, RAY_CLUSTERS, SERVICES, Kube

NAMESPACE = "default"
TICK_S = 0.02

Object = dict[str, Any]

UNSCHEDULABLE: Object = {
    "phase": "Pending",
    "conditions": [
        {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: 3 Insufficient cpu"}
    ],
}


class SimulatedCluster:
    """A thread that makes pods for every RayCluster and ingress Deployment of the namespace.

    Attributes:
        pools: By name of the MoEDeployment.
        random_deletions: Pods that went without being named.
        unschedulable: Names of MoEDeployments whose new expert pods stay pending.
        broken_cores: Limits of cores with which a container's image cannot be pulled.
        room: How many expert pods of a MoEDeployment find a node; the others stay pending until one goes.
    """

    def __init__(self, kube: Kube, services: Path) -> None:
        self.pools: dict[str, SimulatedPool] = {}
        self.random_deletions: list[str] = []
        self.unschedulable: set[str] = set()
        self.broken_cores: set[str] = set()
        self.room: dict[str, int] = {}
        self._kube = kube
        self._services = services
        self._stop = threading.Event()
        self._count = 0
        self._thread = threading.Thread(target=self._run, name="simulated-cluster", daemon=True)

    def __enter__(self) -> "SimulatedCluster":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        for pool in self.pools.values():
            pool.stop()

    def _run(self) -> None:
        while not self._stop.wait(TICK_S):
            try:
                self._tick()
            except KubeError:
                continue

    def _tick(self) -> None:
        clusters = self._kube.list(RAY_CLUSTERS, NAMESPACE, "")
        kind = {"apiVersion": "apps/v1", "kind": "Deployment"}  # a list says it once, not in each item
        deployments = [kind | one for one in self._kube.list(DEPLOYMENTS, NAMESPACE, "")]
        pods = [pod for pod in self._kube.list(PODS, NAMESPACE, "") if not self._ended(pod)]
        for cluster in clusters:
            self._play_kuberay(cluster, [pod for pod in pods if owned(pod, cluster)])
        for deployment in deployments:
            own = [pod for pod in pods if owned(pod, deployment)]
            for _ in range(deployment["spec"]["replicas"] - len(own)):
                self._create(deployment, deployment["spec"]["template"], ready=True)
        whole = self._services.with_suffix(".new")
        whole.write_text(json.dumps(self._table(clusters)))
        whole.replace(self._services)

    def _ended(self, pod: Object) -> bool:
        """Whether a pod is on its way out; as a kubelet would, the processes that it does not have are seen to end."""
        if "deletionTimestamp" not in pod["metadata"]:
            return False
        path = PODS.path(NAMESPACE, pod["metadata"]["name"])
        with contextlib.suppress(KubeNotFound):
            self._kube.request("DELETE", path, query={"gracePeriodSeconds": "0"})
        return True

    def _play_kuberay(self, cluster: Object, pods: list[Object]) -> None:
        name = cluster["metadata"]["name"]
        if not with_role(pods, names.HEAD_ROLE):
            self._create(cluster, cluster["spec"]["headGroupSpec"]["template"], ready=True)
        if name not in self.pools:
            self.pools[name] = SimulatedPool()
        pool = self.pools[name]
        for group in cluster["spec"]["workerGroupSpecs"]:
            self._play_group(cluster, group, with_role(pods, group["groupName"]))
        self._schedule(name, with_role(pods, names.EXPERTS_ROLE))
        running = [pod for pod in pods if pod.get("status", {}).get("phase") == "Running"]
        pool.set_pods(named(with_role(running, names.EXPERTS_ROLE)), named(with_role(running, names.ENGINES_ROLE)))

    def _play_group(self, cluster: Object, group: Object, pods: list[Object]) -> None:
        listed = group["scaleStrategy"]["workersToDelete"]
        staying = [pod for pod in pods if pod["metadata"]["name"] not in listed]
        for pod in pods:
            if pod not in staying:
                self._kube.delete(PODS, NAMESPACE, pod["metadata"]["name"])
        for pod in staying[: max(len(staying) - group["replicas"], 0)]:
            self.random_deletions.append(pod["metadata"]["name"])
            self._kube.delete(PODS, NAMESPACE, pod["metadata"]["name"])
        experts, name = group["groupName"] == names.EXPERTS_ROLE, cluster["metadata"]["name"]
        stuck = experts and (name in self.unschedulable or name in self.room)
        for _ in range(group["replicas"] - len(staying)):
            self._create(cluster, group["template"], ready=not stuck)

    def _create(self, owner: Object, template: Object, ready: bool) -> None:
        self._count += 1
        metadata = owner["metadata"]
        reference = {key: owner[key] for key in ("apiVersion", "kind")}
        reference |= {"name": metadata["name"], "uid": metadata["uid"]}
        labels = template["metadata"]["labels"] | {names.RAY_CLUSTER_LABEL: metadata["name"]}
        name = f"{metadata['name']}-{labels[names.ROLE_LABEL]}-{self._count:04}"
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels, "ownerReferences": [reference]},
            "spec": template["spec"] | {"nodeName": self._place()},
        }
        self._kube.create(PODS, NAMESPACE, pod)
        self._set_status(name, self._started(template) if ready else UNSCHEDULABLE)

    def _set_status(self, name: str, status: Object) -> None:
        self._kube.patch(PODS, NAMESPACE, name, {"status": status}, subresource="status")

    def _started(self, template: Object) -> Object:
        """What becomes of a pod that has a node."""
        container = template["spec"]["containers"][0]
        if container["resources"]["limits"]["cpu"] not in self.broken_cores:
            return {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
        return {
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}],
            "containerStatuses": [
                {
                    "name": container["name"],
                    "image": container["image"],
                    "imageID": "",
                    "ready": False,
                    "restartCount": 0,
                    "state": {"waiting": waiting},
                }
            ],
        }

    def _schedule(self, name: str, pods: list[Object]) -> None:
        """Pending pods get the room that there is, also those that found none when they were made."""
        if name in self.unschedulable:
            return
        pending = [pod for pod in pods if pod.get("status", {}).get("conditions") == UNSCHEDULABLE["conditions"]]
        free = self.room.get(name, len(pods)) - (len(pods) - len(pending))
        for pod in pending[: max(free, 0)]:
            self._set_status(pod["metadata"]["name"], self._started(pod))

    def _place(self) -> str:
        """A node that takes pods, in turn; where there are no Nodes, there is one without an object."""
        nodes = self._kube.request("GET", "/api/v1/nodes")["items"]
        open_ones = [node["metadata"]["name"] for node in nodes if not why_node_leaves(node)]
        return open_ones[self._count % len(open_ones)] if open_ones else "node"

    def _table(self, clusters: list[Object]) -> dict[str, str]:
        table = {}
        for service in self._kube.list(SERVICES, NAMESPACE, ""):
            cluster = (service["spec"].get("selector") or {}).get(names.RAY_CLUSTER_LABEL)
            if cluster in self.pools and any(one["metadata"]["name"] == cluster for one in clusters):
                address = f"{service['metadata']['name']}.{NAMESPACE}.svc:{service['spec']['ports'][0]['port']}"
                table[address] = f"127.0.0.1:{self.pools[cluster].port}"
        for cluster in clusters:
            table[names.ingress_address(cluster["metadata"]["name"], NAMESPACE, 9000)] = "127.0.0.1:45678"
        return table


def owned(pod: Object, owner: Object) -> bool:
    """Whether `owner` is the owner of a pod that is not on its way out."""
    references = pod["metadata"].get("ownerReferences") or []
    return any(reference["uid"] == owner["metadata"]["uid"] for reference in references)


def with_role(pods: list[Object], role: str) -> list[Object]:
    """The pods that play a role."""
    return [pod for pod in pods if pod["metadata"]["labels"].get(names.ROLE_LABEL) == role]


def named(pods: list[Object]) -> tuple[str, ...]:
    """Names of pods."""
    return tuple(pod["metadata"]["name"] for pod in pods)
