"""The placement solver: problem in, placement and plan out. No Kubernetes, Ray or torch."""

from flexpert_placement.plan import make_plan
from flexpert_placement.solver import imbalance, solve
from flexpert_placement.types import (
    ExpertId,
    InfeasiblePlacement,
    Move,
    Placement,
    PlacementProblem,
    PlacementResult,
    Plan,
    SolveStatus,
    WorkerCapacity,
)

__all__ = [
    "ExpertId",
    "InfeasiblePlacement",
    "Move",
    "Placement",
    "PlacementProblem",
    "PlacementResult",
    "Plan",
    "SolveStatus",
    "WorkerCapacity",
    "imbalance",
    "make_plan",
    "solve",
]
