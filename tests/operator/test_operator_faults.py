"""The operator outlives its API server's faults, and asks it nothing when nothing changes."""

import threading
from collections.abc import Iterator

import pytest
from faulty_api import Fault, FaultyApi, is_watch, is_write
from operator_process import moe_deployment
from simulated_world import NAMESPACE, World, pool_pods

from flexpert_operator.kube import DEPLOYMENTS, DISRUPTION_BUDGETS, MOE_DEPLOYMENTS, PODS, RAY_CLUSTERS, SERVICES

OUTAGE_S = 30.0
FAULTY = True
"""The operator reaches the API through a proxy: `conftest.world` looks for this."""

pytestmark = pytest.mark.usefixtures("clean")


@pytest.fixture
def api(world: World) -> Iterator[FaultyApi]:
    assert world.proxy is not None
    yield world.proxy
    world.proxy.faults.clear()


def wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def test_nothing_is_asked_when_nothing_changes(world: World, api: FaultyApi) -> None:
    world.serve("idle")
    world.until("every event is through", lambda: not settling(world, api))
    before = api.requests()
    looks = world.reconciliations("idle")
    world.until("it has been looked at often", lambda: world.reconciliations("idle") >= looks + 5)
    assert api.requests() == before


def settling(world: World, api: FaultyApi) -> bool:
    """Whether anything is asked within a while."""
    before = api.requests()
    wait(1.0)
    return api.requests() != before


def test_every_child_is_deleted_once_however_long_it_takes_to_go(world: World, api: FaultyApi) -> None:
    """KubeRay holds the RayCluster by a finalizer, as it does to clean Redis up."""
    world.serve("gone")
    finalizers = {"metadata": {"finalizers": ["ray.io/gcs-ft-redis-cleanup-finalizer"]}}
    world.kube.patch(RAY_CLUSTERS, NAMESPACE, "gone", finalizers)
    del api.deleted[:]
    world.kube.delete(MOE_DEPLOYMENTS, NAMESPACE, "gone")
    world.until("all children are deleted", lambda: len(api.deleted) >= 8)
    for pod in pool_pods(world, "gone"):
        world.kube.patch(PODS, NAMESPACE, pod["metadata"]["name"], {"metadata": {"labels": {"look": "again"}}})
    look_again(world, "gone", 3)
    world.kube.patch(RAY_CLUSTERS, NAMESPACE, "gone", {"metadata": {"finalizers": None}})
    world.until("it is gone", lambda: world.kube.find(MOE_DEPLOYMENTS, NAMESPACE, "gone") is None)
    children = (
        *((DISRUPTION_BUDGETS, f"gone-{role}") for role in ("engines", "experts", "ingress")),
        (DEPLOYMENTS, "gone-ingress"),
        (RAY_CLUSTERS, "gone"),
        *((SERVICES, f"gone-{what}") for what in ("head-control", "ingress", "pool-control")),
    )
    assert sorted(api.deleted) == sorted(resource.path(NAMESPACE, name) for resource, name in children)


def look_again(world: World, name: str, times: int) -> None:
    """Wait until the operator has looked at an object so often."""
    before = world.reconciliations(name)
    world.until("it is looked at", lambda: world.reconciliations(name) >= before + times)


@pytest.mark.parametrize("status", [409, 429, 500, 503])
def test_refused_writes_are_tried_again(world: World, api: FaultyApi, status: int) -> None:
    name = f"refused-{status}"
    headers = {"Retry-After": "1"} if status == 429 else {}
    before = api.refused
    api.faults.append(Fault(is_write, status, times=4, headers=headers))
    pool = world.serve(name)
    assert api.refused == before + 4
    api.faults.append(Fault(is_write, status, times=4, headers=headers))
    world.scale(name, 3)
    world.until("three workers", lambda: world.is_settled(name) and len(pool.holders()) == 3)
    assert len({request.operation_id for request in pool.requests}) == len(pool.requests) == 2


