"""One MoEDeployment's reconciliation: observe, decide, act once, report. `handlers` calls it again and again.

Whatever is remembered between two calls is only there to save work; a new operator process starts without it.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from flexpert_operator import manifests
from flexpert_operator.api import names
from flexpert_operator.api.conditions import PROGRESSING
from flexpert_operator.api.reasons import DegradedReason
from flexpert_operator.api.spec import Model, MoEDeployment, parse_deployment
from flexpert_operator.cached import CachedKube
from flexpert_operator.children import delete_children, ensure_children
from flexpert_operator.decide import difference, drains, model, placing, progress, rollout, status, terms, waking
from flexpert_operator.decide.budget import Budget
from flexpert_operator.decide.loads import SmoothedLoads
from flexpert_operator.decide.observation import Event, Observation, Pool, Problem
from flexpert_operator.decide.owning import Owned
from flexpert_operator.decide.persistence import persistence_condition
from flexpert_operator.decide.requests import requests_problem
from flexpert_operator.decide.sizing import Size, decide_size, resizes
from flexpert_operator.decide.succession import Part, is_complete
from flexpert_operator.errors import ChildTaken, KubeConflict, KubeRayUnfit, KubeRefused, PoolError, PoolUnavailable
from flexpert_operator.fence import Fence, NoFence
from flexpert_operator.finalizer import add_finalizer, is_still_there, remove_finalizer
from flexpert_operator.inspector import ModelInspector
from flexpert_operator.kube import MOE_DEPLOYMENTS, PODS, Object
from flexpert_operator.metrics import Metrics
from flexpert_operator.nodes import NodeNotices
from flexpert_operator.observe import Seen, read_cluster
from flexpert_operator.placer import Placed, Placer, Solve
from flexpert_operator.pool_client import PoolClient
from flexpert_operator.pool_feed import Heard, PoolFeed
from flexpert_operator.scaling_objects import with_sizes
from flexpert_operator.settings import Settings
from flexpert_placement.solver import solve
from flexpert_proto import names as pool_names

log = logging.getLogger(__name__)

FINALIZE_POLL_S = 0.5
"""From one look at the requests of a pool that is to go to the next."""

FINALIZE_RECHECK_S = 10.0
"""The same for pods that end, which watches tell of."""

Tell = Callable[[Object, Event], None]
"""Posts an Event about an object."""

Listen = Callable[[str, str, str], PoolFeed]
"""(namespace, name, address) → what the pool controller there, of that MoEDeployment, tells from now on."""


@dataclass(frozen=True)
class Surroundings:
    """What the reconcilers of a process share: what pools tell, notices of nodes that leave, metrics, the fence."""

    listen: Listen
    nodes: NodeNotices = field(default_factory=NodeNotices)
    metrics: Metrics = field(default_factory=Metrics)
    fence: Fence = field(default_factory=NoFence)


class Reconciler:
    """Reconciles one MoEDeployment. Its calls exclude each other, whatever thread they come from."""

    def __init__(
        self,
        namespace: str,
        name: str,
        kube: CachedKube,
        settings: Settings,
        tell: Tell,
        around: Surroundings,
        cluster: str = "",
        clock: Callable[[], float] = time.time,
        solver: Solve = solve,
    ) -> None:
        self._namespace = namespace
        self._name = name
        self._kube = kube
        self._settings = settings
        self._tell = tell
        self._around = around
        self._cluster = cluster or names.ray_cluster(name)
        self._address = names.cluster_control_address(self._cluster, namespace)
        self._pool = PoolClient(lambda: self._address, fence=around.fence)
        self._inspector = ModelInspector(lambda: PoolClient(lambda: self._address), settings.inspect_retry_s)
        self._clock = clock
        self._lock = threading.Lock()
        self._placer = Placer(self._pool, solver, settings.inspect_retry_s)
        self._feed: PoolFeed | None = None
        self._noted = 0
        self._quiet = 0
        self._engines: int | None = None
        self._loads: SmoothedLoads | None = None
        self._before = Observation(0.0)
        self.complete = False
        self.trouble = ""

    def close(self) -> None:
        """Give up the connection to the pool controller; nothing more is told of the object."""
        self._around.metrics.forget(self._namespace, self._name)
        self.disconnect()

    def disconnect(self) -> None:
        """Give up the connection to the pool controller; another RayCluster goes on."""
        self._hang_up()
        self._pool.close()
        self._inspector.close()

    def requests_in_flight(self) -> int | None:
        """Requests that the engines of this RayCluster still answer; None when nobody says."""
        try:
            return self._pool.get_pool().requests_in_flight
        except PoolError:
            return None

    def reconcile(self, part: Part | None = None) -> float | None:
        """Bring the world one step nearer to the spec, or to the end of what is being deleted.

        Args:
            part: The part that the RayCluster plays; None: it is the only one.

        Returns:
            The seconds until it should be called again, if nothing changes before; None when the object is gone.

        Raises:
            KubeError: The API server did not let it; call again later.
            InvalidObject: The CRD is another version's.
        """
        with self._lock:
            body = self._kube.find(MOE_DEPLOYMENTS, self._namespace, self._name)
            if body is None:
                return None
            began = self._clock()
            self._address = names.control_address_of(body, self._cluster)
            try:
                wait_s = self._finalize(body) if "deletionTimestamp" in body["metadata"] else self._step(body, part)
            finally:
                self._pool.close()
            self._around.metrics.note_reconciled(self._namespace, self._name, self._clock() - began)
            return wait_s

    def _step(self, body: Object, part: Part | None) -> float | None:
        part = part or Part(self._cluster)
        body = add_finalizer(self._kube, body)
        owned = with_sizes(self._kube, parse_deployment(body))
        deployment = owned.deployment
        seen = read_cluster(self._kube, deployment, self._cluster, self._around.nodes.why_leaving)
        if seen.raw is None and not is_still_there(self._kube, body):
            return None
        observed, size = self._size(owned, seen)
        if resizes(seen.raw, size):
            seen = read_cluster(self._kube.live, deployment, self._cluster, self._around.nodes.why_leaving)
            observed, size = self._size(owned, seen)
        problem = model.model_problem(deployment, observed) or model.fetch_problem(observed.pool) or size.problem
        serving = model.model_to_serve(deployment, observed)
        shown = replace(deployment, model=serving or deployment.model)
        refused, changes = self._ensure(shown, seen, size, serving, part)
        problem = problem or refused
        for event in changes:
            self._tell(body, event)
        placed, due = Placed(), False
        if serving is not None and observed.pool is not None:
            due = self._placer.request(deployment, observed, observed.pool, size) is not None
            try:
                placed = self._steer(deployment, observed, observed.pool, size, serving)
            except PoolError as refusal:
                log.info("%s/%s: %s", self._namespace, self._name, refusal)
            problem = problem or placed.problem
        if not part.serves:
            return self._note(deployment, observed, size, seen.hindrances, refused)
        problem = problem or part.problem
        endpoints, due = local_endpoints(deployment), due and problem is None
        said = (persistence_condition(self._settings.gcs), *filter(None, (owned.condition,)))
        replaced = part.progress or rollout.progress_of(observed, rules_of(shown, self._settings))
        outcome = status.Outcome(size, problem, placed.solution, endpoints, due, placed.decision, said, replaced)
        return self._report(body, deployment, observed, outcome)

    def _note(
        self,
        deployment: MoEDeployment,
        observed: Observation,
        size: Size,
        hindrances: tuple[str, ...],
        refused: Problem | None,
    ) -> float:
        """What a succession has to know of a RayCluster that does not serve yet."""
        workers, engines = size.pods * deployment.experts.workers_per_pod, deployment.engines.replicas
        self.complete = is_complete(observed, workers, engines, deployment.generation)
        pods = (*observed.cluster.experts.pods, *observed.cluster.engines.pods) if observed.cluster is not None else ()
        problem = refused or size.problem
        stuck = problem.message if problem is not None else ""
        self.trouble = stuck or ("; ".join(hindrances) if any(one.failing or one.unschedulable for one in pods) else "")
        return self._settings.busy_s

    def _size(self, owned: Owned, seen: Seen) -> tuple[Observation, Size]:
        deployment, own = owned.deployment, self._settings
        observed = self._observe(deployment, seen)
        shown = replace(deployment, model=model.model_to_serve(deployment, observed) or deployment.model)
        other = manifests.has_other_head(seen.raw, manifests.head_revision(shown, own.image, own.gcs))
        rules = rollout.Rules() if other else rules_of(shown, own, owned.budget)
        return observed, decide_size(deployment, observed, own.provision_deadline_s, own.retry_s, rules)

    def _ensure(
        self, deployment: MoEDeployment, seen: Seen, size: Size, serving: Model | None, part: Part
    ) -> tuple[Problem | None, tuple[Event, ...]]:
        """Have the children be as they should, unless they cannot be: then what there is stays."""
        problem = requests_problem(deployment)
        if problem is not None:
            return problem, ()
        try:
            changes = ensure_children(self._kube, self._settings, deployment, seen.raw, size, serving, part)
        except KubeRefused as refusal:
            why = f"the API server refuses what the spec asks for: {refusal}"
            return Problem(DegradedReason.CHILD_REFUSED, why), ()
        except ChildTaken as taken:
            why = f"not ours, and left as it is: {taken}. Delete or rename it, or rename this MoEDeployment"
            return Problem(DegradedReason.CHILD_NAME_TAKEN, why), ()
        except KubeRayUnfit as failure:
            return Problem(failure.reason, str(failure)), size.events
        return None, size.events + changes

    def _observe(self, deployment: MoEDeployment, seen: Seen) -> Observation:
        observed = Observation(self._clock(), seen.cluster, ingress_ready=seen.ingress_ready)
        try:
            heard = self._hear(seen)
        except PoolError as failure:
            return replace(observed, pool_error="; ".join((str(failure), *seen.hindrances)))
        pool, half_life_s = heard.pool, deployment.placement.rebalance.half_life_s
        if heard.number != self._noted or observed.now - heard.at > 3 * self._settings.refresh_s:
            at = heard.at if heard.number != self._noted else observed.now
            self._loads, self._noted = placing.note_loads(self._loads, pool, at, half_life_s), heard.number
        observed = replace(observed, pool=pool, loads=self._loads)
        if observed.bound_model is not None:
            return observed
        return replace(observed, inspection=self._inspector.look(pool.incarnation, deployment.model, observed.now))

    def _hear(self, seen: Seen) -> Heard:
        """What the pool controller has told last; it is listened to while a head runs. Raises `PoolUnavailable`."""
        if not seen.head_runs:
            self._hang_up()
            raise PoolUnavailable("the head of the RayCluster does not run")
        if self._feed is None:
            self._feed, self._noted = self._around.listen(self._namespace, self._name, self._address), 0
        return self._feed.last()

    def _hang_up(self) -> None:
        if self._feed is not None:
            self._feed.close()
        self._feed = None

    def _steer(
        self, deployment: MoEDeployment, observed: Observation, pool: Pool, size: Size, serving: Model
    ) -> Placed:
        """Tell the pool controller what to do next; raises `PoolError`."""
        keys = terms.keys_of(self._name, self._cluster)
        grant = terms.decide_grant(deployment.annotations, pool, keys)
        if not grant.taken:
            self._take_term(deployment, terms.annotations_of(grant, pool.incarnation, keys))
        workers = size.pods * deployment.experts.workers_per_pod
        engines = deployment.engines.replicas
        told = (pool.generation, pool.wanted_workers, self._engines) == (deployment.generation, workers, engines)
        if not (grant.taken and pool.term > 0 and told and self._pool.is_followed(pool.incarnation)):
            self._pool.configure(deployment, serving, pool.incarnation, grant.term, engines, workers)
            self._engines = engines
        present = observed.cluster.experts.present if observed.cluster is not None else ()
        going = (*size.sizing.victims, *size.experts.workers_to_delete, *observed.leaving_pods)
        self._drain(drains.decide_drains(pool, going, present))
        return self._placer.place(deployment, observed, pool, size)

    def _take_term(self, deployment: MoEDeployment, annotations: dict[str, str]) -> None:
        metadata = {"resourceVersion": deployment.resource_version, "annotations": annotations}
        self._kube.patch(MOE_DEPLOYMENTS, self._namespace, self._name, {"metadata": metadata})

    def _drain(self, wanted: drains.Drains) -> None:
        if wanted.drain:
            self._pool.drain(wanted.drain, undo=False)
        if wanted.undo:
            self._pool.drain(wanted.undo, undo=True)

    def _report(self, body: Object, deployment: MoEDeployment, observed: Observation, outcome: status.Outcome) -> float:
        new = status.build_status(deployment, observed, outcome)
        patch = difference.merge_patch(deployment.status, new)
        if patch:
            self._write_status(deployment, patch)
        told = deployment.status.get("lastReconfiguration", {})
        operation = observed.pool.operation if observed.pool else None
        conditions = status.decide_conditions(deployment, observed, outcome)
        events = progress.worker_events(self._before.pool, observed.pool)
        events += progress.leaving_events(self._before.cluster, observed.cluster)
        events += progress.waiting_events(self._before.cluster, observed.cluster)
        events += progress.operation_events(told.get("id"), told.get("phase"), operation)
        events += progress.condition_events(deployment.status.get("conditions", ()), conditions)
        for event in events:
            self._tell(body, event)
        pool = replace(observed.pool, placement={}, loads=()) if observed.pool is not None else self._before.pool
        self._before = replace(self._before, pool=pool, cluster=observed.cluster)
        self._measure(observed, outcome, (told.get("id"), told.get("phase")))
        busy = any(condition.type == PROGRESSING and condition.status == "True" for condition in conditions)
        self._quiet = 0 if patch or events else self._quiet + 1
        unsettled = outcome.problem is not None or (busy and observed.pool is not None)
        wait_s = waking.next_look(unsettled, self._quiet, self._settings.busy_s, self._settings.resync_s)
        growing = outcome.size.pods > outcome.size.sizing.settled
        return min(
            wait_s,
            waking.until_deadline(
                outcome.size.sizing,
                growing,
                observed.now,
                self._settings.provision_deadline_s,
                self._settings.retry_s,
            ),
        )

    def _write_status(self, deployment: MoEDeployment, patch: Object) -> None:
        """Write what differs, unless the object has changed since it was seen; raises `KubeConflict`."""
        newest = self._kube.get(MOE_DEPLOYMENTS, self._namespace, self._name)["metadata"]
        if newest["generation"] != deployment.generation:
            raise KubeConflict("the spec was changed meanwhile")
        body = {"metadata": {"resourceVersion": newest["resourceVersion"]}, "status": patch}
        self._kube.patch(MOE_DEPLOYMENTS, self._namespace, self._name, body, subresource="status")

    def _measure(self, observed: Observation, outcome: status.Outcome, told: tuple[str | None, str | None]) -> None:
        """Put into metrics what was seen and decided; `told`: id and phase of the operation in the status before."""
        metrics, key = self._around.metrics, (self._namespace, self._name)
        pool, loads = observed.pool, observed.loads
        if pool is not None and loads is not None:
            imbalance = placing.imbalance_now(pool, loads) or 1.0
            metrics.note_loads(*key, imbalance, loads.moved, len(observed.leaving_pods))
        if outcome.decision is not None:
            metrics.note_decision(*key, outcome.decision)
        operation = pool.operation if pool is not None else None
        if operation is not None and not operation.running and told != (operation.id, operation.phase):
            metrics.note_operation(*key, operation)

    def _finalize(self, body: Object) -> float | None:
        """Let running requests end, then take everything away, and then let the object go.

        Returns:
            The seconds until it should be called again; None when nothing is left to do.
        """
        if names.FINALIZER not in (body["metadata"].get("finalizers") or ()):
            return None
        deployment = parse_deployment(body)
        waited = self._clock() - status.from_rfc3339(deployment.deleted_at)
        if waited < self._settings.drain_deadline_s and self._still_serving(deployment):
            return FINALIZE_POLL_S
        delete_children(self._kube, deployment)
        pods = self._kube.list(PODS, self._namespace, names.selector(self._name))
        left_s = 2 * self._settings.drain_deadline_s - waited
        if pods and left_s >= 0:
            return min(left_s + FINALIZE_POLL_S, FINALIZE_RECHECK_S)
        remove_finalizer(self._kube, body)
        return None

    def _still_serving(self, deployment: MoEDeployment) -> bool:
        """Stop the engines from taking requests; whether some still run. A pool that does not answer has none."""
        cluster = read_cluster(self._kube, deployment, self._cluster).cluster
        try:
            pool = self._pool.get_pool()
            if cluster is not None and cluster.served_model is not None and pool.term > 0 and pool.engines:
                workers = pool.wanted_workers or 0
                self._pool.configure(deployment, cluster.served_model, pool.incarnation, pool.term, 0, workers)
        except PoolUnavailable:
            return False
        except PoolError as refusal:
            log.info("%s/%s: %s", self._namespace, self._name, refusal)
            return True
        return pool.requests_in_flight > 0


def rules_of(deployment: MoEDeployment, settings: Settings, budget: Budget | None = None) -> rollout.Rules:
    """Which templates the pods of a MoEDeployment should have, and how those that do not are replaced."""
    revisions = manifests.template_revisions(deployment, settings.image)
    return rollout.Rules(
        engines=revisions[names.ENGINES_ROLE],
        experts=revisions[names.EXPERTS_ROLE],
        max_surge=settings.max_surge,
        headroom_wait_s=settings.headroom_wait_s,
        provision_deadline_s=settings.provision_deadline_s,
        budget=budget,
    )


def local_endpoints(deployment: MoEDeployment) -> dict[str, str]:
    """What the ingress's addresses resolve to on this host, where that is not what they are in the cluster."""
    ports: dict[str, int] = {"grpc": deployment.serving.grpc_port, "http": deployment.serving.http_port}
    addresses = {key: names.ingress_address(deployment.name, deployment.namespace, port) for key, port in ports.items()}
    resolved: dict[str, Any] = {key: pool_names.resolve(address) for key, address in addresses.items()}
    return {key: resolved[key] for key in addresses if resolved[key] != addresses[key]}
