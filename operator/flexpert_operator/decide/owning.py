"""Whose word counts for the sizes of a MoEDeployment: a policy's, else a scaler's, else the spec's. Pure.

`reconciler` replaces the sizes of what it parsed by what is found here, so that nothing behind it knows the difference;
`policies` and `scalers` say in their conditions who has the word. A policy never writes the MoEDeployment.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from flexpert_operator.api.autoscaling import MoEAutoscalingPolicy
from flexpert_operator.api.conditions import SCALED_BY_POLICY, Condition, ConditionStatus
from flexpert_operator.api.parsed import Parsed
from flexpert_operator.api.reasons import ScaledReason
from flexpert_operator.api.scaler import MoEScaler, ScaledPool
from flexpert_operator.api.spec import MoEDeployment
from flexpert_operator.autoscale.sizes import Sizes
from flexpert_operator.decide.budget import Budget
from flexpert_operator.decide.model import round_up
from flexpert_operator.decide.scaling import devices_of

T = TypeVar("T")


@dataclass(frozen=True)
class Owned:
    """A MoEDeployment with the sizes that it is to have.

    Attributes:
        condition: That the spec's sizes do not count, and whose do; None where they count.
        budget: That its pods have to keep; None where there is none.
    """

    deployment: MoEDeployment
    condition: Condition | None = None
    budget: Budget | None = None


def first_of(claims: Iterable[Parsed[T]]) -> Parsed[T] | None:
    """The one of several objects with the same target that has the word: the oldest."""
    return min(claims, key=lambda one: (one.created_at, one.name), default=None)


def scaler_of(scalers: Iterable[MoEScaler], pool: ScaledPool) -> MoEScaler | None:
    """The scaler that has the word about a pool."""
    return first_of(one for one in scalers if one.spec.pool is pool)


def desired_sizes(policy: MoEAutoscalingPolicy | None) -> Sizes | None:
    """What a policy wants the sizes to be; None where it wants nothing, or only says so."""
    desired = policy.status.get("desired") if policy is not None and not policy.spec.dry_run else None
    return Sizes(int(desired["engines"]), int(desired["experts"])) if desired else None


def spec_sizes(deployment: MoEDeployment) -> Sizes:
    """The sizes that a MoEDeployment has, or that its spec says."""
    return Sizes(deployment.engines.replicas, deployment.experts.workers)


def resized(deployment: MoEDeployment, sizes: Sizes) -> MoEDeployment:
    """With other sizes; workers in whole pods."""
    workers = round_up(sizes.experts, deployment.experts.workers_per_pod)
    engines, experts = deployment.engines, deployment.experts
    return replace(
        deployment, engines=replace(engines, replicas=sizes.engines), experts=replace(experts, workers=workers)
    )


def scaled_sizes(deployment: MoEDeployment, scalers: Iterable[MoEScaler]) -> Sizes:
    """What scalers say, and the spec where none does."""
    known, said = tuple(scalers), spec_sizes(deployment)
    engines, experts = scaler_of(known, ScaledPool.ENGINES), scaler_of(known, ScaledPool.EXPERTS)
    return Sizes(
        engines.spec.replicas if engines is not None else said.engines,
        experts.spec.replicas if experts is not None else said.experts,
    )


def owned(deployment: MoEDeployment, policies: Iterable[MoEAutoscalingPolicy], scalers: Iterable[MoEScaler]) -> Owned:
    """A MoEDeployment with the sizes that count.

    Args:
        deployment: As it was read.
        policies: Those that target it.
        scalers: Those that target it.
    """
    policy, known = first_of(policies), tuple(scalers)
    desired, budget = desired_sizes(policy), None
    if policy is not None and desired is not None:
        reason, who, sizes = ScaledReason.SCALED_BY_POLICY, f"MoEAutoscalingPolicy {policy.name}", desired
        budget = budget_of(policy, deployment)
    elif known:
        names = sorted(one.name for pool in ScaledPool if (one := scaler_of(known, pool)) is not None)
        reason, who = ScaledReason.SCALED_BY_SCALER, f"MoEScaler {' and '.join(names)}"
        sizes = scaled_sizes(deployment, known)
    else:
        return Owned(deployment)
    found = resized(deployment, sizes)
    ignored = f"spec.engines.replicas {deployment.engines.replicas}, spec.experts.workers {deployment.experts.workers}"
    message = f"{who} decides: {spec_sizes(found)}; the spec's own sizes do not count: {ignored}"
    return Owned(found, Condition(SCALED_BY_POLICY, ConditionStatus.TRUE, reason, message), budget)


def budget_of(policy: MoEAutoscalingPolicy, deployment: MoEDeployment) -> Budget | None:
    """The budget of a policy, for pods; None where it has none."""
    if policy.spec.budget.devices is None:
        return None
    engine, worker = devices_of(deployment)
    return Budget(policy.spec.budget.devices, engine, worker * deployment.experts.workers_per_pod)
