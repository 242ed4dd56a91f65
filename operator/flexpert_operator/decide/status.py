"""The status of a MoEDeployment, from what was observed and decided. Written by `reconciler` when it differs."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flexpert_operator.api import names
from flexpert_operator.api.conditions import (
    DEGRADED,
    PROGRESSING,
    READY,
    REBALANCING,
    Condition,
    ConditionStatus,
    merge_conditions,
)
from flexpert_operator.api.fields import Json
from flexpert_operator.api.reasons import DegradedReason, ProgressingReason, ReadyReason, RebalancingReason
from flexpert_operator.api.spec import MoEDeployment
from flexpert_operator.decide.files import model_status
from flexpert_operator.decide.loading import loaded_condition
from flexpert_operator.decide.observation import (
    UNDONE_PHASES,
    MemberState,
    Observation,
    Operation,
    Phase,
    Pool,
    Problem,
)
from flexpert_operator.decide.placing import Solution, imbalance_now
from flexpert_operator.decide.rebalancing import Action, Decision, percent_above
from flexpert_operator.decide.sizing import Size, count_ready, count_standby

STEP_NAMES = {
    Phase.PENDING: ProgressingReason.PREPARING,
    Phase.PREPARE: ProgressingReason.PREPARING,
    Phase.COMMIT: ProgressingReason.COMMITTING,
    Phase.RETIRE: ProgressingReason.RETIRING,
}
"""The steps of a running reconfiguration; the operator's own are Provisioning, Draining and Deprovisioning."""

STEP_FIELDS = {
    "start": "start",
    "copy": "copy",
    "verify": "verify",
    "map": "map",
    "populate": "populate",
    "warm-up": "warmUp",
    "commit": "commit",
}
"""What the pool controller calls the steps of a reconfiguration, and what the status does."""

MAX_PODS_TOLD = 3
"""Pods that a message names at most."""

IMBALANCE_STEP = 2
"""Percent by which the imbalance has to change before the status is written for it."""

DRIFT_STEP = 5
"""The same of the drift of the loads."""


@dataclass(frozen=True)
class Outcome:
    """What a reconciliation has to tell beside what it observed.

    Attributes:
        solution: The solver's answer, None when it was not asked.
        local_endpoints: What the ingress's addresses resolve to on this host, where that differs.
        due: Whether experts have to be placed anew.
        decision: The look at whether moving experts for balance pays, None when it was not time for one.
        conditions: To be said beside those that follow from what was observed.
        rollout: How far the replacement of pods of an older template is; empty where there are none.
    """

    size: Size
    problem: Problem | None
    solution: Solution | None = None
    local_endpoints: Mapping[str, str] | None = None
    due: bool = False
    decision: Decision | None = None
    conditions: tuple[Condition, ...] = ()
    rollout: str = ""


def rfc3339(seconds: float) -> str:
    """A time of the Unix epoch as Kubernetes writes it."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_rfc3339(text: str | None) -> float:
    """Seconds since the Unix epoch of such a time; 0 when there is none."""
    return datetime.datetime.fromisoformat(text).timestamp() if text else 0.0


def build_status(deployment: MoEDeployment, observed: Observation, outcome: Outcome) -> dict[str, Any]:
    """The whole status; what cannot be observed now stays as it was."""
    old, pool = deployment.status, observed.pool
    conditions = decide_conditions(deployment, observed, outcome)
    status: dict[str, Any] = dict(old)
    status["observedGeneration"] = deployment.generation
    status["selector"] = names.selector(deployment.name, names.EXPERTS_ROLE)
    status["endpoints"] = endpoints(deployment, outcome.local_endpoints or {})
    status["conditions"] = merge_conditions(
        old.get("conditions", ()), conditions, deployment.generation, rfc3339(observed.now)
    )
    status["model"] = model_status(deployment, observed, old.get("model", {}))
    status["engines"] = engines_status(deployment, pool, old.get("engines", {}))
    status["experts"] = experts_status(deployment, observed, old.get("experts", {}))
    asked = deployment.annotations.get(names.REBALANCE_ANNOTATION, "")
    placement = placement_status(outcome, old.get("placement", {}), rfc3339(observed.now), asked)
    if placement:
        status["placement"] = placement
    if pool is not None and pool.operation is not None:
        status["lastReconfiguration"] = operation_status(pool.operation, observed.now)
    return status


def placement_status(outcome: Outcome, old: Json, now: str, asked: str = "") -> dict[str, Any]:
    """`status.placement`: the solver's last answer, and the last look at whether moving pays, maybe `asked` for."""
    found = dict(old)
    if outcome.solution is not None:
        found["objective"] = outcome.solution.objective
        found["bound"] = outcome.solution.bound
        found["gapPercent"] = outcome.solution.gap_percent
        found["solvedAt"] = now
    if outcome.decision is not None:
        found["lastDecision"] = decision_status(outcome.decision, now)
        if outcome.decision.action is Action.REBALANCE:
            found["rebalancedAt"] = now
        if asked not in ("", old.get("lookAsked", "")):
            found["lookAsked"] = asked
            found["lastDecision"]["asked"] = True
    return found


