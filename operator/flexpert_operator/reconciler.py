"""One MoEDeployment's reconciliation: observe, decide, act once, report. `handlers` calls it again and again.

Whatever is remembered between two calls is only there to save work; a new operator process starts without it.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from flexpert_operator.api import names
from flexpert_operator.api.conditions import PROGRESSING
from flexpert_operator.api.spec import Model, MoEDeployment, parse_deployment
from flexpert_operator.children import delete_children, ensure_children
from flexpert_operator.decide import difference, drains, model, placing, progress, status, terms
from flexpert_operator.decide.observation import Cause, Event, Observation, Pool, Problem
from flexpert_operator.decide.sizing import Size, decide_size
from flexpert_operator.errors import KubeNotFound, PlanRefused, PoolError, PoolUnavailable
from flexpert_operator.inspector import ModelInspector
from flexpert_operator.kube import MOE_DEPLOYMENTS, PODS, Kube, Object
from flexpert_operator.observe import Seen, read_cluster
from flexpert_operator.pool_client import PoolClient
from flexpert_operator.settings import Settings
from flexpert_placement.solver import solve
from flexpert_placement.types import InfeasiblePlacement, PlacementProblem, PlacementResult
from flexpert_proto import names as pool_names

log = logging.getLogger(__name__)

Tell = Callable[[Object, Event], None]
"""Posts an Event about an object."""

Solve = Callable[[PlacementProblem], PlacementResult]


@dataclass(frozen=True)
class Known:
    """A question to the solver that need not be asked again yet: the answer was to leave it, or `problem`."""

    question: tuple[object, ...] | None
    at: float
    problem: Problem | None


class Reconciler:
    """Reconciles one MoEDeployment. Its calls exclude each other, whatever thread they come from."""

    def __init__(
        self,
        namespace: str,
        name: str,
        kube: Kube,
        settings: Settings,
        tell: Tell,
        clock: Callable[[], float] = time.time,
        solver: Solve = solve,
    ) -> None:
        self._namespace = namespace
        self._name = name
        self._kube = kube
        self._settings = settings
        self._tell = tell
        address = names.pool_control_address(name, namespace)
        self._pool = PoolClient(address)
        self._inspector = ModelInspector(lambda: PoolClient(address), settings.inspect_retry_s)
        self._clock = clock
        self._solve = solver
        self._lock = threading.Lock()
        self._before: Pool | None = None
        self._known: Known | None = None

    def close(self) -> None:
        """Give up the connection to the pool controller."""
        self._pool.close()
        self._inspector.close()

    def reconcile(self) -> float:
        """Bring the world one step nearer to the spec; returns the seconds until it should be called again.

        Raises:
            KubeError: The API server did not let it; call again later.
            InvalidObject: The CRD is another version's.
        """
        with self._lock:
            try:
                body = self._kube.get(MOE_DEPLOYMENTS, self._namespace, self._name)
            except KubeNotFound:
                return self._settings.resync_s
            deployment = parse_deployment(body)
            if deployment.deleted_at is not None:
                return self._settings.resync_s
            return self._step(body, deployment)

    def _step(self, body: Object, deployment: MoEDeployment) -> float:
        seen = read_cluster(self._kube, deployment)
        observed = self._observe(deployment, seen)
        size = decide_size(deployment, observed, self._settings.provision_deadline_s, self._settings.retry_s)
        problem = model.model_problem(deployment, observed) or size.problem
        serving = model.model_to_serve(deployment, observed)
        changes = ensure_children(self._kube, self._settings, deployment, seen.raw, size, serving)
        for event in size.events + changes:
            self._tell(body, event)
        solution, due = None, False
        if serving is not None and observed.pool is not None:
            question = self._question(deployment, observed, observed.pool, size)
            due = question is not None and question.cause is not Cause.REBALANCE
            try:
                solution, failure = self._steer(deployment, observed, observed.pool, size, serving)
            except PoolError as refusal:
                log.info("%s/%s: %s", self._namespace, self._name, refusal)
                failure = None
            problem = problem or failure
        outcome = status.Outcome(size, problem, solution, local_endpoints(deployment), due and problem is None)
        return self._report(body, deployment, observed, outcome)

    def _observe(self, deployment: MoEDeployment, seen: Seen) -> Observation:
        observed = Observation(self._clock(), seen.cluster, ingress_ready=seen.ingress_ready)
        try:
            pool = self._pool.get_pool()
        except PoolError as failure:
            return replace(observed, pool_error="; ".join((str(failure), *seen.hindrances)))
        observed = replace(observed, pool=pool)
        if observed.bound_model is not None or model.source_problem(deployment.model) is not None:
            return observed
        return replace(observed, inspection=self._inspector.look(pool.incarnation, deployment.model, observed.now))

    def _steer(
        self, deployment: MoEDeployment, observed: Observation, pool: Pool, size: Size, serving: Model
    ) -> tuple[placing.Solution | None, Problem | None]:
        """Tell the pool controller what to do next."""
        grant = terms.decide_grant(deployment.annotations, pool)
        if not grant.taken:
            self._take_term(deployment, terms.annotations_of(grant, pool.incarnation))
        workers = size.pods * deployment.experts.workers_per_pod
        told = (pool.generation, pool.wanted_workers) == (deployment.generation, workers)
        if not grant.taken or pool.term == 0 or not told:
            engines = deployment.engines.replicas
            self._pool.configure(deployment, serving, pool.incarnation, grant.term, engines, workers)
            return None, None
        present = observed.cluster.experts.present if observed.cluster is not None else ()
        victims = size.sizing.victims + size.experts.workers_to_delete
        self._drain(drains.decide_drains(pool, victims, present))
        return self._place(deployment, observed, pool, size)

    def _take_term(self, deployment: MoEDeployment, annotations: dict[str, str]) -> None:
        metadata = {"resourceVersion": deployment.resource_version, "annotations": annotations}
        self._kube.patch(MOE_DEPLOYMENTS, self._namespace, self._name, {"metadata": metadata})

    def _drain(self, wanted: drains.Drains) -> None:
        if wanted.drain:
            self._pool.drain(wanted.drain, undo=False)
        if wanted.undo:
            self._pool.drain(wanted.undo, undo=True)

    def _place(
        self, deployment: MoEDeployment, observed: Observation, pool: Pool, size: Size
    ) -> tuple[placing.Solution | None, Problem | None]:
        """Ask the solver where that is called for, and have its answer carried out."""
        request = self._question(deployment, observed, pool, size)
        question = placing.question_of(request)
        known = self._known
        if request is None or not placing.may_start(pool, observed.now):
            return None, None
        if (
            known is not None
            and question == known.question
            and observed.now - known.at < self._settings.inspect_retry_s
        ):
            return None, known.problem
        try:
            result = self._solve(request.problem)
            wanted = placing.reconfiguration(deployment, pool, request, result)
            if wanted is not None:
                self._pool.reconfigure(wanted)
        except InfeasiblePlacement as infeasible:
            self._known = Known(question, observed.now, Problem("ExpertsDoNotFit", str(infeasible)))
            return None, self._known.problem
        except PlanRefused as refusal:
            self._known = Known(question, observed.now, Problem("PlanRefused", str(refusal)))
            return None, self._known.problem
        self._known = Known(question, observed.now, None) if wanted is None else None
        return placing.solution_of(request, result), None

    def _question(
        self, deployment: MoEDeployment, observed: Observation, pool: Pool, size: Size
    ) -> placing.PlacementRequest | None:
        """What to ask the solver; what it answered with "leave it" is not asked again."""
        settled = observed.cluster.sizing.settled if observed.cluster else 0
        cause = placing.placement_cause(deployment, observed, size.pods, settled, size.sizing.victims)
        if cause is not None:
            request = placing.placement_request(deployment, pool, cause, size.sizing.victims)
            known = self._known
            left = known is not None and known.problem is None and known.question == placing.question_of(request)
            return None if left else request
        solved_at = status.from_rfc3339(deployment.status.get("placement", {}).get("solvedAt"))
        settled_now = size.sizing.settled == size.pods and not size.sizing.victims
        if settled_now and placing.is_rebalance_due(deployment.placement, pool, observed.now, solved_at):
            return placing.placement_request(deployment, pool, Cause.REBALANCE, ())
        return None

    def _report(self, body: Object, deployment: MoEDeployment, observed: Observation, outcome: status.Outcome) -> float:
        new = status.build_status(deployment, observed, outcome)
        patch = difference.merge_patch(deployment.status, new)
        if patch:
            self._kube.patch(MOE_DEPLOYMENTS, self._namespace, self._name, {"status": patch}, subresource="status")
        told = deployment.status.get("lastReconfiguration", {})
        operation = observed.pool.operation if observed.pool else None
        conditions = status.decide_conditions(deployment, observed, outcome)
        events = progress.worker_events(self._before, observed.pool)
        events += progress.operation_events(told.get("id"), told.get("phase"), operation)
        events += progress.condition_events(deployment.status.get("conditions", ()), conditions)
        for event in events:
            self._tell(body, event)
        self._before = observed.pool or self._before
        busy = any(condition.type == PROGRESSING and condition.status == "True" for condition in conditions)
        return self._settings.busy_s if busy else self._settings.resync_s

    def finalize(self) -> bool:
        """Let running requests end, then take everything away; returns whether that is done. Call it until it is.

        Raises:
            KubeError: The API server did not let it; call again.
        """
        with self._lock:
            try:
                body = self._kube.get(MOE_DEPLOYMENTS, self._namespace, self._name)
            except KubeNotFound:
                return True
            deployment = parse_deployment(body)
            waited = self._clock() - status.from_rfc3339(deployment.deleted_at)
            if waited < self._settings.drain_deadline_s and self._still_serving(deployment):
                return False
            delete_children(self._kube, deployment)
            pods = self._kube.list(PODS, self._namespace, names.selector(self._name))
            return not pods or waited > 2 * self._settings.drain_deadline_s

    def _still_serving(self, deployment: MoEDeployment) -> bool:
        """Stop the engines from taking requests; whether some still run. A pool that does not answer has none."""
        cluster = read_cluster(self._kube, deployment).cluster
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


def local_endpoints(deployment: MoEDeployment) -> dict[str, str]:
    """What the ingress's addresses resolve to on this host, where that is not what they are in the cluster."""
    ports: dict[str, int] = {"grpc": deployment.serving.grpc_port, "http": deployment.serving.http_port}
    addresses = {key: names.ingress_address(deployment.name, deployment.namespace, port) for key, port in ports.items()}
    resolved: dict[str, Any] = {key: pool_names.resolve(address) for key, address in addresses.items()}
    return {key: resolved[key] for key in addresses if resolved[key] != addresses[key]}
