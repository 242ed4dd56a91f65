"""The status of a policy from a decision, and the state of decisions from a status. Pure; `policies` calls it.

What of the state has to survive the operator stands in the status: the sizes, the changes of the last hour (rates and
windows count them), what was fitted and the season. The rest comes again by itself, and without it decisions are more
cautious, not less: nothing shrinks within a window of the operator's start, and idling begins to count anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from flexpert_operator.api.autoscaling import MoEAutoscalingPolicy
from flexpert_operator.api.conditions import (
    ABLE_TO_SCALE,
    BUDGET_EXHAUSTED,
    SCALING_ACTIVE,
    SCALING_LIMITED,
    Condition,
    ConditionStatus,
    merge_conditions,
)
from flexpert_operator.api.reasons import AbleReason, ActiveReason, BudgetReason, LimitedReason
from flexpert_operator.autoscale.cost import GrowthCost
from flexpert_operator.autoscale.demand import Traffic
from flexpert_operator.autoscale.fit import Profile, ServiceFit
from flexpert_operator.autoscale.observation import Observation
from flexpert_operator.autoscale.policy import Policy
from flexpert_operator.autoscale.sizes import Change, Sizes
from flexpert_operator.autoscale.state import Decision, Limit, State
from flexpert_operator.decide.status import from_rfc3339, rfc3339

TELL_S = 60.0
"""A decision that only repeats itself with other numbers is written so often at most."""
LEARN_S = 300.0
"""The same of what was fitted."""
MOST_CHANGES = 64
NANO = 1e9
MOST_LEARNT_S = 60.0
"""No step takes longer: what is more than that was not learnt but broken."""

LIMITS = {
    Limit.BOUNDS: LimitedReason.BOUNDS,
    Limit.BUDGET: LimitedReason.BUDGET,
    Limit.RATE: LimitedReason.RATE,
    Limit.STABILISED: LimitedReason.STABILISED,
    Limit.STALE: LimitedReason.STALE,
    Limit.PAUSED: LimitedReason.PAUSED,
}


@dataclass(frozen=True)
class Outcome:
    """What one look at a policy came to.

    Attributes:
        now: Seconds since the epoch.
        unable: Why nothing was decided: the reason and the message of AbleToScale; None where it may decide.
        decision: None where nothing was decided.
        state: After the decision.
        policy: That was decided by.
        observation: That was decided from.
        scale_up_s: Measured time from a decision to ready members; None where nothing has grown yet.
        serving: Whether the target has engines and workers that serve, as its status says.
    """

    now: float
    unable: tuple[AbleReason, str] | None = None
    decision: Decision | None = None
    state: State | None = None
    policy: Policy | None = None
    observation: Observation | None = None
    scale_up_s: float | None = None
    serving: bool = True


# ---- from a status


def restored(status: Mapping[str, Any], now: float) -> State:
    """The state of decisions that a status tells of."""
    learnt = status.get("learnt") or {}
    fit = ServiceFit.of(profile_of(learnt))
    desired = status.get("desired")
    sizes = Sizes(int(desired["engines"]), int(desired["experts"])) if desired else None
    asleep = sizes is not None and 0 in (sizes.engines, sizes.experts)
    season = tuple(float(one) / 1000 if one >= 0 else -1.0 for one in learnt.get("season") or ())
    traffic = Traffic(active_at=0.0 if asleep else None, season=season)
    cost = GrowthCost(device_s=max(learnt.get("scaleUpCostMilliseconds", 0) / 1000, 0.0))
    return replace(State(fit, traffic, cost=cost), sizes=sizes, changes=changes_of(status.get("changes") or (), now))


def begun(state: State, observation: Observation) -> State:
    """A restored state of a pool that idles, with where counting began: idling goes on and is not counted anew."""
    traffic = state.traffic
    if traffic.at is not None or traffic.active_at is None or observation.measured_at is None:
        return state
    return replace(state, traffic=replace(traffic, at=observation.looked_at - 1e-3, counters=observation.counters))


def profile_of(learnt: Mapping[str, Any]) -> Profile:
    """What was fitted before, as what is expected now."""
    usual = Profile()

    def seconds(name: str, otherwise: float) -> float:
        value = learnt.get(name, 0) / NANO
        return value if 0 < value < MOST_LEARNT_S else otherwise

    return replace(
        usual,
        engine_step_s=seconds("engineStepNanoseconds", usual.engine_step_s),
        engine_token_s=seconds("engineTokenNanoseconds", usual.engine_token_s),
        expert_step_s=seconds("expertStepNanoseconds", usual.expert_step_s),
        worker_token_s=seconds("workerTokenNanoseconds", usual.worker_token_s),
    )


def changes_of(told: Any, now: float) -> tuple[Change, ...]:
    """The changes that a status tells of; none of them lies ahead, whatever a clock said then."""
    read = (Change(from_rfc3339(one["time"]), int(one["engines"]), int(one["experts"])) for one in told)
    return tuple(replace(one, at=min(one.at, now)) for one in read)


# ---- to a status


def build_status(body: MoEAutoscalingPolicy, outcome: Outcome) -> dict[str, Any]:
    """The whole status; what was not decided now stays as it was."""
    old, decision = body.status, outcome.decision
    now = rfc3339(outcome.now)
    status: dict[str, Any] = dict(old)
    status["observedGeneration"] = body.generation
    status["conditions"] = merge_conditions(old.get("conditions", ()), conditions_of(outcome), body.generation, now)
    if decision is None or outcome.state is None or outcome.policy is None:
        if outcome.unable is not None and outcome.unable[0] in (AbleReason.TARGET_TAKEN, AbleReason.TARGET_NOT_FOUND):
            status.pop("desired", None)
        return status
    _add_sizes(status, decision, outcome.policy, now)
    status["lastDecision"] = decision_status(decision, now)
    status["changes"] = [
        {"time": rfc3339(one.at), "engines": one.engines, "experts": one.experts}
        for one in outcome.state.changes[-MOST_CHANGES:]
    ]
    status["learnt"] = learnt_status(outcome.state, outcome.scale_up_s, old.get("learnt") or {})
    return status


def _add_sizes(status: dict[str, Any], decision: Decision, policy: Policy, now: str) -> None:
    sizes = {"engines": decision.sizes.engines, "experts": decision.sizes.experts}
    if policy.pause:
        return
    if policy.dry_run:
        status.pop("desired", None)
        status["wouldBe"] = sizes
        return
    status.pop("wouldBe", None)
    if status.get("desired") != sizes:
        status["lastScaleTime"] = now
    status["desired"] = sizes
    status["devices"] = decision.sizes.devices(policy)


def decision_status(decision: Decision, now: str) -> dict[str, Any]:
    """`status.lastDecision`."""
    return {
        "time": now,
        "message": decision.reason,
        "wanted": {"engines": decision.wanted.engines, "experts": decision.wanted.experts},
        "bottleneck": decision.bottleneck,
        "limits": sorted(str(one) for one in decision.limits),
    }


def learnt_status(state: State, scale_up_s: float | None, old: Mapping[str, Any]) -> dict[str, Any]:
    """`status.learnt`."""
    (engine_step, engine_token), (expert_step, worker_token) = (
        state.fit.engine.coefficients(),
        state.fit.expert.coefficients(),
    )
    found: dict[str, Any] = {
        "engineStepNanoseconds": round(engine_step * NANO),
        "engineTokenNanoseconds": round(engine_token * NANO),
        "expertStepNanoseconds": round(expert_step * NANO),
        "workerTokenNanoseconds": round(worker_token * NANO),
    }
    if scale_up_s is not None:
        found["scaleUpMilliseconds"] = round(1000 * scale_up_s)
    elif "scaleUpMilliseconds" in old:
        found["scaleUpMilliseconds"] = old["scaleUpMilliseconds"]
    if state.cost.device_s > 0:
        found["scaleUpCostMilliseconds"] = round(1000 * state.cost.device_s)
    if state.traffic.season:
        found["season"] = [round(1000 * one) if one >= 0 else -1 for one in state.traffic.season]
    return found


def worth_writing(old: Mapping[str, Any], new: Mapping[str, Any], now: float) -> bool:
    """Whether a status says something new, or something old with other numbers after a while."""
    if _gist(old) != _gist(new):
        return True
    told = from_rfc3339((old.get("lastDecision") or {}).get("time"))
    moved = (old.get("lastDecision") or {}).get("message") != (new.get("lastDecision") or {}).get("message")
    learnt = old.get("learnt") != new.get("learnt")
    return (moved and now - told >= TELL_S) or (learnt and now - told >= LEARN_S)


def _gist(status: Mapping[str, Any]) -> tuple[Any, ...]:
    conditions = [(one["type"], one["status"], one["reason"]) for one in status.get("conditions", ())]
    limits = (status.get("lastDecision") or {}).get("limits")
    return conditions, status.get("desired"), status.get("wouldBe"), limits, status.get("observedGeneration")


def conditions_of(outcome: Outcome) -> tuple[Condition, ...]:
    """ScalingActive, AbleToScale, ScalingLimited and BudgetExhausted."""
    yes, no = ConditionStatus.TRUE, ConditionStatus.FALSE
    if outcome.unable is not None or outcome.decision is None or outcome.policy is None:
        reason, why = outcome.unable or (AbleReason.TARGET_NOT_FOUND, "nothing was decided yet")
        nothing = "nothing is decided"
        return (
            Condition(SCALING_ACTIVE, no, ActiveReason.UNABLE, why),
            Condition(ABLE_TO_SCALE, no, reason, why),
            Condition(SCALING_LIMITED, ConditionStatus.UNKNOWN, LimitedReason.NOTHING_DECIDED, nothing),
            Condition(BUDGET_EXHAUSTED, ConditionStatus.UNKNOWN, BudgetReason.NOTHING_DECIDED, nothing),
        )
    return (
        active_condition(outcome.decision, outcome.policy, outcome.serving),
        Condition(ABLE_TO_SCALE, yes, AbleReason.READY, f"{outcome.policy.target} is scaled by this policy"),
        limited_condition(outcome.decision),
        budget_condition(outcome.decision, outcome.policy, outcome.observation),
    )


def active_condition(decision: Decision, policy: Policy, serving: bool) -> Condition:
    """Whether decisions are made from what is measured, and carried out."""
    yes, no = ConditionStatus.TRUE, ConditionStatus.FALSE
    if policy.pause:
        return Condition(SCALING_ACTIVE, no, ActiveReason.PAUSED, f"spec.pause is true: {decision.sizes} stay")
    if policy.dry_run:
        return Condition(
            SCALING_ACTIVE, no, ActiveReason.DRY_RUN, f"spec.dryRun is true; it would be: {decision.reason}"
        )
    asleep = 0 in (decision.sizes.engines, decision.sizes.experts)
    if Limit.STALE in decision.limits and not (serving or asleep):
        why = f"{policy.target} does not serve its model yet: {decision.sizes} are asked for"
        return Condition(SCALING_ACTIVE, no, ActiveReason.NOT_SERVING, why)
    if Limit.STALE in decision.limits:
        return Condition(SCALING_ACTIVE, no, ActiveReason.STALE_METRICS, decision.reason)
    if asleep:
        return Condition(SCALING_ACTIVE, yes, ActiveReason.IDLE, decision.reason)
    return Condition(SCALING_ACTIVE, yes, ActiveReason.DECIDING, decision.reason)


def limited_condition(decision: Decision) -> Condition:
    """Whether something keeps the sizes from those that the objectives ask for."""
    limits = sorted(decision.limits, key=list(LIMITS).index)
    if not limits:
        return Condition(
            SCALING_LIMITED,
            ConditionStatus.FALSE,
            LimitedReason.WITHIN_RANGE,
            f"{decision.sizes} are what is asked for",
        )
    message = f"{decision.wanted} are asked for, {decision.sizes} are desired: {', '.join(limits)}"
    return Condition(SCALING_LIMITED, ConditionStatus.TRUE, LIMITS[limits[0]], message)


def budget_condition(decision: Decision, policy: Policy, observation: Observation | None) -> Condition:
    """Whether the objectives ask for more devices than the budget has."""
    no = ConditionStatus.FALSE
    if policy.devices is None:
        return Condition(BUDGET_EXHAUSTED, no, BudgetReason.NO_BUDGET, "there is no budget of devices")
    there = Sizes(observation.engines.existing, observation.experts.existing) if observation is not None else None
    held = f", {there.devices(policy)} are held" if there is not None else ""
    numbers = f"{decision.sizes} take {decision.sizes.devices(policy)} of {policy.devices} devices{held}"
    if Limit.BUDGET in decision.limits:
        message = f"{numbers}; {decision.wanted} are asked for"
        return Condition(BUDGET_EXHAUSTED, ConditionStatus.TRUE, BudgetReason.EXHAUSTED, message)
    return Condition(BUDGET_EXHAUSTED, no, BudgetReason.WITHIN_BUDGET, numbers)
