"""The scheduler's decision: which of the nodes that this host plays a new pod goes to. Pure; `decide` calls it.

Every Node object of the API is this host; the runtime registers one, and a user who wants to see a drain makes more.
Tolerations are not looked at: a node that is cordoned, tainted or being deleted takes no pod.
"""

from collections import Counter
from collections.abc import Sequence

from flexpert_operator.local.runtime.objects import is_deleted
from flexpert_operator.local.runtime.values import NODE_NAME, Object


def node_names(nodes: Sequence[Object]) -> frozenset[str]:
    """The nodes that this host plays."""
    return frozenset({NODE_NAME, *(str(node["metadata"]["name"]) for node in nodes)})


def is_open(node: Object) -> bool:
    """Whether a node takes pods."""
    spec = node.get("spec") or {}
    closed = any(taint.get("effect") in ("NoSchedule", "NoExecute") for taint in spec.get("taints") or ())
    return not (spec.get("unschedulable") or closed or is_deleted(node))


def place(manifest: Object, nodes: Sequence[Object], pods: Sequence[Object]) -> Object | None:
    """The pod on the open node with the fewest of `pods`, or None while no node is open."""
    names = [str(node["metadata"]["name"]) for node in nodes if is_open(node)] if nodes else [NODE_NAME]
    if not names:
        return None
    taken = Counter(pod["spec"].get("nodeName") for pod in pods if not is_deleted(pod))
    node = min(sorted(names), key=lambda name: taken[name])
    return {**manifest, "spec": {**manifest["spec"], "nodeName": node}}
