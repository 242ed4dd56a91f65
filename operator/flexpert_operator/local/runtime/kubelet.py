"""The kubelet's decisions: what happens to the processes of a Pod object, and its status. Pure; `decide` calls it.

A worker's Ray container waits for the head of its cluster, as KubeRay's init container does. A container that ends is
started again, after a pause that doubles, where the pod's restartPolicy says so. A pod whose object is gone, or whose
deletion has been asked for, gets SIGTERM, its grace, then SIGKILL.
"""

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from flexpert_operator.local.runtime.objects import (
    condition,
    is_deleted,
    key_of,
    label_of,
    timestamp,
    uid_of,
)
from flexpert_operator.local.runtime.values import (
    CLUSTER_LABEL,
    HEAD_CONTAINER,
    HOST,
    NODE_NAME,
    NODE_TYPE_LABEL,
    WORKER_CONTAINER,
    Action,
    AdmitPod,
    Container,
    DeletePod,
    ForgetPod,
    Held,
    KillPod,
    LocalPod,
    Object,
    StartContainer,
    StopPod,
    WriteStatus,
)

NOTHING_HELD: Mapping[str, Held] = MappingProxyType({})
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0
"""A container that ran this long starts again without a pause."""


def decide_pod(
    pod: Object,
    local: LocalPod | None,
    may_join: bool,
    now: float,
    here: Collection[str] = (NODE_NAME,),
    held: Mapping[str, Held] = NOTHING_HELD,
) -> Iterator[Action]:
    """What to do for a Pod object.

    Args:
        pod: The object.
        local: What runs here for it, None when it is new.
        may_join: Whether a Ray node of it may start now: its head takes nodes, and not too many are starting.
        now: Seconds since the Unix epoch.
        here: Nodes that this host plays.
        held: Containers that wait for a Secret or a ConfigMap.
    """
    if is_deleted(pod):
        if local is None or not local.is_running:
            yield DeletePod(*key_of(pod), uid_of(pod), "its processes have ended", at_once=True)
        else:
            yield from _stop(local, now)
        return
    if local is None:
        if pod["spec"].get("nodeName") in here:
            yield AdmitPod(pod)
        return
    if local.stopping_at is None:
        for container in local.containers:
            if container.name not in held and _may_start(pod, container, may_join, now):
                yield StartContainer(pod, container.name)
    status = pod_status(pod, local, now, held)
    before = pod.get("status") or {}
    if {**before, **status} != before:
        yield WriteStatus("Pod", *key_of(pod), status)


def decide_orphan(local: LocalPod, now: float) -> Iterator[Action]:
    """What to do with a pod that runs here and whose object is gone."""
    if local.is_running:
        yield from _stop(local, now)
    else:
        yield ForgetPod(local.uid)


def _stop(local: LocalPod, now: float) -> Iterator[Action]:
    if local.stopping_at is None:
        yield StopPod(local.uid)
    elif now >= local.stopping_at + local.grace_s and not local.killed:
        yield KillPod(local.uid)


def _may_start(pod: Object, container: Container, may_join: bool, now: float) -> bool:
    if container.running or container.refusal:
        return False
    if container.name == WORKER_CONTAINER and not may_join:
        return False
    if container.process is None:
        return True
    return restarts(pod, container) and now >= container.finished_at + pause_s(container)


def restarts(pod: Object, container: Container) -> bool:
    """Whether an ended container is started again."""
    policy = pod["spec"].get("restartPolicy", "Always")
    return policy == "Always" or (policy == "OnFailure" and container.exit_code != 0)


def pause_s(container: Container) -> float:
    """How long an ended container waits before it is started again."""
    if container.finished_at - container.started_at >= STEADY_S or container.restarts == 0:
        return 0.0
    return min(FIRST_PAUSE_S * float(2 ** min(container.restarts - 1, 10)), LONGEST_PAUSE_S)


def num_starting(local: Mapping[str, LocalPod]) -> int:
    """Ray nodes of worker groups that have started and are not up yet."""
    containers = (container for pod in local.values() for container in pod.containers)
    return sum(item.name == WORKER_CONTAINER and item.running and not item.ready for item in containers)


