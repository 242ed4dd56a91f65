"""Another head: a second RayCluster with the operator for real, the embedded API, a simulated KubeRay and pools."""

import pytest
from simulated_cluster import NAMESPACE
from simulated_world import World

from flexpert_operator.kube import RAY_CLUSTERS, SERVICES

pytestmark = pytest.mark.usefixtures("clean")


def clusters(world: World, name: str) -> list[str]:
    found = world.kube.list(RAY_CLUSTERS, NAMESPACE, f"flexpert.io/moedeployment={name}")
    return sorted(one["metadata"]["name"] for one in found)


def led_to(world: World, name: str) -> str:
    """The RayCluster that the Service of the pool controller leads to."""
    service = world.kube.get(SERVICES, NAMESPACE, f"{name}-pool-control")
    return str(service["spec"]["selector"]["ray.io/cluster"])


def test_another_head_moves_traffic_to_a_second_cluster_and_the_first_goes_with_its_last_stream(world: World) -> None:
    first = world.serve("moved")
    first.engine_requests = 3
    world.patch("moved", {"head": {"env": [{"name": "SOME", "value": "thing"}]}})
    world.until("the Service leads to the second", lambda: led_to(world, "moved") != "moved")
    (second,) = [one for one in clusters(world, "moved") if one != "moved"]
    assert led_to(world, "moved") == second
    pool = world.cluster.pools[second]
    assert len(pool.holders()) == 2, "it held all experts before traffic came"
    assert len(first.holders()) == 2
    assert first.killed_holders == []
    world.until("it is said", lambda: "RayClusterSwitched" in world.reasons("moved"))
    assert clusters(world, "moved") == ["moved", second], "its streams have not ended"
    first.engine_requests = 0
    world.until("the first one goes", lambda: clusters(world, "moved") == [second])
    world.until("it is settled", lambda: world.is_settled("moved"))
    assert world.kube.find(SERVICES, NAMESPACE, "moved-head-control") is None
    assert int(world.get("moved")["status"]["experts"]["epoch"].split(".")[0]) > 1, "its terms are higher"


def test_a_head_that_does_not_come_up_is_told_and_set_back(world: World) -> None:
    world.cluster.broken_cores.add("13")
    first = world.serve("kept")
    spec = {"head": {"env": [{"name": "SOME", "value": "thing"}]}, "experts": {"resources": {"limits": {"cpu": "13"}}}}
    world.patch("kept", spec)
    world.until("it is said", lambda: world.condition("kept", "Degraded") == ("True", "RolloutStuck"))
    assert world.condition("kept", "Ready")[0] == "True"
    assert led_to(world, "kept") == "kept"
    assert len(clusters(world, "kept")) == 2
    world.patch("kept", {"head": None, "experts": {"resources": None}})
    world.until("the second is gone", lambda: clusters(world, "kept") == ["kept"])
    world.until("it is settled", lambda: world.is_settled("kept"))
    assert len(first.requests) == 1, "nothing was moved"
