"""Has experts placed: asks the solver where that is called for, and the pool controller to carry the answer out.

`reconciler` owns one and calls it once a reconciliation. What it remembers is only there to save work.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from flexpert_operator.api import names
from flexpert_operator.api.spec import MoEDeployment
from flexpert_operator.decide import placing, rebalancing, status
from flexpert_operator.decide.balance import compare
from flexpert_operator.decide.loads import SmoothedLoads
from flexpert_operator.decide.observation import Cause, Observation, Pool, Problem
from flexpert_operator.decide.rebalancing import Decision, History, Reason
from flexpert_operator.decide.sizing import Size
from flexpert_operator.errors import PlanRefused
from flexpert_operator.pool_client import PoolClient
from flexpert_placement.types import InfeasiblePlacement, PlacementProblem, PlacementResult
from flexpert_proto import logs

log = logging.getLogger(__name__)

Solve = Callable[[PlacementProblem], PlacementResult]


@dataclass(frozen=True)
class Placed:
    """What became of a reconciliation's look at the placement; nothing where it was left alone."""

    solution: placing.Solution | None = None
    problem: Problem | None = None
    decision: Decision | None = None


@dataclass(frozen=True)
class Known:
    """A question to the solver that need not be asked again yet: the answer was to leave it, or `problem`."""

    question: tuple[object, ...] | None
    at: float
    problem: Problem | None


class Placer:
    """Places the experts of one MoEDeployment."""

    def __init__(self, pool: PoolClient, solver: Solve, retry_s: float) -> None:
        self._pool = pool
        self._solve = solver
        self._retry_s = retry_s
        self._known: Known | None = None

    def request(
        self, deployment: MoEDeployment, observed: Observation, pool: Pool, size: Size
    ) -> placing.PlacementRequest | None:
        """What the solver has to be asked now; what it answered with "leave it" is not asked again."""
        settled = observed.cluster.sizing.settled if observed.cluster else 0
        victims, rolling = size.sizing.victims, size.sizing.rolling
        cause = placing.placement_cause(deployment, observed, size.pods, settled, victims, size.rolled, rolling)
        if cause is None:
            return None
        away = (*size.sizing.victims, *observed.leaving_pods)
        wanted = size.pods * deployment.experts.workers_per_pod
        request = placing.placement_request(deployment, pool, cause, away, observed.loads, wanted)
        known = self._known
        left = known is not None and known.problem is None and known.question == placing.question_of(request)
        return None if left else request

    def place(self, deployment: MoEDeployment, observed: Observation, pool: Pool, size: Size) -> Placed:
        """Do what has to be done about the placement; raises `PoolError`."""
        request = self.request(deployment, observed, pool, size)
        if not placing.may_start(pool, observed.now):
            return Placed()
        if request is not None:
            return self._place(deployment, observed, pool, request)
        settled = size.sizing.settled == size.pods > 0 and not size.sizing.victims and not observed.leaving_pods
        if settled and pool.placement and not pool.lost:
            return self._rebalance(deployment, observed, pool)
        return Placed()

    def _place(
        self, deployment: MoEDeployment, observed: Observation, pool: Pool, request: placing.PlacementRequest
    ) -> Placed:
        """Place experts anew because they have to be."""
        question, known = placing.question_of(request), self._known
        if known is not None and question == known.question and observed.now - known.at < self._retry_s:
            return Placed(problem=known.problem)
        try:
            result = self._solve(request.problem)
            wanted = placing.reconfiguration(deployment, pool, request, result)
            if wanted is not None:
                self._reconfigure(wanted)
        except InfeasiblePlacement as infeasible:
            self._known = Known(question, observed.now, Problem("ExpertsDoNotFit", str(infeasible)))
            return Placed(problem=self._known.problem)
        except PlanRefused as refusal:
            self._known = Known(question, observed.now, Problem("PlanRefused", str(refusal)))
            return Placed(problem=self._known.problem)
        self._known = Known(question, observed.now, None) if wanted is None else None
        return Placed(solution=placing.solution_of(request, result))

    def _rebalance(self, deployment: MoEDeployment, observed: Observation, pool: Pool) -> Placed:
        """Look whether moving experts for balance pays, when it is time to."""
        spec, told = deployment.placement.rebalance, deployment.status.get("placement", {})
        looked_at = status.from_rfc3339(told.get("lastDecision", {}).get("time"))
        acted_at = status.from_rfc3339(told.get("rebalancedAt"))
        asked = deployment.annotations.get(names.REBALANCE_ANNOTATION, "")
        history = rebalancing.history_of(deployment.status, pool.operation, looked_at, acted_at, asked)
        if not rebalancing.is_due(spec, history, observed.now):
            return Placed()
        imbalance = placing.imbalance_now(pool, observed.loads) or 1.0
        decision = rebalancing.before_solving(spec, history, observed.loads, imbalance, observed.now)
        idle = decision is not None and decision.reason is Reason.NO_TRAFFIC
        if idle and history.reason == Reason.NO_TRAFFIC and not history.asked:
            return Placed()
        if decision is not None or observed.loads is None:
            return Placed(decision=decision)
        return self._weigh(deployment, pool, observed.loads, history)

    def _weigh(self, deployment: MoEDeployment, pool: Pool, known: SmoothedLoads, history: History) -> Placed:
        """Ask the solver for a better placement and the pool controller for its price, and act where it pays."""
        spec = deployment.placement.rebalance
        request = placing.placement_request(deployment, pool, Cause.REBALANCE, (), known)
        assert request is not None, "what is placed is of a known model"
        try:
            result = self._solve(request.problem)
        except InfeasiblePlacement as infeasible:
            return Placed(decision=rebalancing.stay(Reason.INFEASIBLE, str(infeasible), history))
        solution = placing.solution_of(request, result)
        wanted = placing.reconfiguration(deployment, pool, request, result)
        if wanted is None:
            message = "the solver found no better placement"
            return Placed(solution, decision=rebalancing.stay(Reason.GAIN_TOO_SMALL, message, history))
        comparison = compare(known, pool.placement, result.placement, request.problem.workers)
        prediction = self._pool.predict(wanted)
        if prediction.refusal:
            return Placed(solution, decision=rebalancing.stay(Reason.REFUSED, prediction.refusal, history))
        cost = rebalancing.Cost(len(wanted.plan.moves), prediction.moved_bytes, prediction.seconds)
        decision = rebalancing.judge(spec, history, known, comparison, cost)
        if decision.action is rebalancing.Action.REBALANCE:
            try:
                self._reconfigure(wanted)
            except PlanRefused as refusal:
                decision = rebalancing.stay(Reason.REFUSED, str(refusal), history)
        return Placed(solution, decision=decision)

    def _reconfigure(self, wanted: placing.Reconfiguration) -> None:
        """Have a plan carried out; raises `PlanRefused`."""
        with logs.saying(operation=wanted.operation_id):
            log.info("asks for a reconfiguration (%s) of %d moves", wanted.cause.lower(), len(wanted.plan.moves))
            self._pool.reconfigure(wanted)
