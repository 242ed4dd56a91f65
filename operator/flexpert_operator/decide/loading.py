"""Is the model of the spec loaded? Pure; `status` makes the condition ModelLoaded of it."""

from flexpert_operator.api.conditions import MODEL_LOADED, Condition, ConditionStatus
from flexpert_operator.api.reasons import LoadedReason
from flexpert_operator.api.spec import MoEDeployment
from flexpert_operator.decide.files import changed_message
from flexpert_operator.decide.model import fetch_problem, model_problem
from flexpert_operator.decide.observation import MemberState, Observation, Pool


def loaded_condition(deployment: MoEDeployment, observed: Observation) -> Condition:
    """Whether every expert has a live replica and an engine has the dense weights."""
    problem = model_problem(deployment, observed)
    if problem is not None:
        return Condition(MODEL_LOADED, ConditionStatus.FALSE, problem.reason, problem.message)
    if observed.pool is None:
        why = f"the pool controller does not answer: {observed.pool_error}"
        return Condition(MODEL_LOADED, ConditionStatus.UNKNOWN, LoadedReason.CONTROLLER_UNREACHABLE, why)
    problem = fetch_problem(observed.pool) if not observed.pool.placement else None
    if problem is not None:
        return Condition(MODEL_LOADED, ConditionStatus.FALSE, problem.reason, problem.message)
    missing = what_is_missing(deployment, observed, observed.pool)
    if missing is not None:
        return Condition(MODEL_LOADED, ConditionStatus.FALSE, *missing)
    if observed.pool.files.newer_revision:
        changed = changed_message(observed.bound_model or deployment.model, observed.pool.files.newer_revision)
        return Condition(MODEL_LOADED, ConditionStatus.TRUE, LoadedReason.SOURCE_CHANGED, changed)
    source = f"{deployment.model.source} is loaded"
    return Condition(MODEL_LOADED, ConditionStatus.TRUE, LoadedReason.LOADED, source)


def what_is_missing(deployment: MoEDeployment, observed: Observation, pool: Pool) -> tuple[LoadedReason, str] | None:
    """Reason and message of what is not loaded, or None."""
    if observed.inspection is not None and observed.inspection.pending:
        return LoadedReason.INSPECTING_MODEL, f"the checkpoint {deployment.model.source} is being looked at"
    if deployment.experts.workers == 0 and (pool.lost or not pool.placement):
        return LoadedReason.IDLE, "no workers are asked for"
    if pool.files.coming and not pool.placement:
        return LoadedReason.FETCHING_MODEL, f"the nodes fetch {deployment.model.source}: see status.model"
    if not pool.placement:
        return LoadedReason.LOADING_EXPERTS, progress_of(pool)
    if pool.lost:
        return LoadedReason.EXPERTS_LOST, f"{len(pool.lost)} experts have no live replica and are loaded again"
    if not any(engine.state is MemberState.READY for engine in pool.engines):
        if deployment.engines.replicas == 0:
            return LoadedReason.IDLE, "no engines are asked for"
        return LoadedReason.LOADING_ENGINES, "no engine has the dense weights yet"
    return None


def progress_of(pool: Pool) -> str:
    """How far the first filling of the workers is."""
    resident = sum(worker.num_experts for worker in pool.alive)
    total = f" of {pool.model.num_experts}" if pool.model is not None else ""
    return f"{resident}{total} experts are on workers"
