"""What a user wants of autoscaling, as values. `decision` reads it; whoever parses an object of the API builds it.

Fields are named as in MoEAutoscalingPolicy's spec, in Python's spelling; `check` refuses policies that contradict
themselves and names the field as the object has it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

_ANY_TIME = datetime(2026, 1, 1, tzinfo=UTC)


class InvalidPolicy(ValueError):
    """A policy that contradicts itself; the message begins with the field."""


@dataclass(frozen=True)
class Bounds:
    """Fewest and most of a pool. 0 at least means that it may idle."""

    minimum: int = 1
    maximum: int = 16


@dataclass(frozen=True)
class Objectives:
    """What requests should get; None is not asked for.

    Attributes:
        ttft_s: Time to first token at the percentile.
        tpot_s: Time per further token at the percentile.
        percentile: Of the requests, between 0.5 and 1.
        queue_wait_s: Time in the ingress's queue at the percentile.
        worker_utilisation: Part of the time that the busiest worker computes, at most.
        kv_utilisation: Part of the engines' KV memory in use, at most.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    percentile: float = 0.99
    queue_wait_s: float | None = None
    worker_utilisation: float | None = 0.9
    kv_utilisation: float | None = 0.9


class Unit(StrEnum):
    """What a rate counts."""

    PIECES = "Pieces"
    PERCENT = "Percent"


@dataclass(frozen=True)
class Rate:
    """How much of a pool may come or go within a period."""

    unit: Unit
    value: int
    period_s: float


class Select(StrEnum):
    """Which of several rates holds; DISABLED forbids the direction."""

    MAX = "Max"
    MIN = "Min"
    DISABLED = "Disabled"


@dataclass(frozen=True)
class Direction:
    """How a pool may change in one direction, as HPA v2 has it.

    Attributes:
        rates: None at all is no limit.
        stabilisation_s: The most cautious of the sizes wanted within it counts. None is as long as is learnt to be
            right for shrinking (`calm`), and 0 for growing.
        tolerance: Part of the present size by which the size wanted has to differ.
    """

    rates: tuple[Rate, ...] = ()
    stabilisation_s: float | None = 0.0
    select: Select = Select.MAX
    tolerance: float = 0.0


@dataclass(frozen=True)
class Behavior:
    """Both directions."""

    up: Direction = Direction()
    down: Direction = Direction(stabilisation_s=None)


@dataclass(frozen=True)
class Window:
    """A stretch of time that comes again, with floors.

    Attributes:
        start: Cron expression of when it begins.
        duration_s: How long it lasts.
        engines: At least as many then.
        experts: At least as many workers then.
        time_zone: IANA name, in which `start` is read.
    """

    start: str
    duration_s: float
    engines: int = 0
    experts: int = 0
    time_zone: str = "UTC"


@dataclass(frozen=True)
class Forecast:
    """A seasonal forecast; its horizon is the measured time to scale up.

    Attributes:
        season_s: After which traffic repeats itself.
        bins: Parts of a season that are remembered.
    """

    season_s: float = 86400.0
    bins: int = 288


@dataclass(frozen=True)
class Idle:
    """Scale to zero after so long without a request."""

    after_s: float = 600.0


@dataclass(frozen=True)
class Stale:
    """What to do without fresh metrics.

    Attributes:
        after_s: Metrics older than that are stale: sizes are held.
        safe_after_s: Then the pool is brought to the safe floor, if it is below that.
        engines: Safe floor.
        experts: Safe floor.
    """

    after_s: float = 45.0
    safe_after_s: float = 300.0
    engines: int = 0
    experts: int = 0


@dataclass(frozen=True)
class Policy:
    """A MoEAutoscalingPolicy's spec.

    Attributes:
        target: Name of the MoEDeployment.
        devices: Most devices that engines and workers have together, also while they change; None is no budget.
        engine_devices: Devices of one engine.
        worker_devices: Devices of one expert worker.
        forecast: None is none.
        idle: None keeps at least one of each, or the bounds' minimum.
        pause: Nothing is decided.
        dry_run: Decided and told, not done.
    """

    target: str
    engines: Bounds = Bounds()
    experts: Bounds = Bounds()
    devices: int | None = None
    engine_devices: int = 1
    worker_devices: int = 1
    objectives: Objectives = Objectives()
    engines_behavior: Behavior = Behavior()
    experts_behavior: Behavior = Behavior()
    schedule: tuple[Window, ...] = ()
    forecast: Forecast | None = None
    idle: Idle | None = None
    stale: Stale = Stale()
    pause: bool = False
    dry_run: bool = False


def check(policy: Policy) -> Policy:
    """The policy itself.

    Raises:
        InvalidPolicy: It contradicts itself; the message begins with the field and says what it has to be.
    """
    for problem in _problems(policy):
        raise InvalidPolicy(problem)
    return policy


