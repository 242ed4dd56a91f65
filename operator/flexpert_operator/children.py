"""Makes the objects of a MoEDeployment be as the manifests say; `reconciler` calls it once a reconciliation."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from flexpert_operator import manifests
from flexpert_operator.api import names
from flexpert_operator.api.reasons import DegradedReason
from flexpert_operator.api.spec import Model, MoEDeployment
from flexpert_operator.cached import CachedKube
from flexpert_operator.decide import drift
from flexpert_operator.decide.difference import covers, merge_patch
from flexpert_operator.decide.observation import Event
from flexpert_operator.decide.ownership import check_ours, is_controlled, is_ours, owners
from flexpert_operator.decide.sizing import Size
from flexpert_operator.decide.succession import Part
from flexpert_operator.errors import ChildTaken, KubeConflict, KubeNotFound, KubeRayUnfit
from flexpert_operator.kube import (
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    NETWORK_POLICIES,
    PODS,
    RAY_CLUSTERS,
    SERVICES,
    Kube,
    Object,
    Resource,
)
from flexpert_operator.settings import Settings


def ensure_children(
    kube: CachedKube,
    settings: Settings,
    deployment: MoEDeployment,
    cluster: Object | None,
    size: Size,
    model: Model | None,
    part: Part | None = None,
) -> tuple[Event, ...]:
    """Create what is missing, correct what differs.

    Args:
        kube: Where.
        settings: Image and number of ingresses.
        deployment: The owner.
        cluster: The RayCluster as it was read, before its pods were listed.
        size: Of its groups.
        model: What the RayCluster serves, once that is known.
        part: Which RayCluster it is; None: the first and only one.

    Raises:
        KubeConflict: The RayCluster was changed since it was read; observe again.
        ChildTaken: Names are taken by what is not ours; the other children are as they should be.
        KubeRayUnfit: There is no KubeRay, or one that is too old; all else is as it should be.
    """
    part = part or Part(names.ray_cluster(deployment.name))
    events: tuple[Event, ...] = ()
    unfit: KubeRayUnfit | None = None
    try:
        events = ensure_ray_cluster(kube, settings, deployment, cluster, size, model, part)
    except KubeRayUnfit as failure:
        unfit = failure
    taken = []
    for resource, wanted in children_beside(settings, deployment, size, part):
        try:
            ensure(kube, resource, wanted)
        except ChildTaken as failure:
            taken.append(str(failure))
    if taken:
        raise ChildTaken("; ".join(taken))
    if unfit is not None:
        raise unfit
    return events


def children_beside(
    settings: Settings, deployment: MoEDeployment, size: Size, part: Part
) -> Iterator[tuple[Resource, dict[str, Any]]]:
    """What there is to be beside a RayCluster."""
    yield SERVICES, manifests.cluster_control_service(deployment, part.cluster)
    if part.serves:
        ingresses = deployment.ingress.replicas or settings.ingress_replicas
        yield SERVICES, manifests.pool_control_service(deployment, part.cluster)
        yield SERVICES, manifests.ingress_service(deployment)
        yield DEPLOYMENTS, manifests.ingress_deployment(deployment, settings.image, ingresses)
        for budget in manifests.disruption_budgets(deployment, size, ingresses):
            yield DISRUPTION_BUDGETS, budget
        for policy in manifests.network_policies(deployment, settings.network) if settings.network is not None else ():
            yield NETWORK_POLICIES, policy


def ensure(kube: Kube, resource: Resource, body: Mapping[str, Any]) -> None:
    """Create an object, or patch it where it lacks something of `body`, selects by more or was written by another.

    Raises:
        ChildTaken: Something that is not ours has its name; it is left as it is.
        KubeConflict: It was changed since it was seen, or another one has its name.
    """
    wanted = with_digest(body)
    namespace, name = wanted["metadata"]["namespace"], wanted["metadata"]["name"]
    live = kube.find(resource, namespace, name)
    if live is None:
        kube.create(resource, namespace, wanted)
        return
    if "deletionTimestamp" in live["metadata"]:
        return
    check_ours(resource.plural, live, wanted)
    wanted["metadata"]["ownerReferences"] = owners(live, wanted)
    surplus = surplus_selectors(live, wanted) if resource is SERVICES else {}
    if surplus or not covers(live, wanted):
        patch = correction(live, wanted)
        if surplus:
            patch["spec"] = {**patch["spec"], "selector": {**patch["spec"]["selector"], **surplus}}
        patch["metadata"] = {**patch["metadata"], "resourceVersion": live["metadata"]["resourceVersion"]}
        kube.patch(resource, namespace, name, patch)


def with_digest(body: Mapping[str, Any]) -> dict[str, Any]:
    """An object that says in an annotation what it was written as."""
    text = json.dumps(body, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    annotations = {**body["metadata"].get("annotations", {}), names.DIGEST_ANNOTATION: digest}
    return {**body, "metadata": {**body["metadata"], "annotations": annotations}}


def correction(live: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch that makes `live` be as wanted; of a pod template also what is not wanted any more goes."""
    spec = wanted["spec"]
    if "template" not in spec:
        return dict(wanted)
    template = merge_patch(live["spec"]["template"], spec["template"])
    return {**wanted, "spec": {**spec, "template": template}}


