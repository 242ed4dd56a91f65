"""Changed templates, pod by pod, with the operator for real against the embedded API, a simulated KubeRay and pool."""

import pytest
from simulated_world import Object, World, pool_pods

from flexpert_proto import pool_pb2 as pb

REVISION = "flexpert.io/revision"


pytestmark = pytest.mark.usefixtures("clean")


def cores(number: str) -> Object:
    """A change of the expert pods' template."""
    return {"experts": {"resources": {"limits": {"cpu": number}}}}


def limits(pods: list[Object]) -> set[str]:
    return {pod["spec"]["containers"][0]["resources"]["limits"]["cpu"] for pod in pods}


def wanted_revision(world: World, name: str, role: str = "experts") -> str:
    revision: str = world.group(name, role)["template"]["metadata"]["labels"][REVISION]
    return revision


def is_rolled_out(world: World, name: str, number: str, role: str = "experts") -> bool:
    pods = pool_pods(world, name, role)
    alike = {pod["metadata"]["labels"][REVISION] for pod in pods} == {wanted_revision(world, name, role)}
    return world.is_settled(name) and alike and limits(pods) == {number}


def test_pods_are_replaced_one_by_one_with_their_experts_moved_first(world: World) -> None:
    pool = world.serve("rolled", workers=2)
    before = {pod["metadata"]["name"] for pod in pool_pods(world, "rolled")}
    world.patch("rolled", cores("2"))
    world.until("all pods are new", lambda: is_rolled_out(world, "rolled", "2"))
    assert before.isdisjoint(pod["metadata"]["name"] for pod in pool_pods(world, "rolled"))
    assert [request.cause for request in pool.requests] == [pb.INITIAL, pb.UPGRADE, pb.UPGRADE]
    assert pool.most_pods == 3, "one more than are wanted at any time"
    assert pool.fewest_holders == 2, "as many as are wanted held experts all the time"
    assert not pool.killed_holders, "no pod went with experts on it"
    assert {"RollingOut", "RolledOut"} <= set(world.reasons("rolled"))
    assert world.group("rolled")["replicas"] == 2


def test_a_template_that_does_not_come_up_stops_at_one_pod_and_is_rolled_back(world: World) -> None:
    world.cluster.broken_cores.add("13")
    pool = world.serve("stuck", workers=2)
    before = {pod["metadata"]["name"] for pod in pool_pods(world, "stuck")}
    world.patch("stuck", cores("13"))
    world.until("it is said", lambda: world.condition("stuck", "Degraded") == ("True", "RolloutStuck"))
    (message,) = [one["message"] for one in world.get("stuck")["status"]["conditions"] if one["type"] == "Degraded"]
    assert "ImagePullBackOff: Back-off pulling image" in message
    assert world.condition("stuck", "Ready")[0] == "True"
    assert len(pool_pods(world, "stuck")) == 3
    assert len(pool.requests) == 1, "no expert has moved"
    world.patch("stuck", {"experts": {"resources": None}})
    world.until("it is back", lambda: world.is_settled("stuck") and len(pool_pods(world, "stuck")) == 2)
    assert {pod["metadata"]["name"] for pod in pool_pods(world, "stuck")} == before
    assert world.condition("stuck", "Degraded")[0] == "False"
    assert "PodFailing" in world.reasons("stuck")


def test_without_room_for_one_more_an_older_pod_makes_place(world: World) -> None:
    world.cluster.room["tight"] = 2
    pool = world.serve("tight", workers=2)
    world.patch("tight", cores("2"))
    world.until("all pods are new", lambda: is_rolled_out(world, "tight", "2"))
    assert not pool.killed_holders, "no pod went with experts on it"
    assert pool.fewest_holders == 1, "one at a time"
    assert {request.cause for request in pool.requests[1:]} == {pb.UPGRADE}
    assert "PodUnschedulable" in world.reasons("tight")


def test_engines_are_replaced_one_by_one(world: World) -> None:
    world.serve("engines")
    world.patch("engines", {"engines": {"replicas": 2}})
    world.until("two engines", lambda: world.is_settled("engines") and len(pool_pods(world, "engines", "engines")) == 2)
    before = {pod["metadata"]["name"] for pod in pool_pods(world, "engines", "engines")}
    world.patch("engines", {"engines": {"resources": {"limits": {"cpu": "2"}}}})
    world.until("all pods are new", lambda: is_rolled_out(world, "engines", "2", "engines"))
    now = {pod["metadata"]["name"] for pod in pool_pods(world, "engines", "engines")}
    assert before.isdisjoint(now)
    assert world.group("engines", "engines")["replicas"] == 2


def test_a_pending_worker_is_told_does_not_block_a_shrink_and_is_given_up(world: World) -> None:
    pool = world.serve("pending", workers=3)
    world.cluster.unschedulable.add("pending")
    world.scale("pending", 5)
    world.until("the scheduler's reason", lambda: "3 Insufficient cpu" in progressing(world, "pending"))
    world.scale("pending", 2)
    world.until("two pods", lambda: world.is_settled("pending") and len(pool_pods(world, "pending")) == 2)
    assert not pool.killed_holders
    world.scale("pending", 4)
    world.until("it is given up", lambda: world.condition("pending", "Degraded") == ("True", "ProvisionFailed"))
    world.until("the old size", lambda: len(pool_pods(world, "pending")) == 2)
    assert world.group("pending")["replicas"] == 2
    assert {"PodUnschedulable", "ProvisionFailed"} <= set(world.reasons("pending"))


def progressing(world: World, name: str) -> str:
    conditions = world.get(name)["status"]["conditions"]
    return str(next(one["message"] for one in conditions if one["type"] == "Progressing"))
