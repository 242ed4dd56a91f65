"""What tells that a node or a pod is about to go."""

from dataclasses import replace
from typing import Any

import pytest

from flexpert_operator.decide.leaving import LEAVING_TAINTS, disruption, why_node_leaves
from flexpert_operator.decide.observation import Cluster, Group, Pod
from flexpert_operator.decide.progress import leaving_events
from flexpert_operator.decide.sizing_state import Sizing
from flexpert_operator.nodes import NodeNotices
from flexpert_operator.observe import parse_pod


def node(name: str = "n", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": spec}


@pytest.mark.parametrize("key", sorted(LEAVING_TAINTS))
def test_taints_that_announce_the_end_of_a_node(key: str) -> None:
    assert key in why_node_leaves(node(taints=[{"key": key, "effect": "NoSchedule"}]))


def test_nodes_that_are_drained_stay_or_go() -> None:
    assert why_node_leaves(node(unschedulable=True)) == "the node is cordoned"
    assert why_node_leaves({"metadata": {"name": "n", "deletionTimestamp": "2026-01-01T00:00:00Z"}})
    assert why_node_leaves(node()) == ""
    assert why_node_leaves({"metadata": {"name": "n"}}) == ""
    harmless = [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}, {"key": "node.kubernetes.io/disk-pressure"}]
    assert why_node_leaves(node(taints=harmless)) == ""
    assert why_node_leaves(node(taints=[{"key": "example.com/going"}]), {"example.com/going"})


def test_notices_tell_when_something_changes() -> None:
    notices = NodeNotices()
    assert not notices.note(node())
    assert notices.note(node(unschedulable=True))
    assert not notices.note(node(unschedulable=True))
    assert notices.why_leaving("n") == "the node is cordoned"
    assert notices.note(node())
    assert notices.why_leaving("n") == ""
    notices.note(node(unschedulable=True))
    notices.forget("n")
    assert notices.why_leaving("n") == ""


def test_a_pod_leaves_with_its_node_or_because_it_is_disrupted() -> None:
    pod = {"metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": {}}
    assert parse_pod(pod, lambda name: f"{name} is cordoned").leaving == "n is cordoned"
    assert parse_pod(pod, lambda _: "").leaving == ""
    unscheduled = {"metadata": {"name": "p"}, "spec": {}}
    assert parse_pod(unscheduled, lambda _: "gone").leaving == ""
    evicted = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "evicted"}
    assert parse_pod(pod | {"status": {"conditions": [evicted]}}, lambda _: "").leaving == "evicted"
    assert disruption({"conditions": [evicted | {"status": "False"}]}) == ""


def test_who_is_about_to_go_is_told_once() -> None:
    def cluster(*pods: Pod) -> Cluster:
        return Cluster("1", Group(0), Group(2, pods=pods), Sizing())

    a, b = Pod("a"), Pod("b", leaving="the node is cordoned")
    (event,) = leaving_events(cluster(a, replace(b, leaving="")), cluster(a, b))
    assert (event.reason, event.warning) == ("WorkerLeaving", True)
    assert "the node is cordoned" in event.message
    assert leaving_events(cluster(a, b), cluster(a, b)) == ()
    assert leaving_events(None, cluster(a, b)) == (event,)
    assert leaving_events(cluster(b), None) == ()
