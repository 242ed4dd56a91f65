"""The life of a pool under an operator that a chart runs, and what its roles allow; on any API server."""

from collections.abc import Callable

from chart_operator import Permission
from chart_release import Object
from simulated_cluster import NAMESPACE
from simulated_world import World

from flexpert_operator.api import names
from flexpert_operator.kube import (
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    MOE_DEPLOYMENTS,
    NETWORK_POLICIES,
    PODS,
    POLICIES,
    RAY_CLUSTERS,
    SCALERS,
    SERVICES,
    Resource,
)

HIDINGS = 5
FAST = {"operator": {"resyncSeconds": 0.5, "provisionDeadlineSeconds": 60, "drainDeadlineSeconds": 20}}
RELEASES = {
    "all namespaces": FAST | {"networkPolicy": {"pools": {"enabled": True}}},
    "one namespace": FAST | {"watchNamespaces": [NAMESPACE]},
}
CHILDREN = (
    (RAY_CLUSTERS, "whole"),
    (DEPLOYMENTS, names.ingress("whole")),
    (SERVICES, names.ingress("whole")),
    (DISRUPTION_BUDGETS, names.disruption_budget("whole", names.EXPERTS_ROLE)),
    (NETWORK_POLICIES, names.network_policy("whole", names.HEAD_ROLE)),
)


def live_a_whole_life(world: World, asked: Callable[[], set[Permission]]) -> None:
    """Whatever an operator does for a pool: begin, grow, shrink, repair what others changed, change the head, end.

    `asked`: what the operator has asked for so far.
    """
    pool = world.serve("whole")
    world.scale("whole", 3)
    world.until("three workers", lambda: world.is_settled("whole") and len(pool.holders()) == 3)
    world.scale("whole", 2)
    world.until("two workers", lambda: world.is_settled("whole") and len(pool.holders()) == 2)
    be_scaled(world)
    world.kube.patch(DEPLOYMENTS, NAMESPACE, "whole-ingress", {"spec": {"replicas": 1}})
    world.kube.patch(SERVICES, NAMESPACE, "whole-ingress", {"spec": {"selector": {"flexpert.io/role": "another"}}})
    world.until("both are as they were", lambda: is_as_wanted(world))
    change_and_change_back(world)
    for resource, name in [child for child in CHILDREN if world.kube.find(child[0], NAMESPACE, child[1])]:
        hide_and_seek(world, resource, name, asked)
    world.kube.delete(PODS, NAMESPACE, sorted(pool.holders())[0].removeprefix("w-"))
    world.until("it is replaced", lambda: world.is_settled("whole") and len(pool.holders()) == 2)
    world.patch("whole", {"head": {"env": [{"name": "SOME", "value": "thing"}]}})
    world.until("another RayCluster serves", lambda: "RayClusterSwitched" in world.reasons("whole"))
    world.kube.delete(MOE_DEPLOYMENTS, NAMESPACE, "whole")
    world.until("gone", lambda: world.kube.find(MOE_DEPLOYMENTS, NAMESPACE, "whole") is None)


def be_scaled(world: World) -> None:
    """Have a policy and a scaler, until the operator has said something about each."""
    for resource, kind in ((POLICIES, names.POLICY_KIND), (SCALERS, names.SCALER_KIND)):
        body = {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {"name": "whole"}}
        world.kube.create(resource, NAMESPACE, {**body, "spec": {"targetRef": {"name": "whole"}}})
        path = (resource, NAMESPACE, "whole")
        world.until(f"{kind} is seen", lambda path=path: world.kube.get(*path).get("status", {}).get("conditions"))
        world.kube.delete(*path)


def change_and_change_back(world: World) -> None:
    """Have the RayCluster be of a generation that the operator did not write, with a spec that is as it wants it.

    Two changes that the operator only sees the second of leave this; here the note of its own generation is made old.
    """
    note = {"metadata": {"annotations": {names.WRITTEN_ANNOTATION: "0"}}}
    world.kube.patch(RAY_CLUSTERS, NAMESPACE, "whole", note)
    world.until("the generation is noted again", lambda: is_noted(world))


def is_noted(world: World) -> bool:
    """Whether the RayCluster says the generation that it has."""
    metadata = world.kube.get(RAY_CLUSTERS, NAMESPACE, "whole")["metadata"]
    return bool(metadata["annotations"][names.WRITTEN_ANNOTATION] == str(metadata["generation"]))


def hide_and_seek(world: World, resource: Resource, name: str, asked: Callable[[], set[Permission]]) -> None:
    """Take an object out of the operator's sight: it makes another, is told that there is one, and reads that.

    It may also write the object just then for another reason, and need not look; so it is hidden some times.
    """
    for _ in range(HIDINGS):
        world.kube.patch(resource, NAMESPACE, name, {"metadata": {"labels": {names.DEPLOYMENT_LABEL: None}}})
        world.until(f"{name} is seen again", lambda: is_labelled(world, resource, name))
        if (resource.group, resource.plural, "get") in asked():
            return


def is_labelled(world: World, resource: Resource, name: str) -> bool:
    """Whether the operator's watches can see an object: they select by a label."""
    return names.DEPLOYMENT_LABEL in world.kube.get(resource, NAMESPACE, name)["metadata"].get("labels", {})


def is_as_wanted(world: World) -> bool:
    """Whether the ingress is as the operator wants it."""
    selector = world.kube.get(SERVICES, NAMESPACE, "whole-ingress")["spec"]["selector"]
    replicas = world.kube.get(DEPLOYMENTS, NAMESPACE, "whole-ingress")["spec"]["replicas"]
    return bool(selector["flexpert.io/role"] == "ingress" and replicas == 2)


def granted(objects: list[Object]) -> set[Permission]:
    """What all roles of a release allow."""
    roles = [one for one in objects if one["kind"] in ("Role", "ClusterRole")]
    return {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
