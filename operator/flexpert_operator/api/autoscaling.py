"""MoEAutoscalingPolicy's spec, and the one place where its fields, defaults, bounds and rules are written down.

`crd` makes the CustomResourceDefinition of these classes, and `decide.policies` makes of what was read the policy that
`autoscale` decides by. The API has no fractions: times of objectives are in milliseconds, parts in percent.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, ClassVar

from flexpert_operator.api import names
from flexpert_operator.api.fields import Field, Json, Rule
from flexpert_operator.api.parsed import Parsed, parse
from flexpert_operator.autoscale.policy import Select, Unit

CRON = r"^\s*(\S+\s+){4}\S+\s*$"


class ForecastMode(StrEnum):
    """What is expected of the traffic."""

    OFF = "Off"
    SEASONAL = "Seasonal"


@dataclass(frozen=True)
class TargetRef:
    """What is scaled, in the same namespace."""

    name: Annotated[str, Field("Name of the MoEDeployment.", min_length=1, max_length=40)]
    api_version: Annotated[str, Field("Version of its API.", values=(names.API_VERSION,))] = names.API_VERSION
    kind: Annotated[str, Field("Its kind.", values=(names.KIND,))] = names.KIND


@dataclass(frozen=True)
class ScalingRate:
    """How much of a pool may come or go within a period."""

    value: Annotated[int, Field("How many, or how many percent of those at the beginning of the period.", minimum=1)]
    period_s: Annotated[float, Field("The period.", name="periodSeconds", minimum=1, maximum=1800)]
    type: Annotated[Unit, Field("What value counts.")] = Unit.PIECES


@dataclass(frozen=True)
class ScalingDirection:
    """How a pool may change in one direction, as in HorizontalPodAutoscaler v2."""

    select_policy: Annotated[
        Select, Field("Which of several policies holds, the one that allows most or least; Disabled: no change.")
    ] = Select.MAX
    policies: Annotated[
        tuple[ScalingRate, ...], Field("How much may come or go in a time.", max_items=8, absent="any number at once")
    ] = ()
    tolerance_percent: Annotated[
        int, Field("Part of the present size by which the size wanted has to differ.", minimum=0, maximum=99)
    ] = 0


@dataclass(frozen=True)
class ScaleUp(ScalingDirection):
    """How it grows."""

    stabilization_window_s: Annotated[
        int,
        Field(
            "It grows no further than to the smallest of the sizes wanted within it.",
            name="stabilizationWindowSeconds",
            minimum=0,
            maximum=3600,
        ),
    ] = 0


@dataclass(frozen=True)
class ScaleDown(ScalingDirection):
    """How it shrinks."""

    stabilization_window_s: Annotated[
        int | None,
        Field(
            "It shrinks no further than to the largest of the sizes wanted within it, and not at all within it after "
            "it has grown.",
            name="stabilizationWindowSeconds",
            minimum=0,
            maximum=3600,
            absent="as long as is learnt from how needs come back",
        ),
    ] = None


@dataclass(frozen=True)
class ScalingBehavior:
    """Both directions."""

    scale_up: Annotated[ScaleUp, Field("How it grows.")] = field(default_factory=ScaleUp)
    scale_down: Annotated[ScaleDown, Field("How it shrinks.")] = field(default_factory=ScaleDown)


ORDERED = Rule("!has(self.min) || !has(self.max) || self.min <= self.max", "max must be at least min", ".max")


@dataclass(frozen=True)
class EngineBounds:
    """Bounds of the engines."""

    RULES: ClassVar = (ORDERED,)

    minimum: Annotated[
        int, Field("Fewest; 0 lets them go when idle, see spec.idle.", name="min", minimum=0, maximum=256)
    ] = 1
    maximum: Annotated[int, Field("Most.", name="max", minimum=1, maximum=256)] = 16
    behavior: Annotated[ScalingBehavior, Field("How fast it grows and shrinks.")] = field(
        default_factory=ScalingBehavior
    )


@dataclass(frozen=True)
class WorkerBounds:
    """Bounds of the expert workers."""

    RULES: ClassVar = (ORDERED,)

    minimum: Annotated[
        int,
        Field(
            "Fewest workers, a multiple of workersPerPod; 0 lets them go when idle, see spec.idle. While there are "
            "any, there are never fewer than the experts fit into.",
            name="min",
            minimum=0,
            maximum=4096,
        ),
    ] = 1
    maximum: Annotated[
        int, Field("Most workers, a multiple of workersPerPod.", name="max", minimum=1, maximum=4096)
    ] = 16
    behavior: Annotated[ScalingBehavior, Field("How fast it grows and shrinks.")] = field(
        default_factory=ScalingBehavior
    )


@dataclass(frozen=True)
class DeviceBudget:
    """What engines and workers may have together."""

    devices: Annotated[
        int | None,
        Field(
            "Most devices of engines and workers together, those that are still going included. A device is a GPU "
            "that their resources ask for; where neither asks for any, each engine and each worker counts as one. "
            "Rollouts keep it too; only what follows a pod on a node that is drained is asked for at once.",
            minimum=1,
            maximum=65536,
            absent="no budget",
        ),
    ] = None


@dataclass(frozen=True)
class ObjectivesSpec:
    """What requests should get; what is left out is not asked for."""

    ttft_ms: Annotated[
        int | None,
        Field(
            "Time to first token, for `percentile` of the requests.",
            name="ttftMilliseconds",
            minimum=1,
            maximum=3600000,
            absent="not asked for",
        ),
    ] = None
    tpot_ms: Annotated[
        int | None,
        Field(
            "Time per further token, for `percentile` of the requests.",
            name="tpotMilliseconds",
            minimum=1,
            maximum=3600000,
            absent="not asked for",
        ),
    ] = None
    percentile: Annotated[int, Field("Percent of the requests that get it.", minimum=50, maximum=99)] = 99
    queue_wait_ms: Annotated[
        int | None,
        Field(
            "Wait before an engine begins, for `percentile` of the requests.",
            name="queueWaitMilliseconds",
            minimum=1,
            maximum=3600000,
            absent="not asked for",
        ),
    ] = None
    worker_utilisation_percent: Annotated[
        int, Field("Most of the time that the busiest worker computes.", minimum=1, maximum=100)
    ] = 90
    kv_utilisation_percent: Annotated[
        int, Field("Most of the engines' KV memory that is in use.", minimum=1, maximum=100)
    ] = 90


@dataclass(frozen=True)
class ScheduleWindow:
    """A stretch of time that comes again, with floors. Members are asked for as long before as they take to come."""

    start: Annotated[
        str,
        Field(
            "When it begins: minute, hour, day of the month, month and day of the week, as in cron.",
            min_length=9,
            max_length=100,
            pattern=CRON,
        ),
    ]
    duration_s: Annotated[float, Field("How long it lasts.", name="durationSeconds", minimum=60, maximum=604800)]
    time_zone: Annotated[str, Field("IANA name of the zone in which start is read.", min_length=1, max_length=64)] = (
        "UTC"
    )
    engines: Annotated[int, Field("Fewest engines then.", minimum=0, maximum=256)] = 0
    experts: Annotated[int, Field("Fewest workers then.", minimum=0, maximum=4096)] = 0


@dataclass(frozen=True)
class ForecastSpec:
    """What is expected of the traffic, as far ahead as members take to come."""

    mode: Annotated[
        ForecastMode, Field("Off: what comes now. Seasonal: what came at this time of earlier seasons, too.")
    ] = ForecastMode.OFF
    season_s: Annotated[
        float, Field("After which traffic repeats itself.", name="seasonSeconds", minimum=600, maximum=604800)
    ] = 86400
    bins: Annotated[int, Field("Parts of a season that are told apart.", minimum=2, maximum=288)] = 288


@dataclass(frozen=True)
class IdleSpec:
    """When pools whose min is 0 go to 0. A request that comes then waits in the ingress and wakes them."""

    after_s: Annotated[
        float, Field("After so long without a request.", name="afterSeconds", minimum=1, maximum=604800)
    ] = 600


@dataclass(frozen=True)
class StaleSpec:
    """What is done without fresh metrics: sizes are held, and after a while they are not below the safe floor."""

    RULES: ClassVar = (
        Rule(
            "!has(self.afterSeconds) || !has(self.safeAfterSeconds) || self.afterSeconds <= self.safeAfterSeconds",
            "safeAfterSeconds must be at least afterSeconds",
            ".safeAfterSeconds",
        ),
    )

    after_s: Annotated[
        float, Field("Metrics older than that are stale.", name="afterSeconds", minimum=5, maximum=3600)
    ] = 45
    safe_after_s: Annotated[
        float, Field("When the safe floor begins to hold.", name="safeAfterSeconds", minimum=5, maximum=86400)
    ] = 300
    engines: Annotated[int, Field("Safe floor of the engines.", minimum=0, maximum=256)] = 0
    experts: Annotated[int, Field("Safe floor of the workers.", minimum=0, maximum=4096)] = 0


def _within(where: str, pool: str) -> str:
    """In CEL: the floors of a pool under `where` are within its max."""
    return f"!has({where}.{pool}) || !has(self.{pool}) || !has(self.{pool}.max) || {where}.{pool} <= self.{pool}.max"


def _is_zero(pool: str) -> str:
    """In CEL: the min of a pool is 0."""
    return f"(has(self.{pool}) && has(self.{pool}.min) && self.{pool}.min == 0)"


@dataclass(frozen=True)
class PolicySpec:
    """`spec` of a MoEAutoscalingPolicy."""

    RULES: ClassVar = (
        *(
            Rule(
                f"has(self.idle) || !{_is_zero(pool)}",
                "a min of 0 needs spec.idle, which says when to scale to zero",
                f".{pool}.min",
            )
            for pool in ("engines", "experts")
        ),
        Rule(
            f"!has(self.idle) || {_is_zero('engines')} || {_is_zero('experts')}",
            "idle needs engines.min or experts.min to be 0: nothing can go to 0 otherwise",
            ".idle",
        ),
        *(
            Rule(
                f"!has(self.schedule) || self.schedule.all(window, {_within('window', pool)})",
                f"{pool} of a window must be at most {pool}.max",
                ".schedule",
            )
            for pool in ("engines", "experts")
        ),
        *(
            Rule(
                f"!has(self.stale) || {_within('self.stale', pool)}",
                f"{pool} of the safe floor must be at most {pool}.max",
                f".stale.{pool}",
            )
            for pool in ("engines", "experts")
        ),
    )

    target_ref: Annotated[
        TargetRef,
        Field(
            "What is scaled; cannot be changed.",
            rules=(Rule("self == oldSelf", "targetRef cannot be changed; make another MoEAutoscalingPolicy"),),
        ),
    ]
    engines: Annotated[EngineBounds, Field("Bounds of the engines.")] = field(default_factory=EngineBounds)
    experts: Annotated[WorkerBounds, Field("Bounds of the expert workers.")] = field(default_factory=WorkerBounds)
    budget: Annotated[DeviceBudget, Field("What both pools may have together, also while they change.")] = field(
        default_factory=DeviceBudget
    )
    objectives: Annotated[ObjectivesSpec, Field("What requests should get, with as few devices as possible.")] = field(
        default_factory=ObjectivesSpec
    )
    schedule: Annotated[
        tuple[ScheduleWindow, ...], Field("Floors at certain times.", max_items=32, absent="no floors")
    ] = ()
    forecast: Annotated[ForecastSpec, Field("What is expected of the traffic.")] = field(default_factory=ForecastSpec)
    idle: Annotated[IdleSpec | None, Field("When to scale to zero.", absent="never")] = None
    stale: Annotated[StaleSpec, Field("What is done without fresh metrics.")] = field(default_factory=StaleSpec)
    interval_s: Annotated[
        float, Field("Time between two decisions.", name="intervalSeconds", minimum=1, maximum=300)
    ] = 10
    pause: Annotated[bool, Field("Nothing is decided: sizes stay as they are.")] = False
    dry_run: Annotated[
        bool,
        Field("Decisions are made and told in status, not carried out: sizes stay as the spec of the target says."),
    ] = False


MoEAutoscalingPolicy = Parsed[PolicySpec]


def parse_policy(body: Json) -> MoEAutoscalingPolicy:
    """The typed policy of an object that the API server validated and defaulted; raises `InvalidObject`."""
    return parse(names.POLICY_KIND, PolicySpec, body)
