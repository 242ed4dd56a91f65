"""MoEScaler: a scale subresource for a pool of a MoEDeployment, whose own one is that of the expert workers.

HorizontalPodAutoscaler, KEDA and kubectl scale write it; `decide.owning` reads it when sizes are decided.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from flexpert_operator.api import names
from flexpert_operator.api.autoscaling import TargetRef
from flexpert_operator.api.fields import Field, Json, Rule
from flexpert_operator.api.parsed import Parsed, parse
from flexpert_operator.api.status import ConditionFields


class ScaledPool(StrEnum):
    """What a MoEScaler scales."""

    ENGINES = "Engines"
    EXPERTS = "Experts"


@dataclass(frozen=True)
class ScalerSpec:
    """`spec` of a MoEScaler."""

    target_ref: Annotated[
        TargetRef,
        Field(
            "What is scaled; cannot be changed.",
            rules=(Rule("self == oldSelf", "targetRef cannot be changed; make another MoEScaler"),),
        ),
    ]
    pool: Annotated[
        ScaledPool,
        Field(
            "Which pool of it; cannot be changed.",
            rules=(Rule("self == oldSelf", "pool cannot be changed; make another MoEScaler"),),
        ),
    ] = ScaledPool.ENGINES
    replicas: Annotated[
        int,
        Field(
            "Engines, or expert workers: the size of the pool, whatever the spec of the target says. kubectl scale "
            "writes it. Workers are rounded up to a multiple of workersPerPod.",
            minimum=0,
            maximum=4096,
        ),
    ] = 1


@dataclass(frozen=True)
class ScalerStatus:
    """`status` of a MoEScaler."""

    observed_generation: Annotated[int | None, Field("Generation of the spec that this status is about.", bits=64)] = (
        None
    )
    conditions: Annotated[
        tuple[ConditionFields, ...] | None, Field("What is to be said about it: AbleToScale.", keys=("type",))
    ] = None
    replicas: Annotated[int | None, Field("Members that exist, ready or not.")] = None
    selector: Annotated[str | None, Field("Label selector of their pods.")] = None


MoEScaler = Parsed[ScalerSpec]


def parse_scaler(body: Json) -> MoEScaler:
    """The typed scaler of an object that the API server validated and defaulted; raises `InvalidObject`."""
    return parse(names.SCALER_KIND, ScalerSpec, body)
