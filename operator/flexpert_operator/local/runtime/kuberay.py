"""KubeRay's decisions about a RayCluster's pods and status, its traps included. Pure; `decide` calls it.

As KubeRay does with in-tree autoscaling off:

- a group's `replicas` are held between `minReplicas` and `maxReplicas`;
- every pod named in `workersToDelete` goes, whatever `replicas` says; names without a pod are passed over;
- where more pods are left than wanted, *random* ones go. A stale name in `workersToDelete` thus costs a random pod;
- a changed template applies to new pods only; nothing rolls;
- a pod that has failed, or has ended for good, is deleted and replaced.
"""

import copy
import random
from collections.abc import Iterator

from flexpert_operator.local.runtime.objects import (
    condition,
    has_condition,
    is_deleted,
    is_owned_by,
    is_ready,
    key_of,
    label_of,
    name_suffix,
    owner_reference,
    phase_of,
    timestamp,
)
from flexpert_operator.local.runtime.values import (
    CLUSTER_LABEL,
    GROUP_LABEL,
    HEAD_GROUP,
    HOST,
    NODE_NAME,
    NODE_TYPE_LABEL,
    Action,
    CreatePod,
    DeletePod,
    Object,
    WriteStatus,
)

_LABEL_LENGTH = 63


def decide_cluster(cluster: Object, pods: tuple[Object, ...], now: float, rng: random.Random) -> Iterator[Action]:
    """Actions that bring a RayCluster's pods and status to what its spec says.

    Args:
        cluster: The RayCluster.
        pods: All Pods there are.
        now: Seconds since the Unix epoch.
        rng: Chooses name suffixes and the random pods of a shrink.
    """
    own = [pod for pod in pods if is_owned_by(pod, cluster) and not is_deleted(pod)]
    if not is_deleted(cluster):
        yield from _decide_head(cluster, own, rng)
        for group in cluster["spec"].get("workerGroupSpecs") or []:
            yield from _decide_group(cluster, group, own, rng)
    yield from _decide_status(cluster, own, now)


def desired_replicas(cluster: Object, group: Object) -> int:
    """Pods that a group should have."""
    if is_suspended(cluster) or group.get("suspend"):
        return 0
    replicas = max(int(group.get("replicas") or 0), int(group.get("minReplicas") or 0))
    return min(replicas, int(group.get("maxReplicas", replicas))) * int(group.get("numOfHosts") or 1)


def is_suspended(cluster: Object) -> bool:
    """Whether the whole RayCluster should have no pods."""
    return bool(cluster["spec"].get("suspend"))


def _decide_head(cluster: Object, own: list[Object], rng: random.Random) -> Iterator[Action]:
    heads = [pod for pod in own if label_of(pod, NODE_TYPE_LABEL) == "head"]
    ended = [pod for pod in heads if _has_ended(pod)]
    for pod in heads if is_suspended(cluster) else ended:
        yield _delete(pod, "the head has ended" if pod in ended else "the RayCluster is suspended")
    if not heads and not is_suspended(cluster):
        yield CreatePod(make_pod(cluster, cluster["spec"]["headGroupSpec"], HEAD_GROUP, rng))


def _decide_group(cluster: Object, group: Object, own: list[Object], rng: random.Random) -> Iterator[Action]:
    name = group["groupName"]
    pods = [pod for pod in own if label_of(pod, GROUP_LABEL) == name and label_of(pod, NODE_TYPE_LABEL) == "worker"]
    ended = [pod for pod in pods if _has_ended(pod)]
    if ended:  # KubeRay deletes these and looks again
        yield from (_delete(pod, "the pod has ended") for pod in ended)
        return
    named = set((group.get("scaleStrategy") or {}).get("workersToDelete") or [])
    yield from (_delete(pod, "named in workersToDelete") for pod in pods if pod["metadata"]["name"] in named)
    left = [pod for pod in pods if pod["metadata"]["name"] not in named]
    surplus = len(left) - desired_replicas(cluster, group)
    for pod in rng.sample(left, max(surplus, 0)):
        yield _delete(pod, "a random pod of a group with too many")
    for _ in range(-surplus):
        yield CreatePod(make_pod(cluster, group, name, rng))


