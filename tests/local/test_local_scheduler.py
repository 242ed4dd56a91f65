"""Which node of the laptop a pod goes to."""

import random

from local_objects import Object

from flexpert_operator.local.runtime import scheduler
from flexpert_operator.local.runtime.decide import decide
from flexpert_operator.local.runtime.kubelet import decide_pod
from flexpert_operator.local.runtime.values import AdmitPod, CreatePod, Observed


def node(name: str, **spec: object) -> Object:
    return {"metadata": {"name": name}, "spec": spec}


def pod(name: str, on: str) -> Object:
    return {"metadata": {"name": name, "uid": name}, "spec": {"nodeName": on, "containers": []}}


def placed(nodes: list[Object], pods: list[Object]) -> str | None:
    made = scheduler.place({"metadata": {"name": "new"}, "spec": {"nodeName": "laptop"}}, nodes, pods)
    return str(made["spec"]["nodeName"]) if made is not None else None


def test_pods_spread_over_the_nodes_that_are_open() -> None:
    assert placed([], []) == "laptop"
    nodes = [node("a"), node("b"), node("c", unschedulable=True)]
    assert placed(nodes, []) == "a"
    assert placed(nodes, [pod("1", "a")]) == "b"
    assert placed(nodes, [pod("1", "a"), pod("2", "b"), pod("3", "b")]) == "a"
    spot = node("a", taints=[{"key": "aws-node-termination-handler/spot-itn", "effect": "NoSchedule"}])
    assert placed([spot, node("b")], [pod("1", "b")]) == "b"
    assert placed([spot], []) is None


CLUSTER: Object = {
    "apiVersion": "ray.io/v1",
    "kind": "RayCluster",
    "metadata": {"name": "r", "namespace": "default", "uid": "u"},
    "spec": {
        "headGroupSpec": {"template": {"spec": {"containers": []}}},
        "workerGroupSpecs": [
            {"groupName": "experts", "replicas": 2, "maxReplicas": 9, "template": {"spec": {"containers": []}}}
        ],
    },
}


def test_pods_that_no_node_takes_are_not_made_yet() -> None:
    def made(*nodes: Object) -> list[str]:
        actions = decide(Observed(clusters=(CLUSTER,), nodes=nodes), random.Random(0))
        return [action.manifest["spec"]["nodeName"] for action in actions if isinstance(action, CreatePod)]

    assert made() == ["laptop"] * 3
    assert sorted(made(node("a"), node("b"))) == ["a", "a", "b"]
    assert made(node("a", unschedulable=True)) == []


def test_every_node_is_this_host() -> None:
    here = scheduler.node_names([node("b")])
    assert list(decide_pod(pod("1", "b"), None, True, 0.0, here)) == [AdmitPod(pod("1", "b"))]
    assert list(decide_pod(pod("1", "x"), None, True, 0.0, here)) == []