def heads_up(pods: tuple[Object, ...], local: Mapping[str, LocalPod]) -> frozenset[tuple[str, str]]:
    """Namespace and name of the RayClusters whose head takes nodes."""
    return frozenset(
        (key_of(pod)[0], label_of(pod, CLUSTER_LABEL))
        for pod in pods
        if label_of(pod, NODE_TYPE_LABEL) == "head" and _runs_head(local.get(uid_of(pod)))
    )


def _runs_head(local: LocalPod | None) -> bool:
    if local is None or local.stopping_at is not None:
        return False
    return any(container.name == HEAD_CONTAINER and container.ready for container in local.containers)


def pod_status(pod: Object, local: LocalPod, now: float, held: Mapping[str, Held] = NOTHING_HELD) -> Object:
    """A Pod's status, of what runs here for it."""
    names = [spec["name"] for spec in pod["spec"]["containers"]]
    containers = [local.container(name) for name in names]
    phase = _phase(pod, containers)
    ready = phase == "Running" and all(container.running and container.ready for container in containers)
    reason = "" if ready else "ContainersNotReady"
    waiting = [container.name for container in containers if not (container.running and container.ready)]
    message = "" if ready else f"containers with unready status: [{' '.join(waiting)}]"
    started = (pod.get("status") or {}).get("startTime") or timestamp(now)
    return {
        "phase": phase,
        "hostIP": HOST,
        "podIP": HOST,
        "podIPs": [{"ip": HOST}],
        "startTime": started,
        "conditions": [
            condition("PodScheduled", True, "", now, pod),
            condition("Initialized", True, "", now, pod),
            condition("ContainersReady", ready, reason, now, pod, message),
            condition("Ready", ready, reason, now, pod, message),
            *_conditions_of_others(pod),
        ],
        "containerStatuses": [
            _container_status(spec, local.container(spec["name"]), pod, held.get(spec["name"]))
            for spec in pod["spec"]["containers"]
        ],
    }


def _conditions_of_others(pod: Object) -> list[Object]:
    """What others say about a pod, such as that it is about to be disrupted."""
    own = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    return [item for item in (pod.get("status") or {}).get("conditions") or [] if item["type"] not in own]


def _phase(pod: Object, containers: list[Container]) -> str:
    if all(container.process is not None and _is_over(pod, container) for container in containers):
        return "Succeeded" if all(container.exit_code == 0 for container in containers) else "Failed"
    if any(container.running or container.process is not None for container in containers):
        return "Running" if all(container.process is not None for container in containers) else "Pending"
    return "Pending"


def _is_over(pod: Object, container: Container) -> bool:
    return not container.running and not restarts(pod, container)


def _container_status(spec: Object, container: Container, pod: Object, held: Held | None) -> Object:
    return {
        "name": container.name,
        "image": spec.get("image", ""),
        "imageID": "",
        "containerID": f"process://{container.process.pid}" if container.process else "",
        "ready": container.running and container.ready,
        "started": container.running,
        "restartCount": container.restarts,
        "state": _container_state(container, pod, held),
        "lastState": _terminated(container) if container.restarts and container.finished_at else {},
    }


def _container_state(container: Container, pod: Object, held: Held | None) -> Object:
    if container.refusal:
        return {"waiting": {"reason": "CreateContainerError", "message": container.refusal}}
    if container.running:
        return {"running": {"startedAt": timestamp(container.started_at)}}
    if container.process is not None and _is_over(pod, container):
        return _terminated(container)
    if held is not None:
        return {"waiting": {"reason": held.reason, "message": held.message}}
    return {"waiting": {"reason": "PodInitializing" if container.process is None else "CrashLoopBackOff"}}


def _terminated(container: Container) -> Object:
    code = container.exit_code
    return {
        "terminated": {
            "exitCode": 255 if code is None else code % 256 if code >= 0 else 128 - code,
            "reason": "Completed" if code == 0 else "Error",
            "finishedAt": timestamp(container.finished_at),
        }
    }
