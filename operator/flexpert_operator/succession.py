"""One MoEDeployment over its RayClusters: one as a rule, two while a head is replaced. `controller` calls it.

`decide.succession` says which serves and which follows; a `Reconciler` tends each of the two.
"""

import time
from collections.abc import Callable
from dataclasses import replace

from flexpert_operator import manifests
from flexpert_operator.api import names
from flexpert_operator.api.reasons import DegradedReason, EventReason
from flexpert_operator.api.spec import MoEDeployment, parse_deployment
from flexpert_operator.cached import CachedKube
from flexpert_operator.children import delete_cluster, own_clusters
from flexpert_operator.decide import drift
from flexpert_operator.decide.observation import Event, Problem
from flexpert_operator.decide.succession import Part, Plan, Standing, decide_succession, may_go, standing_of
from flexpert_operator.decide.terms import forgotten
from flexpert_operator.kube import MOE_DEPLOYMENTS, RAY_CLUSTERS, Object
from flexpert_operator.observe import served_model
from flexpert_operator.reconciler import Reconciler, Tell
from flexpert_operator.scaling_objects import with_sizes
from flexpert_operator.settings import Settings

MakeTender = Callable[[str], Reconciler]
"""Name of a RayCluster → what tends it."""


class Succession:
    """Reconciles one MoEDeployment."""

    def __init__(
        self,
        namespace: str,
        name: str,
        kube: CachedKube,
        settings: Settings,
        tell: Tell,
        make: MakeTender,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._namespace = namespace
        self._name = name
        self._kube = kube
        self._settings = settings
        self._tell = tell
        self._make = make
        self._clock = clock
        self._tenders: dict[str, Reconciler] = {}

    def close(self) -> None:
        """Give up all connections; nothing more is told of the object."""
        for tender in self._tenders.values():
            tender.close()
        self._tenders.clear()

    def reconcile(self) -> float | None:
        """Bring the world one step nearer to the spec, or to the end of what is being deleted.

        Returns:
            The seconds until it should be called again, if nothing changes before; None when the object is gone.

        Raises:
            KubeError: The API server did not let it; call again later.
            InvalidObject: The CRD is another version's.
        """
        body = self._kube.find(MOE_DEPLOYMENTS, self._namespace, self._name)
        if body is None:
            return None
        deployment = parse_deployment(body)
        raws = own_clusters(self._kube, deployment)
        there = [raw for raw in raws if "deletionTimestamp" not in raw["metadata"]]
        plan = decide_succession(self._name, [standing_of(raw) for raw in there], self._wanted(deployment, there))
        if "deletionTimestamp" in body["metadata"]:
            return self._tender(plan.active).reconcile(Part(plan.active))
        for cluster in plan.abandoned:
            self._delete(body, cluster, "it never served, and its head is not wanted any more")
        part = self._succeed(body, plan) if plan.successor is not None else self._retire(body, plan)
        wait_s = self._tender(plan.active).reconcile(part)
        busy = bool(part.progress) and part.problem is None
        return min(wait_s, self._settings.busy_s) if wait_s is not None and busy else wait_s

    def _wanted(self, deployment: MoEDeployment, there: list[Object]) -> str:
        """Revision of the head that is asked for; another model than the one that is served asks for nothing."""
        found = next((model for raw in there if (model := served_model(raw)) is not None), deployment.model)
        shown = deployment if found == deployment.model else replace(deployment, model=found)
        return manifests.head_revision(shown, self._settings.image, self._settings.gcs)

    def _succeed(self, body: Object, plan: Plan) -> Part:
        """Bring the successor up, and have it serve once it can."""
        assert plan.successor is not None
        progress = f"RayCluster {plan.successor}, with the new head, is to follow {plan.active}"
        unaffordable = self._why_unaffordable(body, plan.successor)
        if unaffordable:
            return Part(plan.active, progress=progress, problem=Problem(DegradedReason.ROLLOUT_BLOCKED, unaffordable))
        tender = self._tender(plan.successor)
        if not plan.returns:
            tender.reconcile(Part(plan.successor, serves=False))
        if plan.returns or tender.complete:
            self._switch(body, plan, plan.successor)
        problem = None
        if tender.trouble:
            why = f"RayCluster {plan.successor}, with the new head, does not come up: {tender.trouble}. {plan.active} "
            why += "goes on serving; set back or mend what was changed in spec.head or the operator's image"
            problem = Problem(DegradedReason.ROLLOUT_STUCK, why)
        return Part(plan.active, progress=progress, problem=problem)

    def _why_unaffordable(self, body: Object, successor: str) -> str:
        """Why there is no budget for a second RayCluster; empty where there is, or where that is there already."""
        if self._kube.find(RAY_CLUSTERS, self._namespace, successor) is not None:
            return ""
        owned = with_sizes(self._kube, parse_deployment(body))
        budget = owned.budget
        takes = 2 * budget.taken_by(owned.deployment) if budget is not None else 0
        if budget is None or takes <= budget.devices:
            return ""
        return (
            f"another head needs a second RayCluster beside the first, {takes} devices in all, and the policy's budget "
            f"has {budget.devices}. Raise it until the head is replaced, or set back what was changed in spec.head or "
            "the operator's image"
        )

    def _switch(self, body: Object, plan: Plan, successor: str) -> None:
        """From now on the successor serves: the next reconciliation moves the Services.

        The newer of the two is marked first: `decide_succession` then goes on with the same plan if that was all.

        Raises:
            KubeConflict: One of them was changed since it was seen.
        """
        marks = {successor: None, plan.active: str(round(self._clock(), 3))}
        found = [self._kube.get(RAY_CLUSTERS, self._namespace, cluster) for cluster in marks]
        for raw in sorted(found, key=age_of, reverse=True):
            self._mark(raw, marks[raw["metadata"]["name"]])
        message = f"RayCluster {successor} serves from now on; {plan.active} goes when its streams have ended"
        self._tell(body, Event(EventReason.RAY_CLUSTER_SWITCHED, message))

    def _mark(self, raw: Object, retired: str | None) -> None:
        if drift.annotations_of(raw).get(names.RETIRED_ANNOTATION) != retired:
            body = drift.annotated(raw, {names.RETIRED_ANNOTATION: retired})
            self._kube.replace(RAY_CLUSTERS, self._namespace, raw["metadata"]["name"], body)

    def _retire(self, body: Object, plan: Plan) -> Part:
        """Delete those whose streams have ended."""
        left = [one for one in plan.retired if not self._went(body, one)]
        progress = f"RayCluster {left[0].name} goes when its streams have ended" if left else ""
        return Part(plan.active, progress=progress)

    def _went(self, body: Object, retired: Standing) -> bool:
        settle_s, deadline_s = self._settings.settle_s, self._settings.streams_deadline_s
        in_flight = self._tender(retired.name).requests_in_flight()
        if not may_go(retired, self._clock(), in_flight, settle_s, deadline_s):
            return False
        self._delete(body, retired.name, "another one serves, and its streams have ended")
        return True

    def _delete(self, body: Object, cluster: str, why: str) -> None:
        delete_cluster(self._kube, parse_deployment(body), cluster)
        tender = self._tenders.pop(cluster, None)
        if tender is not None:
            tender.disconnect()
        annotations = forgotten(body["metadata"].get("annotations") or {}, self._name, cluster)
        if annotations:
            self._kube.patch(MOE_DEPLOYMENTS, self._namespace, self._name, {"metadata": {"annotations": annotations}})
        self._tell(body, Event(EventReason.RAY_CLUSTER_DELETED, f"RayCluster {cluster}: {why}"))

    def _tender(self, cluster: str) -> Reconciler:
        if cluster not in self._tenders:
            self._tenders[cluster] = self._make(cluster)
        return self._tenders[cluster]


def age_of(raw: Object) -> tuple[str, str]:
    """What RayClusters are sorted by, the oldest first."""
    return str(raw["metadata"].get("creationTimestamp", "")), raw["metadata"]["name"]
