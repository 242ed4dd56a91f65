"""Reads what a reconciliation decides on: the RayCluster and its pods, in that order, and the pool controller."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flexpert_operator.api import names
from flexpert_operator.api.fields import read
from flexpert_operator.api.model import ModelAccess
from flexpert_operator.api.spec import Model, MoEDeployment
from flexpert_operator.decide.leaving import disruption, why_asked_to_leave
from flexpert_operator.decide.observation import Cluster, Group, Pod
from flexpert_operator.decide.ownership import is_ours
from flexpert_operator.decide.sizing_state import Sizing
from flexpert_operator.decide.status import from_rfc3339
from flexpert_operator.kube import PODS, RAY_CLUSTERS, Kube, Object

FAILURES = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImageInspectError",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)
"""Reasons with which the kubelet lets a container wait that hardly ends by itself."""

VAIN_RESTARTS = 3
"""Restarts of a container that does not serve, after which it is taken not to come up."""


@dataclass(frozen=True)
class Seen:
    """What was read from Kubernetes.

    Attributes:
        raw: The RayCluster as it came; None where there is none, or one that is not ours.
        hindrances: What keeps pods from running, each once.
        head_runs: Whether the pod runs on which the pool controller would be.
    """

    raw: Object | None
    cluster: Cluster | None
    ingress_ready: int
    hindrances: tuple[str, ...] = ()
    head_runs: bool = False


def read_cluster(
    kube: Kube, deployment: MoEDeployment, cluster: str, why_leaving: Callable[[str], str] = lambda _: ""
) -> Seen:
    """The RayCluster, and then the pods, so that the list of pods is never older than the sizes it is checked with.

    `why_leaving`: why a node is to be emptied, by its name; empty where it is not.
    """
    raw = kube.find(RAY_CLUSTERS, deployment.namespace, cluster)
    raw = raw if raw is not None and is_ours(raw, deployment.uid, deployment.name) else None
    everybody = kube.list(PODS, deployment.namespace, names.selector(deployment.name))
    ingress = [pod for pod in everybody if role_of(pod) == names.INGRESS_ROLE]
    pods = [pod for pod in everybody if ray_cluster_of(pod) in ("", cluster)]
    found = parse_cluster(raw, pods, why_leaving) if raw is not None else None
    hindrances = {hindrance(pod.get("status") or {}) for pod in pods} - {""}
    heads = [pod for pod in pods if role_of(pod) == names.HEAD_ROLE]
    head_runs = any((pod.get("status") or {}).get("phase") == "Running" for pod in heads)
    return Seen(raw, found, sum(is_ready(pod) for pod in ingress), tuple(sorted(hindrances)), head_runs)


def ray_cluster_of(pod: Mapping[str, Any]) -> str:
    """Name of the RayCluster that a pod is of; empty where it is of none."""
    return str((pod["metadata"].get("labels") or {}).get(names.RAY_CLUSTER_LABEL, ""))


def served_model(raw: Mapping[str, Any]) -> Model | None:
    """The model that a RayCluster serves, once that is known."""
    served = (raw["metadata"].get("annotations") or {}).get(names.MODEL_ANNOTATION)
    return parse_served(json.loads(served)) if served else None


def parse_cluster(raw: Mapping[str, Any], pods: list[Object], why_leaving: Callable[[str], str]) -> Cluster:
    """The RayCluster with the pods of its groups."""
    annotations = raw["metadata"].get("annotations") or {}
    return Cluster(
        resource_version=raw["metadata"]["resourceVersion"],
        engines=parse_group(raw, names.ENGINES_ROLE, pods, why_leaving),
        experts=parse_group(raw, names.EXPERTS_ROLE, pods, why_leaving),
        sizing=Sizing.decode(annotations.get(names.SIZING_ANNOTATION)),
        served_model=served_model(raw),
    )


def parse_served(remembered: Mapping[str, Any]) -> Model:
    """The model that is served, as `manifests` wrote it into the RayCluster's annotation."""
    known = {name: value for name, value in remembered.items() if name != "access"}
    return Model(access=read(ModelAccess, remembered.get("access", {})), **known)


