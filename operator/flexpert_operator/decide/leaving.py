"""Which nodes are to be emptied, and which pods are about to be taken away: what Kubernetes and clouds say of it. Pure.

`nodes` asks about every Node that changes, `observe` about every pod.
"""

from collections.abc import Collection, Mapping
from typing import Any

from flexpert_operator.api import names

LEAVING_TAINTS = frozenset(
    {
        "ToBeDeletedByClusterAutoscaler",
        "aws-node-termination-handler/asg-lifecycle-termination",
        "aws-node-termination-handler/rebalance-recommendation",
        "aws-node-termination-handler/scheduled-maintenance",
        "aws-node-termination-handler/spot-itn",
        "cloud.google.com/impending-node-termination",
        "karpenter.sh/disrupted",
        "karpenter.sh/disruption",
        "node.cloudprovider.kubernetes.io/shutdown",
        "node.kubernetes.io/out-of-service",
    }
)
"""Keys of taints with which autoscalers, node lifecycle controllers and spot handlers announce the end of a node."""


def why_node_leaves(node: Mapping[str, Any], taints: Collection[str] = LEAVING_TAINTS) -> str:
    """Why a Node is to be emptied: it is cordoned, deleted or carries one of `taints`; empty when it is not."""
    if node["metadata"].get("deletionTimestamp"):
        return "the node is being deleted"
    spec = node.get("spec") or {}
    for taint in spec.get("taints") or ():
        if taint["key"] in taints:
            return f"the node has the taint {taint['key']}"
    return "the node is cordoned" if spec.get("unschedulable") else ""


def disruption(status: Mapping[str, Any]) -> str:
    """Why a pod is about to be deleted, as the condition DisruptionTarget of its status says; empty when it is not."""
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return str(condition.get("message") or condition.get("reason") or "the pod is about to be disrupted")
    return ""


def why_asked_to_leave(annotations: Mapping[str, str]) -> str:
    """Why a pod is to be emptied though nothing happens to its node: somebody asked for it; empty when nobody did."""
    asked = annotations.get(names.DRAIN_ANNOTATION, "")
    return f"somebody asked for it at {asked}" if asked else ""
