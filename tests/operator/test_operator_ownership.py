"""Other people's objects under names that the operator uses: the operator for real, a simulated KubeRay and pool."""

import pytest
from simulated_cluster import NAMESPACE
from simulated_world import World

from flexpert_operator.kube import DEPLOYMENTS, MOE_DEPLOYMENTS, RAY_CLUSTERS, SERVICES, Object, Resource

POD = {
    "metadata": {"labels": {"app": "theirs", "flexpert.io/role": "theirs"}},
    "spec": {
        "containers": [
            {"name": "theirs", "image": "theirs:1", "resources": {"limits": {"cpu": "1"}}},
        ]
    },
}
SPECS: dict[Resource, Object] = {
    SERVICES: {"selector": {"app": "theirs"}, "ports": [{"port": 80}]},
    DEPLOYMENTS: {"replicas": 0, "selector": {"matchLabels": {"app": "theirs"}}, "template": POD},
    RAY_CLUSTERS: {"headGroupSpec": {"rayStartParams": {}, "template": POD}, "workerGroupSpecs": []},
}
KINDS = {SERVICES: ("v1", "Service"), DEPLOYMENTS: ("apps/v1", "Deployment"), RAY_CLUSTERS: ("ray.io/v1", "RayCluster")}


def somebody(world: World, name: str) -> Object:
    """A reference to an object that exists: what an owner that is gone left would be collected."""
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
    made = world.kube.request("POST", f"/api/v1/namespaces/{NAMESPACE}/configmaps", body)
    return {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": made["metadata"]["uid"]}


def theirs(world: World, resource: Resource, name: str, **metadata: object) -> Object:
    version, kind = KINDS[resource]
    body = {"apiVersion": version, "kind": kind, "metadata": {"name": name, **metadata}, "spec": SPECS[resource]}
    return world.kube.create(resource, NAMESPACE, body)


def message(world: World, name: str) -> str:
    conditions = world.get(name)["status"]["conditions"]
    return str(next(one["message"] for one in conditions if one["type"] == "Degraded"))


@pytest.mark.parametrize("labelled", [False, True], ids=["out of sight", "with our label"])
@pytest.mark.parametrize(
    ("resource", "suffix"),
    [(SERVICES, "-ingress"), (DEPLOYMENTS, "-ingress"), (RAY_CLUSTERS, "")],
    ids=["Service", "Deployment", "RayCluster"],
)
def test_what_is_not_ours_is_left(world: World, resource: Resource, suffix: str, labelled: bool) -> None:
    name = f"{resource.plural}-{labelled}".lower()
    owner = {**somebody(world, name), "controller": True}
    known = {"labels": {"flexpert.io/moedeployment": name}, "ownerReferences": [owner]} if labelled else {}
    before = theirs(world, resource, name + suffix, **known)
    world.apply(name)
    world.until("it is said", lambda: world.condition(name, "Degraded") == ("True", "ChildNameTaken"))
    assert f"{resource.plural} {NAMESPACE}/{name}{suffix}" in message(world, name)
    world.kube.delete(MOE_DEPLOYMENTS, NAMESPACE, name)
    world.until("gone", lambda: world.kube.find(MOE_DEPLOYMENTS, NAMESPACE, name) is None)
    after = world.kube.get(resource, NAMESPACE, name + suffix)
    assert (after["metadata"]["uid"], after["spec"]) == (before["metadata"]["uid"], before["spec"])
    assert after["metadata"].get("ownerReferences") == before["metadata"].get("ownerReferences")
    assert "deletionTimestamp" not in after["metadata"]
