"""Fields of `status` of MoEAutoscalingPolicy, for the schema and docs/api.md; `decide.policy_status` fills them in."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from flexpert_operator.api.fields import Field
from flexpert_operator.api.status import ConditionFields


@dataclass(frozen=True)
class SizesStatus:
    """Sizes of both pools."""

    engines: Annotated[int | None, Field("Engines.")] = None
    experts: Annotated[int | None, Field("Expert workers.")] = None


@dataclass(frozen=True)
class ScalingDecisionStatus:
    """The last decision that said something new; one that only repeats itself is written once a minute."""

    time: Annotated[datetime | None, Field("When it was.")] = None
    message: Annotated[str | None, Field("The decision in one sentence, with the numbers.")] = None
    wanted: Annotated[
        SizesStatus | None, Field("What the objectives ask for, before behavior, bounds of rates and the budget.")
    ] = None
    bottleneck: Annotated[str | None, Field("The pool of which one more would help most: engines or experts.")] = None
    limits: Annotated[tuple[str, ...] | None, Field("Why the sizes differ from those wanted.")] = None


@dataclass(frozen=True)
class ChangeStatus:
    """A change of size."""

    time: Annotated[datetime, Field("When it was.")]
    engines: Annotated[int, Field("Engines that came; below 0: that went.")]
    experts: Annotated[int, Field("Workers that came; below 0: that went.")]


@dataclass(frozen=True)
class LearntStatus:
    """What was fitted while serving, so that the next operator process goes on with it.

    A step of an engine takes `engineStep` and `engineToken` for each token of a step; waiting for workers takes
    `expertStep` and `workerToken` for each token on the busiest worker.
    """

    engine_step: Annotated[int | None, Field("In nanoseconds.", name="engineStepNanoseconds", bits=64)] = None
    engine_token: Annotated[int | None, Field("In nanoseconds.", name="engineTokenNanoseconds", bits=64)] = None
    expert_step: Annotated[int | None, Field("In nanoseconds.", name="expertStepNanoseconds", bits=64)] = None
    worker_token: Annotated[int | None, Field("In nanoseconds.", name="workerTokenNanoseconds", bits=64)] = None
    scale_up_ms: Annotated[
        int | None, Field("Time from a decision to grow to ready members.", name="scaleUpMilliseconds", bits=64)
    ] = None
    scale_up_cost_ms: Annotated[
        int | None,
        Field(
            "Device-milliseconds of serving lost for each device that comes, since steps take longer meanwhile.",
            name="scaleUpCostMilliseconds",
            bits=64,
        ),
    ] = None
    season: Annotated[
        tuple[int, ...] | None,
        Field("Requests in a thousand seconds, in each part of the season; -1: not known.", bits=64, max_items=288),
    ] = None


@dataclass(frozen=True)
class PolicyStatus:
    """`status` of a MoEAutoscalingPolicy."""

    observed_generation: Annotated[int | None, Field("Generation of the spec that this status is about.", bits=64)] = (
        None
    )
    conditions: Annotated[
        tuple[ConditionFields, ...] | None,
        Field(
            "What is to be said about it: ScalingActive, AbleToScale, ScalingLimited, BudgetExhausted.", keys=("type",)
        ),
    ] = None
    desired: Annotated[
        SizesStatus | None,
        Field("The sizes that the target has; the operator carries them out. Absent: the spec of the target counts."),
    ] = None
    would_be: Annotated[SizesStatus | None, Field("With dryRun: the sizes that would be desired.")] = None
    devices: Annotated[int | None, Field("Devices of the sizes desired.")] = None
    last_decision: Annotated[ScalingDecisionStatus | None, Field("The last decision.")] = None
    last_scale_time: Annotated[datetime | None, Field("When the sizes desired last changed.")] = None
    changes: Annotated[
        tuple[ChangeStatus, ...] | None,
        Field("Changes of the last hour, which rates and windows of behavior count.", max_items=64),
    ] = None
    learnt: Annotated[LearntStatus | None, Field("What was fitted while serving.")] = None