def decision_status(decision: Decision, now: str) -> dict[str, Any]:
    """`status.placement.lastDecision`; what was not found out is left out."""
    numbers = {
        "imbalancePercent": decision.imbalance_percent,
        "gainPercent": decision.gain_percent,
        "holdSeconds": round(decision.hold_s) if decision.hold_s is not None else None,
        "benefitMilliseconds": milliseconds(decision.benefit_s) if decision.benefit_s is not None else None,
        "costMilliseconds": milliseconds(decision.cost_s) if decision.cost_s is not None else None,
        "costBytes": decision.cost_bytes,
        "moves": decision.moves,
    }
    words = {"action": str(decision.action), "reason": str(decision.reason), "message": decision.message}
    return {"time": now} | words | {key: value for key, value in numbers.items() if value is not None}


def endpoints(deployment: MoEDeployment, local: Mapping[str, str]) -> dict[str, str]:
    """Where clients reach the ingress."""
    found = {
        "grpc": names.ingress_address(deployment.name, deployment.namespace, deployment.serving.grpc_port),
        "http": names.ingress_address(deployment.name, deployment.namespace, deployment.serving.http_port),
    }
    here = {"localGrpc": local.get("grpc"), "localHttp": local.get("http")}
    return found | {key: address for key, address in here.items() if address}


def engines_status(deployment: MoEDeployment, pool: Pool | None, old: Json) -> dict[str, int]:
    """`status.engines`."""
    ready = ready_engines(pool) if pool else old.get("ready", 0)
    return {"desired": deployment.engines.replicas, "ready": ready}


def experts_status(deployment: MoEDeployment, observed: Observation, old: Json) -> dict[str, Any]:
    """`status.experts`."""
    pool, loads = observed.pool, observed.loads
    if pool is None:
        return (
            {"workers": 0, "ready": 0, "standby": 0, "replicas": 0, "residentBytes": 0}
            | dict(old)
            | {"desired": deployment.experts.workers}
        )
    found: dict[str, Any] = {
        "desired": deployment.experts.workers,
        "workers": count_workers(deployment, pool),
        "ready": count_ready(pool),
        "standby": count_standby(pool),
        "replicas": sum(worker.num_experts for worker in pool.alive),
        "residentBytes": sum(worker.resident_bytes for worker in pool.alive),
    }
    if pool.epoch.term > 0:
        found["epoch"] = str(pool.epoch)
    imbalance = imbalance_now(pool, loads)
    if imbalance is not None and loads is not None:
        found["imbalancePercent"] = steady(percent_above(imbalance), old.get("imbalancePercent"), IMBALANCE_STEP)
        found["loadDriftPercent"] = steady(round(100 * loads.moved), old.get("loadDriftPercent"), DRIFT_STEP)
    return found


def steady(value: int, before: int | None, step: int) -> int:
    """`value`, or what was written before where it differs by less than `step`."""
    return before if before is not None and abs(value - before) < step else value


def count_workers(deployment: MoEDeployment, pool: Pool) -> int:
    """Workers that exist, ready or not; of those that start, as many as are to serve: the others will stand by."""
    states = [worker.state for worker in pool.alive]
    serving = states.count(MemberState.READY) + states.count(MemberState.DRAINING)
    missing = max(0, deployment.experts.workers - states.count(MemberState.READY))
    return serving + min(missing, states.count(MemberState.STARTING))


