"""Rebalancing, nodes that leave and metrics, with the operator for real against the embedded API."""

import threading
import urllib.request

import pytest
from simulated_cluster import NAMESPACE
from simulated_pool import SimulatedPool
from simulated_world import NODES, SETTINGS, Object, Operator, World, pool_pods

from flexpert_operator.errors import KubeRefused
from flexpert_operator.kube import MOE_DEPLOYMENTS
from flexpert_proto import pool_pb2 as pb

QUICK = {"enabled": True, "intervalSeconds": 5, "halfLifeSeconds": 4, "cooldownSeconds": 0}


pytestmark = pytest.mark.usefixtures("clean")


def decision(world: World, name: str) -> Object:
    """`status.placement.lastDecision`."""
    found: Object = world.get(name)["status"].get("placement", {}).get("lastDecision", {})
    return found


def rebalance(world: World, name: str, **settings: object) -> None:
    """Switch it on."""
    world.patch(name, {"placement": {"rebalance": QUICK | settings}})


def test_load_is_balanced_when_it_pays(world: World) -> None:
    pool = world.serve("busy")
    pool.compute_skewed()
    rebalance(world, "busy")
    world.until("rebalanced", lambda: len(pool.requests) == 2)
    assert pool.requests[1].cause == pb.REBALANCE
    world.until("it is told", lambda: "rebalancedAt" in world.get("busy")["status"]["placement"])
    world.until("less skewed", lambda: world.get("busy")["status"]["experts"]["imbalancePercent"] < 10)
    world.until("it is over", lambda: world.condition("busy", "Rebalancing") == ("False", "Balanced"))
    last = decision(world, "busy")
    assert (last["action"], last["reason"]) == ("Stay", "Balanced")
    assert len(pool.requests) == 2, "what is balanced is left alone"
    assert world.reasons("busy").count("Rebalancing") == 1
    text = urllib.request.urlopen(metrics_url(world), timeout=10).read().decode()
    labels = 'name="busy",namespace="default"'
    assert f'flexpert_rebalance_decisions_total{{action="Rebalance",{labels},reason="GainExceedsCost"}} 1.0' in text
    assert f'flexpert_reconfigurations_total{{cause="Rebalance",{labels},phase="Succeeded"}} 1.0' in text
    assert f"flexpert_rebalancing{{{labels}}} 0.0" in text
    world.kube.delete(MOE_DEPLOYMENTS, NAMESPACE, "busy")
    world.until("what is gone is no longer told", lambda: 'name="busy"' not in scraped(world))


def metrics_url(world: World) -> str:
    """Where the metrics of the running operator are served."""
    server, _ = world.operator.metrics.serve("127.0.0.1", 0)
    world.servers.append(server)
    return f"http://127.0.0.1:{server.server_port}/metrics"


def scraped(world: World) -> str:
    return urllib.request.urlopen(f"http://127.0.0.1:{world.servers[-1].server_port}", timeout=10).read().decode()


def test_nothing_moves_where_it_does_not_pay(world: World) -> None:
    """The same skew, but a dry run that says it takes hours; then a budget that it exceeds; then no traffic at all."""
    pool = world.serve("dear")
    pool.seconds_per_move = 10_000.0
    pool.compute_skewed()
    rebalance(world, "dear")
    world.until("a reason", lambda: decision(world, "dear").get("reason") == "CostExceedsGain")
    last = decision(world, "dear")
    assert last["action"] == "Stay"
    assert last["gainPercent"] > 5
    assert last["costBytes"] > 0
    assert last["costMilliseconds"] > last["benefitMilliseconds"]
    assert world.condition("dear", "Rebalancing") == ("False", "CostExceedsGain")
    rebalance(world, "dear", maxBytes=1)
    world.until("a budget", lambda: decision(world, "dear").get("reason") in ("OverBudget", "GainTooSmall"))
    rebalance(world, "dear", enabled=False)
    world.until("switched off", lambda: decision(world, "dear").get("reason") == "Disabled")
    assert len(pool.requests) == 1
    assert "Rebalancing" not in world.reasons("dear")