def _has_ended(pod: Object) -> bool:
    return phase_of(pod) in ("Failed", "Succeeded")


def _delete(pod: Object, reason: str) -> DeletePod:
    namespace, name = key_of(pod)
    return DeletePod(namespace, name, str(pod["metadata"]["uid"]), reason)


def make_pod(cluster: Object, group: Object, group_name: str, rng: random.Random) -> Object:
    """The Pod that KubeRay makes from a group's template."""
    namespace, cluster_name = key_of(cluster)
    node_type = "head" if group_name == HEAD_GROUP else "worker"
    stem = f"{cluster_name}-head" if node_type == "head" else f"{cluster_name}-{group_name}-worker"
    template = copy.deepcopy(group["template"])
    metadata = template.get("metadata") or {}
    labels = {
        **(metadata.get("labels") or {}),
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
        "ray.io/is-ray-node": "yes",
        CLUSTER_LABEL: cluster_name,
        NODE_TYPE_LABEL: node_type,
        GROUP_LABEL: group_name,
        "ray.io/identifier": f"{cluster_name}-{node_type}"[-_LABEL_LENGTH:],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{stem}-{name_suffix(rng)}",
            "namespace": namespace,
            "labels": labels,
            "annotations": metadata.get("annotations") or {},
            "ownerReferences": [owner_reference(cluster)],
        },
        "spec": {"restartPolicy": "Always", **template["spec"], "nodeName": NODE_NAME},
    }


def _decide_status(cluster: Object, own: list[Object], now: float) -> Iterator[Action]:
    status = cluster_status(cluster, own, now)
    before = cluster.get("status") or {}
    if {**before, **status} != before:
        namespace, name = key_of(cluster)
        yield WriteStatus("RayCluster", namespace, name, {**status, "lastUpdateTime": timestamp(now)})


def cluster_status(cluster: Object, own: list[Object], now: float) -> Object:
    """What KubeRay reports about the pods of a RayCluster."""
    groups = cluster["spec"].get("workerGroupSpecs") or []
    heads = [pod for pod in own if label_of(pod, NODE_TYPE_LABEL) == "head"]
    workers = [pod for pod in own if label_of(pod, NODE_TYPE_LABEL) == "worker"]
    num_ready = sum(is_ready(pod) for pod in workers)
    desired = sum(desired_replicas(cluster, group) for group in groups)
    head_ready = any(is_ready(pod) for pod in heads)
    provisioned = has_condition(cluster, "RayClusterProvisioned") or (head_ready and num_ready >= desired)
    return {
        "state": _state(cluster, own, provisioned),
        "observedGeneration": cluster["metadata"].get("generation", 0),
        "desiredWorkerReplicas": desired,
        "minWorkerReplicas": sum(group.get("minReplicas") or 0 for group in groups),
        "maxWorkerReplicas": min(sum(group.get("maxReplicas", desired) for group in groups), 2**31 - 1),
        "availableWorkerReplicas": sum(phase_of(pod) == "Running" for pod in workers),
        "readyWorkerReplicas": num_ready,
        "head": {"podIP": HOST if heads else "", "podName": heads[0]["metadata"]["name"] if heads else ""},
        "conditions": [
            condition(
                "HeadPodReady", head_ready, "HeadPodRunningAndReady" if head_ready else "HeadPodNotReady", now, cluster
            ),
            condition(
                "RayClusterProvisioned",
                provisioned,
                "AllPodRunningAndReadyFirstTime" if provisioned else "RayClusterPodsProvisioning",
                now,
                cluster,
            ),
        ],
    }


def _state(cluster: Object, own: list[Object], provisioned: bool) -> str:
    if is_suspended(cluster):
        return "suspended" if not own else ""
    return "ready" if provisioned else ""