def operation_status(operation: Operation, now: float) -> dict[str, Any]:
    """`status.lastReconfiguration`; its duration is set once it has ended."""
    found: dict[str, Any] = {
        "id": operation.id,
        "cause": str(operation.cause),
        "phase": str(operation.phase),
        "movedExperts": operation.moved_experts,
        "movedBytes": operation.moved_bytes,
        "attachedExperts": operation.attached_experts,
        "stepMilliseconds": {
            field: milliseconds(operation.step_seconds[step])
            for step, field in STEP_FIELDS.items()
            if step in operation.step_seconds
        },
    }
    if operation.peak_bytes > 0:
        found["peakBytes"] = operation.peak_bytes
    if operation.predicted is not None:
        found["predicted"] = {
            "movedBytes": operation.predicted.moved_bytes,
            "durationMilliseconds": milliseconds(operation.predicted.seconds),
            "peakBytes": operation.predicted.peak_bytes,
            "waves": operation.predicted.waves,
        }
    if operation.message:
        found["message"] = operation.message
    if operation.finished_at is not None:
        found["durationMilliseconds"] = milliseconds(operation.finished_at - operation.started_at)
    return found


def milliseconds(seconds: float) -> int:
    """A duration as the status tells it."""
    return round(1000 * seconds)


def ready_engines(pool: Pool) -> int:
    """Engines that take requests."""
    return sum(engine.state is MemberState.READY for engine in pool.engines)


def decide_conditions(deployment: MoEDeployment, observed: Observation, outcome: Outcome) -> tuple[Condition, ...]:
    """Ready, Progressing, Degraded, ModelLoaded, Rebalancing, and those of the outcome."""
    return (
        ready_condition(deployment, observed),
        progressing_condition(deployment, observed, outcome),
        degraded_condition(deployment, observed, outcome.problem),
        loaded_condition(deployment, observed),
        rebalancing_condition(deployment, outcome.decision),
        *outcome.conditions,
    )


def rebalancing_condition(deployment: MoEDeployment, decision: Decision | None) -> Condition:
    """Whether experts are moved for balance, round by round; between two looks it stays as it was."""
    if decision is not None:
        status = ConditionStatus.TRUE if decision.active else ConditionStatus.FALSE
        return Condition(REBALANCING, status, decision.reason, decision.message)
    for condition in deployment.status.get("conditions", ()):
        if condition["type"] == REBALANCING:
            status = ConditionStatus(condition["status"])
            return Condition(REBALANCING, status, condition["reason"], condition["message"])
    return Condition(
        REBALANCING, ConditionStatus.FALSE, RebalancingReason.NOT_LOOKED_YET, "no look was taken at the loads yet"
    )


def ready_condition(deployment: MoEDeployment, observed: Observation) -> Condition:
    """Whether a request that comes now is answered."""
    no, pool = ConditionStatus.FALSE, observed.pool
    if pool is None:
        was = {condition["type"]: condition["status"] for condition in deployment.status.get("conditions", ())}
        served = was.get(READY) in (ConditionStatus.TRUE, ConditionStatus.UNKNOWN)
        status = ConditionStatus.UNKNOWN if served else no
        return Condition(
            READY,
            status,
            ReadyReason.CONTROLLER_UNREACHABLE,
            f"the pool controller does not answer: {observed.pool_error}",
        )
    idle = idle_pools(deployment, pool)
    if idle:
        return Condition(READY, no, ReadyReason.IDLE, f"no {idle} are asked for; requests wait until there are some")
    if not pool.placement:
        return Condition(READY, no, ReadyReason.WAITING_FOR_PLACEMENT, f"no expert is placed yet{suffix(pool.message)}")
    if pool.lost:
        return Condition(
            READY, no, ReadyReason.EXPERTS_LOST, f"{len(pool.lost)} experts have no live replica; requests wait"
        )
    if ready_engines(pool) == 0:
        return Condition(READY, no, ReadyReason.WAITING_FOR_ENGINES, f"no engine is ready{suffix(pool.message)}")
    if observed.ingress_ready == 0:
        return Condition(READY, no, ReadyReason.WAITING_FOR_INGRESS, "no ingress is ready")
    return Condition(READY, ConditionStatus.TRUE, ReadyReason.SERVING, "requests are answered")


def idle_pools(deployment: MoEDeployment, pool: Pool) -> str:
    """Which pools are empty because nobody asks for more; empty where both have members or shall have."""
    workers = "workers" if deployment.experts.workers == 0 and count_ready(pool) == 0 else ""
    engines = "engines" if deployment.engines.replicas == 0 and ready_engines(pool) == 0 else ""
    return " and ".join(filter(None, (engines, workers)))


def progressing_condition(deployment: MoEDeployment, observed: Observation, outcome: Outcome) -> Condition:
    """Whether something is under way to bring about what the spec asks for."""
    step = step_under_way(deployment, observed, outcome)
    if step is None:
        return Condition(PROGRESSING, ConditionStatus.FALSE, ProgressingReason.SETTLED, "nothing is under way")
    return Condition(PROGRESSING, ConditionStatus.TRUE, *step)