def surplus_selectors(live: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, None]:
    """What a live Service selects by beside what is wanted, as a merge patch that takes it away."""
    return {key: None for key in live["spec"].get("selector") or {} if key not in wanted["spec"]["selector"]}


def ensure_ray_cluster(
    kube: CachedKube,
    settings: Settings,
    deployment: MoEDeployment,
    live: Object | None,
    size: Size,
    model: Model | None,
    part: Part,
) -> tuple[Event, ...]:
    """Create the RayCluster, or replace its spec if it is still as it was read; raises as `ensure_children` does."""
    namespace, name, gcs = deployment.namespace, part.cluster, settings.gcs
    body = manifests.ray_cluster(deployment, settings.image, size.engines, size.experts, size.sizing, model, gcs, name)
    other = manifests.has_other_head(live, body["metadata"]["annotations"][names.HEAD_ANNOTATION])
    wanted = with_digest(manifests.as_it_is(body, live) if live is not None and other else body)
    if live is None:
        wanted["metadata"]["annotations"][names.WRITTEN_ANNOTATION] = "1"
        note_generation(kube, create_ray_cluster(kube, namespace, wanted))
        return (
            Event(
                "Created",
                f"RayCluster {name} with {size.engines.replicas} engines and {size.experts.replicas} expert pods",
            ),
        )
    wanted["metadata"]["ownerReferences"] = owners(live, wanted)
    restored = drift.is_foreign(live) and not drift.is_tolerated(live)
    if "deletionTimestamp" in live["metadata"] or (covers(live, wanted) and not restored):
        return ()
    check_dropped(kube.live, live, wanted)
    check_shrink(kube.live, deployment, live, wanted)
    note_generation(kube, kube.replace(RAY_CLUSTERS, namespace, name, drift.replacement(live, wanted)))
    said = Event("RayClusterRestored", f"somebody else changed RayCluster {name}: it is put right", warning=True)
    return (*((said,) if restored else ()), *scale_events(live, wanted))


def create_ray_cluster(kube: CachedKube, namespace: str, wanted: Mapping[str, Any]) -> Object:
    """Make a RayCluster in a namespace that exists.

    Raises:
        KubeRayUnfit: The API server does not know the kind.
        KubeConflict, ChildTaken: As `CachedKube.create`.
    """
    try:
        return kube.create(RAY_CLUSTERS, namespace, wanted)
    except KubeNotFound as missing:
        raise KubeRayUnfit(DegradedReason.KUBERAY_NOT_INSTALLED, drift.WHY_MISSING) from missing


def check_dropped(kube: Kube, live: Object, wanted: Mapping[str, Any]) -> None:
    """See whether the API server would still drop what it dropped when this was written; nothing is written.

    Raises:
        KubeRayUnfit: It would.
        KubeConflict: The RayCluster was changed since it was read.
    """
    if not drift.dropped(live, wanted):
        return
    metadata = live["metadata"]
    path = RAY_CLUSTERS.path(metadata["namespace"], metadata["name"])
    tried = kube.request("PUT", path, {**live, "spec": wanted["spec"]}, {"dryRun": "All"})
    fields = drift.dropped(tried, wanted)
    if fields:
        raise KubeRayUnfit(DegradedReason.KUBERAY_TOO_OLD, drift.why_dropped(metadata["name"], fields))


