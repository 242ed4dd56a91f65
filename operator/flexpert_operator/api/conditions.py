"""Conditions of a status: one entry a type, whose `lastTransitionTime` moves only when its status does."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

READY = "Ready"
PROGRESSING = "Progressing"
DEGRADED = "Degraded"
REBALANCING = "Rebalancing"
MODEL_LOADED = "ModelLoaded"
HEAD_PERSISTENT = "HeadPersistent"
SCALED_BY_POLICY = "ScaledByPolicy"

SCALING_ACTIVE = "ScalingActive"
ABLE_TO_SCALE = "AbleToScale"
SCALING_LIMITED = "ScalingLimited"
BUDGET_EXHAUSTED = "BudgetExhausted"


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True)
class Condition:
    """What is to be said under one type; `reason` is one CamelCase word."""

    type: str
    status: ConditionStatus
    reason: str
    message: str


def merge_conditions(
    old: Iterable[Mapping[str, Any]], new: Iterable[Condition], generation: int, now: str
) -> list[dict[str, Any]]:
    """The conditions to write, in the order of `new`; types that are not in `new` are dropped.

    Args:
        old: As the status has them.
        new: As they are now.
        generation: Generation of the spec that `new` is about.
        now: RFC 3339 time.
    """
    before = {condition["type"]: condition for condition in old}
    merged = []
    for condition in new:
        previous = before.get(condition.type)
        unchanged = previous is not None and previous["status"] == condition.status
        merged.append(
            {
                "type": condition.type,
                "status": str(condition.status),
                "observedGeneration": generation,
                "lastTransitionTime": previous["lastTransitionTime"] if previous is not None and unchanged else now,
                "reason": str(condition.reason),
                "message": condition.message,
            }
        )
    return merged
