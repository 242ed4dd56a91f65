"""The MoEDeployment as typed values: parsed from what the API server keeps, never written back as a whole."""

from flexpert_operator.api.conditions import Condition, ConditionStatus, merge_conditions
from flexpert_operator.api.spec import (
    Engines,
    Experts,
    InvalidObject,
    Model,
    MoEDeployment,
    PlacementSpec,
    Rebalance,
    Resources,
    Serving,
    Solver,
    parse_deployment,
)

__all__ = [
    "Condition",
    "ConditionStatus",
    "Engines",
    "Experts",
    "InvalidObject",
    "MoEDeployment",
    "Model",
    "PlacementSpec",
    "Rebalance",
    "Resources",
    "Serving",
    "Solver",
    "merge_conditions",
    "parse_deployment",
]
