"""The Deployment controller's decisions, for the Deployments that a MoEDeployment owns. Pure; `decide` calls it.

A changed template rolls: one new pod more than wanted, an old one less for each new one that is ready, so that there
are never fewer ready pods than wanted. There are no ReplicaSets in between.
"""

import copy
import random
from collections.abc import Iterator

from flexpert_operator.local.runtime.objects import (
    condition,
    digest,
    is_deleted,
    is_owned_by,
    is_ready,
    key_of,
    label_of,
    name_suffix,
    owner_reference,
    phase_of,
    uid_of,
)
from flexpert_operator.local.runtime.values import NODE_NAME, Action, CreatePod, DeletePod, Object, WriteStatus

TEMPLATE_LABEL = "pod-template-hash"
_OWNER_KIND = "MoEDeployment"


def is_ours(deployment: Object) -> bool:
    """Whether the runtime runs this Deployment."""
    references = deployment["metadata"].get("ownerReferences") or []
    managed = label_of(deployment, "app.kubernetes.io/managed-by").startswith("flexpert")
    return managed or any(reference["kind"] == _OWNER_KIND for reference in references)


def decide_deployment(deployment: Object, pods: tuple[Object, ...], now: float, rng: random.Random) -> Iterator[Action]:
    """Actions that bring a Deployment's pods and status to what its spec says.

    Args:
        deployment: The Deployment.
        pods: All Pods there are.
        now: Seconds since the Unix epoch.
        rng: Chooses name suffixes.
    """
    own = [pod for pod in pods if is_owned_by(pod, deployment) and not is_deleted(pod)]
    if not is_deleted(deployment):
        ended = [pod for pod in own if phase_of(pod) in ("Failed", "Succeeded")]
        yield from (_delete(pod, "the pod has ended") for pod in ended)
        yield from _decide_rollout(deployment, [pod for pod in own if pod not in ended], rng)
    status = deployment_status(deployment, own, now)
    before = deployment.get("status") or {}
    if {**before, **status} != before:
        namespace, name = key_of(deployment)
        yield WriteStatus("Deployment", namespace, name, status)


def _decide_rollout(deployment: Object, own: list[Object], rng: random.Random) -> Iterator[Action]:
    wanted = _replicas(deployment)
    template = digest(deployment["spec"]["template"])
    new = [pod for pod in own if label_of(pod, TEMPLATE_LABEL) == template]
    old = sorted((pod for pod in own if pod not in new), key=is_ready)
    surge = 1 if old else 0
    for _ in range(min(wanted, wanted + surge - len(own) + len(new)) - len(new)):
        yield CreatePod(make_pod(deployment, template, rng))
    for pod in sorted(new, key=is_ready)[: max(len(new) - wanted, 0)]:
        yield _delete(pod, "more pods than replicas")
    num_ready = sum(is_ready(pod) for pod in own)
    spare = num_ready - wanted
    for pod in old:
        if not is_ready(pod) or spare > 0:
            spare -= is_ready(pod)
            yield _delete(pod, "of an earlier template")


def _replicas(deployment: Object) -> int:
    replicas = deployment["spec"].get("replicas")
    return 1 if replicas is None else int(replicas)


def _delete(pod: Object, reason: str) -> DeletePod:
    namespace, name = key_of(pod)
    return DeletePod(namespace, name, uid_of(pod), reason)


def make_pod(deployment: Object, template_digest: str, rng: random.Random) -> Object:
    """A Pod of a Deployment's template."""
    namespace, name = key_of(deployment)
    template = copy.deepcopy(deployment["spec"]["template"])
    metadata = template.get("metadata") or {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{name}-{template_digest}-{name_suffix(rng)}",
            "namespace": namespace,
            "labels": {**(metadata.get("labels") or {}), TEMPLATE_LABEL: template_digest},
            "annotations": metadata.get("annotations") or {},
            "ownerReferences": [owner_reference(deployment)],
        },
        "spec": {"restartPolicy": "Always", **template["spec"], "nodeName": NODE_NAME},
    }


def deployment_status(deployment: Object, own: list[Object], now: float) -> Object:
    """What the Deployment controller reports."""
    wanted, num_ready = _replicas(deployment), sum(is_ready(pod) for pod in own)
    template = digest(deployment["spec"]["template"])
    available = num_ready >= wanted
    return {
        "observedGeneration": deployment["metadata"].get("generation", 0),
        "replicas": len(own),
        "updatedReplicas": sum(label_of(pod, TEMPLATE_LABEL) == template for pod in own),
        "readyReplicas": num_ready,
        "availableReplicas": num_ready,
        "unavailableReplicas": max(wanted - num_ready, 0),
        "conditions": [
            condition(
                "Available",
                available,
                "MinimumReplicasAvailable" if available else "MinimumReplicasUnavailable",
                now,
                deployment,
            )
        ],
    }
