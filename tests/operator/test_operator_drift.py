"""Somebody else at a pool's objects: the operator for real, the embedded API, a simulated KubeRay and pool."""

import contextlib
import copy
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from simulated_cluster import NAMESPACE
from simulated_world import SETTINGS, Operator, World, pool_pods

from flexpert_operator.errors import KubeError
from flexpert_operator.kube import DEPLOYMENTS, RAY_CLUSTERS, SERVICES

pytestmark = pytest.mark.usefixtures("clean")


def spec_of(world: World, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = world.kube.get(RAY_CLUSTERS, NAMESPACE, name)["spec"]
    return spec


def test_a_ray_cluster_is_brought_back_whatever_was_changed(world: World) -> None:
    world.serve("edited")
    before = spec_of(world, "edited")
    without = [group for group in before["workerGroupSpecs"] if group["groupName"] != "engines"]
    world.kube.patch(RAY_CLUSTERS, NAMESPACE, "edited", {"spec": {"workerGroupSpecs": without}})
    world.until("the group is back", lambda: spec_of(world, "edited") == before)
    changed = spec_of(world, "edited")["workerGroupSpecs"]
    changed[1]["template"]["spec"]["containers"][0]["image"] = "another:1"
    changed[1]["template"]["spec"]["nodeSelector"] = {"disk": "ssd"}
    world.kube.patch(RAY_CLUSTERS, NAMESPACE, "edited", {"spec": {"workerGroupSpecs": changed}})
    world.until("the template is back", lambda: spec_of(world, "edited") == before)
    world.until("it is settled", lambda: world.is_settled("edited"))
    assert "RayClusterRestored" in world.reasons("edited")
    version = world.kube.get(RAY_CLUSTERS, NAMESPACE, "edited")["metadata"]["resourceVersion"]
    threading.Event().wait(3 * SETTINGS.resync_s)
    assert world.kube.get(RAY_CLUSTERS, NAMESPACE, "edited")["metadata"]["resourceVersion"] == version


def test_what_somebody_adds_again_and_again_is_left_in_the_end(world: World) -> None:
    world.serve("fought")
    before = spec_of(world, "fought")
    world.kube.patch(RAY_CLUSTERS, NAMESPACE, "fought", {"spec": {"suspend": True}})
    world.until("it is taken away", lambda: spec_of(world, "fought") == before)
    world.kube.patch(RAY_CLUSTERS, NAMESPACE, "fought", {"spec": {"suspend": True}})
    threading.Event().wait(3 * SETTINGS.resync_s)
    assert spec_of(world, "fought")["suspend"] is True


def test_replicas_that_somebody_raised_go_with_their_experts_moved(world: World) -> None:
    pool = world.serve("raised")
    groups = spec_of(world, "raised")["workerGroupSpecs"]
    groups[1]["replicas"] = 3
    world.kube.patch(RAY_CLUSTERS, NAMESPACE, "raised", {"spec": {"workerGroupSpecs": groups}})
    world.until("three pods", lambda: len(pool_pods(world, "raised")) == 3)
    world.until("two pods", lambda: world.is_settled("raised") and len(pool_pods(world, "raised")) == 2)
    assert not pool.killed_holders
    assert world.cluster.random_deletions == []


def test_what_is_deleted_is_made_again(world: World) -> None:
    world.serve("deleted")
    world.kube.delete(RAY_CLUSTERS, NAMESPACE, "deleted")
    world.kube.delete(SERVICES, NAMESPACE, "deleted-ingress")
    world.kube.delete(DEPLOYMENTS, NAMESPACE, "deleted-ingress")
    world.until("all are back", lambda: world.is_settled("deleted") and len(pool_pods(world, "deleted")) == 2)
    for resource, name in ((RAY_CLUSTERS, "deleted"), (SERVICES, "deleted-ingress"), (DEPLOYMENTS, "deleted-ingress")):
        world.until(f"{name} is back", lambda resource=resource, name=name: world.kube.find(resource, NAMESPACE, name))


def test_services_lead_where_they_should(world: World) -> None:
    world.serve("served")
    before = world.kube.get(SERVICES, NAMESPACE, "served-pool-control")["spec"]
    change = {"spec": {"selector": {"flexpert.io/role": "engines", "extra": "label"}, "ports": [{"port": 1}]}}
    world.kube.patch(SERVICES, NAMESPACE, "served-pool-control", change)
    world.until("it is back", lambda: world.kube.get(SERVICES, NAMESPACE, "served-pool-control")["spec"] == before)


DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
CRDS = f"{DEFINITIONS}/rayclusters.ray.io"


def define_ray_clusters(world: World, schema: dict[str, Any]) -> None:
    """Have RayClusters be of a schema from now on."""
    crd = world.kube.request("GET", CRDS)
    crd["spec"]["versions"][0]["schema"] = {"openAPIV3Schema": schema}
    world.kube.request("PUT", CRDS, crd)


def test_a_kuberay_that_drops_what_is_needed_is_named_and_not_written_to_for_ever(
    world: World, kuberay_schema: dict[str, Any]
) -> None:
    before = world.kube.request("GET", CRDS)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    old = copy.deepcopy(kuberay_schema)
    for field in ("authOptions", "upgradeStrategy"):
        del old["properties"]["spec"]["properties"][field]
    define_ray_clusters(world, old)
    try:
        world.apply("aged")
        world.until("it is told", lambda: world.condition("aged", "Degraded") == ("True", "KubeRayTooOld"))
        (said,) = [one["message"] for one in world.get("aged")["status"]["conditions"] if one["type"] == "Degraded"]
        assert "spec.authOptions, spec.upgradeStrategy" in said
        assert "older than 1.6" in said
        world.scale("aged", 3)
        pools = world.cluster.pools
        world.until("it scales all the same", lambda: world.is_settled("aged") and len(pools["aged"].holders()) == 3)
        still = world.kube.get(RAY_CLUSTERS, NAMESPACE, "aged")["metadata"]["resourceVersion"]
        looks = world.reconciliations("aged")
        world.until("it is looked at", lambda: world.reconciliations("aged") >= looks + 4)
        assert world.kube.get(RAY_CLUSTERS, NAMESPACE, "aged")["metadata"]["resourceVersion"] == still
        assert world.condition("aged", "Degraded") == ("True", "KubeRayTooOld")
        define_ray_clusters(world, kuberay_schema)
        world.until("KubeRay is new enough", lambda: world.condition("aged", "Degraded")[0] == "False")
        assert spec_of(world, "aged")["authOptions"] == {"mode": "token"}
    finally:
        define_ray_clusters(world, before)


@contextlib.contextmanager
def without_kuberay(world: World) -> Iterator[None]:
    """RayClusters are not known, and those that there were are gone, until the end of the context."""
    found = world.kube.request("GET", CRDS)
    world.kube.request("DELETE", CRDS)
    world.until("the kind is gone", lambda: not is_known(world))
    yield
    kept = {"apiVersion": found["apiVersion"], "kind": found["kind"], "metadata": {"name": found["metadata"]["name"]}}
    world.kube.request("POST", DEFINITIONS, kept | {"spec": found["spec"]})
    world.until("the kind is back", lambda: is_known(world))


def is_known(world: World) -> bool:
    try:
        world.kube.list(RAY_CLUSTERS, NAMESPACE, "")
    except KubeError:
        return False
    return True


def test_without_kuberay_it_is_told_and_pools_come_once_it_is_installed(world: World) -> None:
    world.operator.stop()
    with without_kuberay(world):
        world.operator = Operator(world.kubeconfig)
        world.apply("early")
        world.until("it is told", lambda: world.condition("early", "Degraded") == ("True", "KubeRayNotInstalled"))
        world.until("the rest is made", lambda: world.kube.find(DEPLOYMENTS, NAMESPACE, "early-ingress"))
        looks, version = world.reconciliations("early"), world.get("early")["metadata"]["resourceVersion"]
        world.until("it is tried again", lambda: world.reconciliations("early") >= looks + 4)
        assert world.get("early")["metadata"]["resourceVersion"] == version, "it is not told again and again"
        assert world.condition("early", "Ready")[0] == "False"
    well = ("False", "AsExpected")
    world.until("it is served", lambda: world.is_settled("early") and world.condition("early", "Degraded") == well)
    with without_kuberay(world):
        lost = ("True", "KubeRayNotInstalled")
        world.until("it is told of a pool that was served", lambda: world.condition("early", "Degraded") == lost)
    world.until(
        "it is told no more", lambda: world.is_settled("early") and world.condition("early", "Degraded") == well
    )
