"""The placement solver: problem in, placement and plan out. No Kubernetes, Ray or torch."""

from flexpert_placement.plan import make_plan
from flexpert_placement.solver import imbalance, solve
from flexpert_placement.types import (
    Budget,
    ExpertId,
    InfeasiblePlacement,
    Move,
    Placement,
    PlacementProblem,
    PlacementResult,
    Plan,
    SolverName,
    SolveStatus,
    Terms,
    Traffic,
    Weights,
    WorkerCapacity,
)

__all__ = [
    "Budget",
    "ExpertId",
    "InfeasiblePlacement",
    "Move",
    "Placement",
    "PlacementProblem",
    "PlacementResult",
    "Plan",
    "SolveStatus",
    "SolverName",
    "Terms",
    "Traffic",
    "Weights",
    "WorkerCapacity",
    "imbalance",
    "make_plan",
    "solve",
]