def test_without_traffic_nothing_is_known(world: World) -> None:
    pool = world.serve("quiet")
    rebalance(world, "quiet")
    world.until("a reason", lambda: decision(world, "quiet").get("reason") == "NoTraffic")
    before = decision(world, "quiet")
    threading.Event().wait(2 * SETTINGS.resync_s)
    assert decision(world, "quiet") == before, "between two looks nothing is written"
    assert len(pool.requests) == 1


def test_a_new_operator_watches_before_it_acts(world: World) -> None:
    pool = world.serve("watched")
    pool.compute_skewed()
    world.operator.stop()
    world.patch("watched", {"placement": {"rebalance": QUICK | {"halfLifeSeconds": 3600, "intervalSeconds": 5}}})
    world.operator = Operator(world.kubeconfig)
    world.until("it watches", lambda: decision(world, "watched").get("reason") == "WatchingLoads")
    assert len(pool.requests) == 1


# ---- nodes


def make_nodes(world: World, *names: str) -> None:
    for name in names:
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
        world.kube.request("POST", NODES, node)


def node_of(world: World, name: str, pool: SimulatedPool, worker: str) -> str:
    """The node that a worker's pod is on."""
    pod = next(one.pod for one in pool._workers.values() if one.id == worker)
    return next(str(one["spec"]["nodeName"]) for one in pool_pods(world, name) if one["metadata"]["name"] == pod)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("cordoned", {"unschedulable": True}),
        ("spot", {"taints": [{"key": "aws-node-termination-handler/spot-itn", "effect": "NoSchedule"}]}),
    ],
)
def test_a_node_that_leaves_is_emptied_and_replaced(world: World, name: str, change: Object) -> None:
    make_nodes(world, "n1", "n2", "n3")
    pool = world.serve(name)
    before = pool.holders()
    first = min(before)
    node = node_of(world, name, pool, first)
    world.kube.request("PATCH", f"{NODES}/{node}", {"spec": change}, content_type="application/merge-patch+json")
    world.until("emptied", lambda: first not in pool.holders())
    assert pool.requests[1].cause == pb.DRAIN
    world.until("replaced", lambda: world.is_settled(name) and len(pool.holders()) == 2)
    assert not any(pod["spec"]["nodeName"] == node for pod in pool_pods(world, name))
    assert world.group(name)["replicas"] == 2
    assert world.reasons(name).count("WorkerLeaving") == 1
    assert world.cluster.random_deletions == []
    assert world.condition(name, "Degraded") == ("False", "AsExpected")


def test_a_node_without_alternative_keeps_its_experts(world: World) -> None:
    """Experts do not fit into the worker that stays, and no other pod comes: what serves goes on serving."""
    make_nodes(world, "n1", "n2")
    pool = world.serve("stuck", memoryPerWorker="6Mi")
    holders = pool.holders()
    world.cluster.unschedulable.add("stuck")
    node = node_of(world, "stuck", pool, min(holders))
    cordon = {"spec": {"unschedulable": True}}
    world.kube.request("PATCH", f"{NODES}/{node}", cordon, content_type="application/merge-patch+json")
    world.until("it says so", lambda: world.condition("stuck", "Progressing") == ("True", "Draining"))
    world.until("another pod is asked for", lambda: world.group("stuck")["replicas"] == 3)
    assert pool.holders() == holders
    assert world.condition("stuck", "Ready")[0] == "True"
    world.cluster.unschedulable.clear()


def test_thresholds_that_contradict_each_other_are_refused(world: World) -> None:
    body = {
        "apiVersion": "flexpert.io/v1alpha1",
        "kind": "MoEDeployment",
        "metadata": {"name": "bad"},
        "spec": {
            "model": {"source": "file:///m"},
            "placement": {"rebalance": {"minGainPercent": 3, "stopGainPercent": 4}},
        },
    }
    with pytest.raises(KubeRefused, match=r"spec\.placement\.rebalance\.stopGainPercent"):
        world.kube.create(MOE_DEPLOYMENTS, NAMESPACE, body)