def test_a_slow_webhook_holds_nobody_else_up(world: World, api: FaultyApi) -> None:
    slow = Fault(lambda request: is_write(request) and "/slow" in request.path, times=10**6, delay_s=10**6)
    api.faults.append(slow)
    world.kube.create(MOE_DEPLOYMENTS, NAMESPACE, moe_deployment("slow"))
    world.serve("quick")
    assert world.kube.find(RAY_CLUSTERS, NAMESPACE, "slow") is None
    api.faults.remove(slow)
    world.until("it is seen to in the end", lambda: world.is_settled("slow"))


def test_watches_that_expire_are_made_anew(world: World, api: FaultyApi) -> None:
    pool = world.serve("expired")
    api.faults.append(Fault(is_watch, 410, times=8))
    api.cut_watches()
    world.scale("expired", 3)
    world.until("three workers", lambda: world.is_settled("expired") and len(pool.holders()) == 3)
    gone = pool_pods(world, "expired")[0]["metadata"]["name"]
    api.faults.append(Fault(is_watch, 410, times=8))
    api.cut_watches()
    world.kube.delete(PODS, NAMESPACE, gone)
    world.until(
        "another pod serves",
        lambda: (
            world.is_settled("expired")
            and gone not in {worker.rsplit("-", 1)[0] for worker in pool.holders()}
            and len(pool_pods(world, "expired")) == 3
        ),
    )


def test_what_is_deleted_unseen_is_not_made_again(world: World, api: FaultyApi) -> None:
    world.serve("unseen")
    with api.outage():
        world.kube.patch(MOE_DEPLOYMENTS, NAMESPACE, "unseen", {"metadata": {"finalizers": None}})
        world.kube.delete(MOE_DEPLOYMENTS, NAMESPACE, "unseen")
        world.until("all is collected", lambda: world.kube.find(RAY_CLUSTERS, NAMESPACE, "unseen") is None)
    world.serve("after")
    assert world.kube.find(RAY_CLUSTERS, NAMESPACE, "unseen") is None
    assert world.kube.find(SERVICES, NAMESPACE, "unseen-ingress") is None


def test_a_child_that_lost_its_label_is_taken_back(world: World, api: FaultyApi) -> None:
    world.serve("stripped")
    labels = {"metadata": {"labels": {"flexpert.io/moedeployment": None}}}
    world.kube.patch(SERVICES, NAMESPACE, "stripped-ingress", labels)

    def labelled() -> bool:
        found = world.kube.get(SERVICES, NAMESPACE, "stripped-ingress")["metadata"]
        return found["labels"].get("flexpert.io/moedeployment") == "stripped"

    world.until("it has it again", labelled)


def test_an_outage_in_the_middle_of_a_reconfiguration(world: World, api: FaultyApi) -> None:
    pool = world.serve("away")
    pool.hold = True
    world.scale("away", 4)
    world.until("preparing", lambda: world.condition("away", "Progressing") == ("True", "Preparing"))
    with api.outage():
        wait(OUTAGE_S / 2)
        pool.release()
        wait(OUTAGE_S / 2)
    world.until("four workers", lambda: world.is_settled("away") and len(pool.holders()) == 4)
    assert len({request.operation_id for request in pool.requests}) == len(pool.requests) == 2
    assert world.cluster.random_deletions == []
    owned = [one for one in world.kube.list(DEPLOYMENTS, NAMESPACE, "") if one["metadata"]["name"].startswith("away")]
    assert len(owned) == 1


def test_an_api_server_that_asks_for_patience_gets_it(world: World, api: FaultyApi) -> None:
    world.serve("patient")
    refused = api.refused
    api.faults.append(Fault(is_write, 429, times=10**6, headers={"Retry-After": "2"}))
    world.scale("patient", 3)
    wait(9.0)
    assert 1 <= api.refused - refused <= 12, "no hot loop"
    api.faults.clear()
    world.until("three workers", lambda: world.is_settled("patient"))