def step_under_way(deployment: MoEDeployment, observed: Observation, outcome: Outcome) -> tuple[str, str] | None:
    """Reason and message of what is under way, or None."""
    pool, size = observed.pool, outcome.size
    if pool is None:
        return (
            ProgressingReason.WAITING_FOR_CONTROLLER,
            f"the pool controller does not answer yet: {observed.pool_error}",
        )
    if observed.inspection is not None and observed.inspection.pending:
        return ProgressingReason.INSPECTING_MODEL, f"the checkpoint {deployment.model.source} is being looked at"
    if outcome.problem is not None and pool.generation == 0:
        return None
    if pool.files.coming:
        return ProgressingReason.FETCHING_MODEL, f"the nodes fetch {deployment.model.source}: see status.model"
    if pool.operation is not None and pool.operation.running:
        return STEP_NAMES[pool.operation.phase], f"{pool.operation.cause} {pool.operation.id}"
    if outcome.rollout and outcome.problem is None:
        return ProgressingReason.ROLLING_OUT, outcome.rollout + waiting_pods(observed)
    if size.sizing.victims:
        return ProgressingReason.DRAINING, draining_message(observed, size.sizing.victims)
    wanted = size.pods * deployment.experts.workers_per_pod
    if count_ready(pool) < wanted:
        return (
            ProgressingReason.PROVISIONING,
            f"{count_ready(pool)} of {wanted} workers are ready{waiting_pods(observed)}",
        )
    total = wanted + deployment.experts.standby_pods * deployment.experts.workers_per_pod
    if len(pool.alive) > total:
        return ProgressingReason.DEPROVISIONING, f"{len(pool.alive) - total} workers are going"
    if ready_engines(pool) != deployment.engines.replicas:
        return (
            ProgressingReason.WAITING_FOR_ENGINES,
            f"{ready_engines(pool)} of {deployment.engines.replicas} engines are ready",
        )
    if outcome.due or (outcome.problem is None and pool.generation != deployment.generation):
        return ProgressingReason.WAITING_FOR_PLACEMENT, "the pool controller is about to be told what to do"
    if observed.ingress_ready == 0:
        return ProgressingReason.WAITING_FOR_INGRESS, "no ingress is ready"
    standby, found = total - wanted, count_standby(pool)
    return (ProgressingReason.REPLENISHING, f"{found} of {standby} workers stand by") if found < standby else None


def waiting_pods(observed: Observation) -> str:
    """What keeps pods from running, each pod with what is said of it, to be put behind another message."""
    if observed.cluster is None:
        return ""
    groups = (observed.cluster.experts, observed.cluster.engines)
    said = sorted(f"{pod.name}: {pod.message}" for group in groups for pod in group.present if pod.message)
    more = f"; and {len(said) - MAX_PODS_TOLD} more" if len(said) > MAX_PODS_TOLD else ""
    return f" (waiting: {'; '.join(said[:MAX_PODS_TOLD])}{more})" if said else ""


def draining_message(observed: Observation, victims: tuple[str, ...]) -> str:
    """Which pods lose their experts, and why where it is not because fewer are wanted."""
    pods = observed.cluster.experts.pods if observed.cluster is not None else ()
    reasons = sorted({pod.leaving for pod in pods if pod.name in victims and pod.leaving})
    return f"pods {', '.join(victims)} are losing their experts" + (f": {'; '.join(reasons)}" if reasons else "")


def degraded_condition(deployment: MoEDeployment, observed: Observation, problem: Problem | None) -> Condition:
    """Whether the spec cannot be carried out, or the pool is less than it says."""
    yes, pool = ConditionStatus.TRUE, observed.pool
    if problem is not None:
        return Condition(DEGRADED, yes, problem.reason, problem.message)
    if pool is not None and pool.operation is not None and pool.operation.phase in UNDONE_PHASES:
        message = f"{pool.operation.id} came to nothing and is tried again: {pool.operation.message}"
        return Condition(DEGRADED, yes, DegradedReason.RECONFIGURATION_FAILED, message)
    if pool is not None and pool.message and pool.placement and deployment.experts.workers > 0:
        return Condition(DEGRADED, yes, DegradedReason.POOL_DEGRADED, pool.message)
    return Condition(DEGRADED, ConditionStatus.FALSE, DegradedReason.AS_EXPECTED, "the spec can be carried out")


def suffix(message: str) -> str:
    """A message behind a colon, or nothing."""
    return f": {message}" if message else ""
