"""A MoEAutoscalingPolicy as the policy that `autoscale` decides by, and its decisions as sizes that can be had.

`autoscale` knows members, devices and objectives. That workers come in pods, that the experts have to fit into them,
and how many devices a member takes stands in the MoEDeployment. Pure; `policies` calls it.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

from flexpert_operator.api.autoscaling import (
    ForecastMode,
    ObjectivesSpec,
    PolicySpec,
    ScaleDown,
    ScaleUp,
    ScalingBehavior,
)
from flexpert_operator.api.quantities import to_number
from flexpert_operator.api.spec import MoEDeployment, Resources
from flexpert_operator.autoscale.decision import decide
from flexpert_operator.autoscale.observation import Observation
from flexpert_operator.autoscale.policy import (
    Behavior,
    Bounds,
    Direction,
    Forecast,
    Idle,
    InvalidPolicy,
    Objectives,
    Policy,
    Rate,
    Stale,
    Window,
    check,
)
from flexpert_operator.autoscale.sizes import Change, Sizes, trimmed
from flexpert_operator.autoscale.state import Decision, State
from flexpert_operator.decide.model import round_up
from flexpert_operator.decide.observation import ModelFacts

GPU_RESOURCE = "nvidia.com/gpu"


def policy_of(spec: PolicySpec, deployment: MoEDeployment, facts: ModelFacts | None) -> Policy:
    """What `autoscale` decides by.

    Args:
        spec: Of the policy.
        deployment: Its target.
        facts: What is known of the model.

    Raises:
        InvalidPolicy: It contradicts itself or its target; the message begins with the field.
    """
    engine_devices, worker_devices = devices_of(deployment)
    standby = deployment.experts.standby_pods * deployment.experts.workers_per_pod * worker_devices
    policy = Policy(
        target=deployment.name,
        engines=Bounds(spec.engines.minimum, spec.engines.maximum),
        experts=Bounds(spec.experts.minimum, spec.experts.maximum),
        devices=None if spec.budget.devices is None else spec.budget.devices - standby,
        engine_devices=engine_devices,
        worker_devices=worker_devices,
        objectives=_objectives(spec.objectives),
        engines_behavior=_behavior(spec.engines.behavior),
        experts_behavior=_behavior(spec.experts.behavior),
        schedule=tuple(
            Window(one.start, one.duration_s, one.engines, one.experts, one.time_zone) for one in spec.schedule
        ),
        forecast=_forecast(spec),
        idle=None if spec.idle is None else Idle(spec.idle.after_s),
        stale=Stale(spec.stale.after_s, spec.stale.safe_after_s, spec.stale.engines, spec.stale.experts),
        pause=spec.pause,
        dry_run=spec.dry_run,
    )
    check(policy)
    for problem in _target_problems(policy, deployment, facts):
        raise InvalidPolicy(problem)
    return policy


def devices_of(deployment: MoEDeployment) -> tuple[int, int]:
    """Devices of an engine and of a worker: their GPUs; where neither has any, one each."""
    engine = _gpus(deployment.engines.resources)
    pod = _gpus(deployment.experts.resources)
    if not engine and not pod:
        return 1, 1
    return engine, math.ceil(pod / deployment.experts.workers_per_pod)


def _gpus(resources: Resources) -> int:
    asked = resources.limits.get(GPU_RESOURCE, resources.requests.get(GPU_RESOURCE, 0))
    return int(to_number(asked))


def _objectives(spec: ObjectivesSpec) -> Objectives:
    def seconds(milliseconds: int | None) -> float | None:
        return None if milliseconds is None else milliseconds / 1000

    return Objectives(
        ttft_s=seconds(spec.ttft_ms),
        tpot_s=seconds(spec.tpot_ms),
        percentile=spec.percentile / 100,
        queue_wait_s=seconds(spec.queue_wait_ms),
        worker_utilisation=spec.worker_utilisation_percent / 100,
        kv_utilisation=spec.kv_utilisation_percent / 100,
    )


def _behavior(spec: ScalingBehavior) -> Behavior:
    return Behavior(_direction(spec.scale_up), _direction(spec.scale_down))


def _direction(spec: ScaleUp | ScaleDown) -> Direction:
    rates = tuple(Rate(one.type, one.value, one.period_s) for one in spec.policies)
    return Direction(rates, spec.stabilization_window_s, spec.select_policy, spec.tolerance_percent / 100)


def _forecast(spec: PolicySpec) -> Forecast | None:
    seasonal = spec.forecast.mode is ForecastMode.SEASONAL
    return Forecast(spec.forecast.season_s, spec.forecast.bins) if seasonal else None


def _target_problems(policy: Policy, deployment: MoEDeployment, facts: ModelFacts | None) -> Iterator[str]:
    step = deployment.experts.workers_per_pod
    for name, number in (("min", policy.experts.minimum), ("max", policy.experts.maximum)):
        if number % step:
            yield f"spec.experts.{name}: {number} is no multiple of {step}, the target's workersPerPod"
    least = least_workers(deployment, facts)
    if least > policy.experts.maximum:
        yield f"spec.experts.max: {policy.experts.maximum} is below {least}, the workers that the experts fit into"
    fewest = max(policy.engines.minimum, 1) * policy.engine_devices + least * policy.worker_devices
    if policy.devices is not None and fewest > policy.devices:
        yield (
            f"spec.budget.devices: {policy.devices} is below {fewest}, which one engine and the {least} workers that "
            "the experts fit into take"
        )
    safe = Sizes(policy.stale.engines, round_up(policy.stale.experts, step))
    if policy.devices is not None and safe.devices(policy) > policy.devices:
        takes = f"this safe floor takes {safe.devices(policy)} devices"
        yield f"spec.stale: {takes}, spec.budget.devices allows {policy.devices}"


def least_workers(deployment: MoEDeployment, facts: ModelFacts | None) -> int:
    """The fewest workers, in whole pods, that can hold the experts; as many as make a pod where that is not known."""
    experts, replicas = deployment.experts, deployment.placement.min_replicas
    least = replicas
    slots = experts.memory_per_worker_bytes // facts.expert_bytes - 1 if facts is not None else 0
    if facts is not None and slots > 0:
        least = max(least, math.ceil(facts.num_experts * replicas / slots))
    return round_up(least, experts.workers_per_pod)


def awake(policy: Policy, deployment: MoEDeployment, facts: ModelFacts | None) -> Policy:
    """The policy while the target is not idle: no pool is empty, and the experts fit."""
    least = least_workers(deployment, facts)
    return replace(
        policy,
        engines=replace(policy.engines, minimum=max(policy.engines.minimum, 1)),
        experts=replace(policy.experts, minimum=max(policy.experts.minimum, least)),
    )


def may_idle(observation: Observation, state: State, policy: Policy) -> bool:
    """Whether nothing has come for as long as the policy says, and nothing waits."""
    since = state.traffic.active_at
    if policy.idle is None or observation.running > 0 or observation.queued > 0 or since is None:
        return False
    return observation.at - since >= policy.idle.after_s


def first_sizes(sizes: Sizes, policy: Policy, deployment: MoEDeployment, facts: ModelFacts | None) -> Sizes:
    """Where a policy begins: with the sizes that there are to be, within its bounds and its budget."""
    bounds = awake(policy, deployment, facts)
    within = Sizes(
        min(max(sizes.engines, bounds.engines.minimum), bounds.engines.maximum),
        round_up(
            min(max(sizes.experts, bounds.experts.minimum), bounds.experts.maximum), deployment.experts.workers_per_pod
        ),
    )
    return in_pods(trimmed(within, bounds, "experts"), within, bounds, deployment.experts.workers_per_pod)


def decide_sizes(
    observation: Observation, state: State, policy: Policy, deployment: MoEDeployment, facts: ModelFacts | None
) -> tuple[Decision, State]:
    """`autoscale.decide`, with workers in whole pods that the experts fit into."""
    bounds = policy if may_idle(observation, state, policy) else awake(policy, deployment, facts)
    present = state.sizes or Sizes(observation.engines.existing, observation.experts.existing)
    decision, after = decide(observation, state, bounds)
    if policy.pause:
        return decision, after
    sizes = decision.sizes
    least = least_workers(deployment, facts)
    lifted = Sizes(sizes.engines, max(sizes.experts, least) if sizes.experts > 0 else 0)
    whole = in_pods(lifted, present, policy, deployment.experts.workers_per_pod)
    if whole == sizes:
        return decision, after
    at = after.at if after.at is not None else observation.at
    change = Change(at, whole.engines - present.engines, whole.experts - present.experts)
    changes = tuple(one for one in after.changes if one.at < at)
    changes += (change,) if change.engines or change.experts else ()
    reason = decision.reason.replace(f"to {sizes}", f"to {whole}", 1)
    return replace(decision, sizes=whole, reason=reason), replace(after, sizes=whole, changes=changes)


def in_pods(sizes: Sizes, present: Sizes, policy: Policy, step: int) -> Sizes:
    """Workers in whole pods: rounded up, or down where they would be more than the budget or the bounds allow.

    Args:
        sizes: As decided.
        present: As decided last.
        policy: Its budget and bounds.
        step: Workers of a pod.
    """
    up = replace(sizes, experts=round_up(sizes.experts, step))
    held = replace(up, engines=max(up.engines, present.engines), experts=max(up.experts, present.experts))
    fits = policy.devices is None or held.devices(policy) <= policy.devices or up.experts <= present.experts
    if up.experts == sizes.experts or (fits and up.experts <= policy.experts.maximum):
        return up
    return replace(sizes, experts=sizes.experts // step * step)