def parse_group(raw: Mapping[str, Any], role: str, pods: list[Object], why_leaving: Callable[[str], str]) -> Group:
    """A worker group; one that somebody removed has no pods asked for."""
    specs = {group["groupName"]: group for group in raw["spec"].get("workerGroupSpecs", ())}
    spec = specs.get(role, {})
    return Group(
        replicas=spec.get("replicas", 0),
        workers_to_delete=tuple((spec.get("scaleStrategy") or {}).get("workersToDelete") or ()),
        pods=tuple(parse_pod(pod, why_leaving) for pod in pods if role_of(pod) == role and not is_over(pod)),
    )


def parse_pod(pod: Mapping[str, Any], why_leaving: Callable[[str], str]) -> Pod:
    """A pod, with what keeps it from running and what makes it go."""
    metadata, node = pod["metadata"], str((pod.get("spec") or {}).get("nodeName") or "")
    return Pod(
        metadata["name"],
        terminating=metadata.get("deletionTimestamp") is not None,
        message=hindrance(pod.get("status") or {}),
        created_at=from_rfc3339(metadata.get("creationTimestamp")),
        node=node,
        leaving=(
            disruption(pod.get("status") or {})
            or why_asked_to_leave(metadata.get("annotations") or {})
            or (why_leaving(node) if node else "")
        ),
        revision=str((metadata.get("labels") or {}).get(names.REVISION_LABEL, "")),
        ready=is_ready(pod),
        unschedulable=is_unschedulable(pod.get("status") or {}),
        failing=is_failing(pod.get("status") or {}),
    )


def hindrance(status: Mapping[str, Any]) -> str:
    """Why a pod does not run: it cannot be scheduled, or a container waits for something; empty when it runs."""
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason") or "no node takes it")
    for container in containers_of(status):
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "Waiting")
        if waiting.get("message"):
            return f"{reason}: {waiting['message']}"
        if reason in FAILURES or restarts_in_vain(container):
            return f"{reason if reason in FAILURES else 'CrashLoop'}: {ending_of(container)}"
    return ""


def is_unschedulable(status: Mapping[str, Any]) -> bool:
    """Whether the scheduler found no node."""
    conditions = status.get("conditions") or ()
    return any(condition["type"] == "PodScheduled" and condition["status"] == "False" for condition in conditions)


def is_failing(status: Mapping[str, Any]) -> bool:
    """Whether a container cannot be started, or ends again and again."""
    waiting = ((one.get("state") or {}).get("waiting") or {} for one in containers_of(status))
    known = any(one.get("reason") in FAILURES for one in waiting)
    return known or any(restarts_in_vain(one) for one in containers_of(status))


def containers_of(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The statuses of a pod's containers, in the order in which they start."""
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def restarts_in_vain(container: Mapping[str, Any]) -> bool:
    """Whether a container was started several times and does not serve."""
    return container.get("restartCount", 0) >= VAIN_RESTARTS and not container.get("ready", False)


def ending_of(container: Mapping[str, Any]) -> str:
    """How a container ended last."""
    ended = (container.get("lastState") or {}).get("terminated") or {}
    code, reason = ended.get("exitCode"), ended.get("message") or ended.get("reason", "")
    how = f"exit code {code}{f' ({reason})' if reason else ''}" if code is not None else "no exit code is told"
    return f"container {container.get('name', '')} ended {container.get('restartCount', 0)} times, {how}"


def role_of(pod: Mapping[str, Any]) -> str:
    """Our role label of a pod."""
    return str((pod["metadata"].get("labels") or {}).get(names.ROLE_LABEL, ""))


def is_over(pod: Mapping[str, Any]) -> bool:
    """Whether a pod has ended."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether a pod's readiness probes pass."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