def note_generation(kube: Kube, written: Object) -> None:
    """Have the annotation say the generation that was written, where it was foreseen wrongly.

    Raises:
        KubeConflict: The RayCluster was changed since it was written.
    """
    if drift.is_foreign(written):
        metadata = written["metadata"]
        noted = {names.WRITTEN_ANNOTATION: str(metadata["generation"])}
        kube.replace(RAY_CLUSTERS, metadata["namespace"], metadata["name"], drift.annotated(written, noted))


def check_shrink(kube: Kube, deployment: MoEDeployment, live: Object, wanted: Mapping[str, Any]) -> None:
    """Look at the pods once more before any goes: KubeRay deletes one of its own choice where a name is stale.

    Raises:
        KubeConflict: The pods are not those that were decided on.
    """
    before = {group["groupName"]: group for group in live["spec"].get("workerGroupSpecs", ())}
    for group in wanted["spec"]["workerGroupSpecs"]:
        role, named = group["groupName"], set(group["scaleStrategy"]["workersToDelete"])
        then = before.get(role, {})
        fresh = named - set((then.get("scaleStrategy") or {}).get("workersToDelete") or ())
        if not fresh and group["replicas"] >= then.get("replicas", 0):
            continue
        pods = kube.list(PODS, deployment.namespace, names.selector(deployment.name, role))
        there = {pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}
        if fresh - there or len(there - named) > group["replicas"]:
            raise KubeConflict(f"pods of {role} have changed since they were listed: {sorted(there)}")


def scale_events(live: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[Event, ...]:
    """What to say when the size of a group changes."""
    before = {group["groupName"]: group for group in live["spec"].get("workerGroupSpecs", ())}
    events = []
    for group in wanted["spec"]["workerGroupSpecs"]:
        name, now = group["groupName"], group["replicas"]
        then = before.get(name, {}).get("replicas", 0)
        gone = ", ".join(group["scaleStrategy"]["workersToDelete"])
        if now != then:
            events.append(Event("Scaling", f"pods of {name}: {then} to {now}{f', deleting {gone}' if gone else ''}"))
    return tuple(events)


def delete_cluster(kube: Kube, deployment: MoEDeployment, cluster: str) -> None:
    """Delete a RayCluster and its Service, as far as they are ours."""
    delete(kube, RAY_CLUSTERS, deployment, cluster)
    delete(kube, SERVICES, deployment, names.cluster_control_service(cluster))


def delete_children(kube: Kube, deployment: MoEDeployment) -> None:
    """Delete all of them that are not being deleted; what they own goes in the background.

    NetworkPolicies stay until Kubernetes collects them: they hold as long as there are pods.
    """
    name = deployment.name
    for role in (names.ENGINES_ROLE, names.EXPERTS_ROLE, names.INGRESS_ROLE):
        delete(kube, DISRUPTION_BUDGETS, deployment, names.disruption_budget(name, role))
    delete(kube, DEPLOYMENTS, deployment, names.ingress(name))
    for cluster in own_clusters(kube, deployment):
        delete_cluster(kube, deployment, cluster["metadata"]["name"])
    delete(kube, SERVICES, deployment, names.ingress(name))
    delete(kube, SERVICES, deployment, names.pool_control_service(name))


def delete(kube: Kube, resource: Resource, deployment: MoEDeployment, name: str) -> None:
    """Delete an object if it is ours and is not being deleted. One that is out of sight Kubernetes collects.

    Raises:
        KubeConflict: Another one has its name since it was seen.
    """
    live = kube.find(resource, deployment.namespace, name)
    if live is None or "deletionTimestamp" in live["metadata"]:
        return
    if is_ours(live, deployment.uid, deployment.name):
        kube.delete(resource, deployment.namespace, name, live["metadata"]["uid"])


def own_clusters(kube: Kube, deployment: MoEDeployment) -> list[Object]:
    """The RayClusters of a MoEDeployment; of those that nobody controls only the one with the first one's name."""
    first, uid = names.ray_cluster(deployment.name), deployment.uid
    return [
        raw
        for raw in kube.list(RAY_CLUSTERS, deployment.namespace, names.selector(deployment.name))
        if is_controlled(raw, uid) or (raw["metadata"]["name"] == first and is_ours(raw, uid, deployment.name))
    ]