def _problems(policy: Policy) -> Iterator[str]:
    for name, bounds in (("engines", policy.engines), ("experts", policy.experts)):
        if bounds.minimum < 0:
            yield f"spec.{name}.min: {bounds.minimum} is below 0"
        if bounds.maximum < max(bounds.minimum, 1):
            yield f"spec.{name}.max: {bounds.maximum} is below min, or below 1"
        if bounds.minimum == 0 and policy.idle is None:
            yield f"spec.{name}.min: 0 needs spec.idle, which says when to scale to zero and how to wake"
    yield from _budget_problems(policy)
    yield from _objective_problems(policy.objectives)
    for name, behavior in (("engines", policy.engines_behavior), ("experts", policy.experts_behavior)):
        for way, direction in (("scaleUp", behavior.up), ("scaleDown", behavior.down)):
            yield from (f"spec.{name}.behavior.{way}.{problem}" for problem in _direction_problems(direction))
    for number, window in enumerate(policy.schedule):
        yield from (f"spec.schedule[{number}].{problem}" for problem in _window_problems(policy, window))
    if policy.forecast is not None and not (policy.forecast.season_s > 0 and policy.forecast.bins >= 1):
        yield "spec.forecast.seasonSeconds: it has to be above 0, with at least one bin"
    if policy.idle is not None and not policy.idle.after_s > 0:
        yield f"spec.idle.afterSeconds: {policy.idle.after_s} is not above 0"
    if not 0 < policy.stale.after_s <= policy.stale.safe_after_s:
        yield "spec.stale.afterSeconds: it has to be above 0 and at most safeAfterSeconds"


def _budget_problems(policy: Policy) -> Iterator[str]:
    if min(policy.engine_devices, policy.worker_devices) < 0:
        yield "spec.budget: an engine or worker cannot have fewer than 0 devices"
    if policy.devices is None:
        return
    fewest = policy.engines.minimum * policy.engine_devices + policy.experts.minimum * policy.worker_devices
    one_each = policy.engine_devices + policy.worker_devices
    if policy.devices < max(fewest, one_each):
        least = max(fewest, one_each)
        yield f"spec.budget.devices: {policy.devices} is below {least}, which the minima, or one of each, take"


def _objective_problems(objectives: Objectives) -> Iterator[str]:
    for name, value in (
        ("ttftMilliseconds", objectives.ttft_s),
        ("tpotMilliseconds", objectives.tpot_s),
        ("queueWaitMilliseconds", objectives.queue_wait_s),
    ):
        if value is not None and not (math.isfinite(value) and value > 0):
            yield f"spec.objectives.{name}: {value} is no time above 0"
    for name, value in (
        ("workerUtilisationPercent", objectives.worker_utilisation),
        ("kvUtilisationPercent", objectives.kv_utilisation),
    ):
        if value is not None and not 0 < value <= 1:
            yield f"spec.objectives.{name}: {value} is not above 0 and at most 1"
    if not 0.5 <= objectives.percentile < 1:
        yield f"spec.objectives.percentile: {objectives.percentile} is not between 0.5 and 1"


def _direction_problems(direction: Direction) -> Iterator[str]:
    if direction.stabilisation_s is not None and not 0 <= direction.stabilisation_s <= 3600:
        yield f"stabilizationWindowSeconds: {direction.stabilisation_s} is not 0 to 3600"
    if not 0 <= direction.tolerance < 1:
        yield f"tolerance: {direction.tolerance} is not 0 to 1"
    for number, rate in enumerate(direction.rates):
        if rate.value < 1:
            yield f"policies[{number}].value: {rate.value} is not above 0"
        if not 0 < rate.period_s <= 1800:
            yield f"policies[{number}].periodSeconds: {rate.period_s} is not above 0 and at most 1800"


def _window_problems(policy: Policy, window: Window) -> Iterator[str]:
    try:
        ZoneInfo(window.time_zone)
    except (ZoneInfoNotFoundError, ValueError):
        yield f"timeZone: {window.time_zone} is no IANA time zone"
    try:
        CronSim(window.start, _ANY_TIME)
    except CronSimError as error:
        yield f"start: {window.start!r} is no cron expression ({error})"
    if not 0 < window.duration_s <= 7 * 86400:
        yield f"durationSeconds: {window.duration_s} is not above 0 and at most a week"
    if not 0 <= window.engines <= policy.engines.maximum:
        yield f"engines: {window.engines} is not 0 to spec.engines.max"
    if not 0 <= window.experts <= policy.experts.maximum:
        yield f"experts: {window.experts} is not 0 to spec.experts.max"
    if policy.devices is not None:
        floor = window.engines * policy.engine_devices + window.experts * policy.worker_devices
        if floor > policy.devices:
            yield f"engines: this floor takes {floor} devices, spec.budget.devices allows {policy.devices}"
