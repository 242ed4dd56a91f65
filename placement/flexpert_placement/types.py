"""What the solver is told and what it answers. Frozen values; arrays are nested tuples, [layers, experts].

The operator builds a `PlacementProblem` from what it observed and sends the resulting `Plan` to the pool controller.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class ExpertId(NamedTuple):
    """An expert by its MoE layer (0-based among MoE layers) and its index in that layer."""

    layer: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


@dataclass(frozen=True)
class WorkerCapacity:
    """A worker that may hold experts.

    Attributes:
        memory_bytes: Budget for experts, over all layers.
        speed: Load it serves per unit of time, relative to the others.
    """

    id: str
    memory_bytes: int
    speed: float = 1.0
    failure_domain: str = ""


Placement = Mapping[ExpertId, Mapping[str, float]]
"""Expert → worker id → share of the expert's traffic (shares of an expert add up to 1)."""


@dataclass(frozen=True)
class PlacementProblem:
    """What is to be placed, on what, and what is there already.

    Attributes:
        loads: [layers, experts] tokens per unit of time (any unit; only ratios count). All zero means unknown: even.
        expert_bytes: Bytes of one replica.
        current: The present placement; replicas on workers that are not in `workers` are gone.
        move_cost: Price of copying one replica, as a fraction of a layer's makespan under perfect balance.
        min_replicas: Live copies that every expert must have, each on another worker.
        max_replicas: Most copies an expert may have; None is one a worker.
        time_limit_s: Wall time the integer programs may take together.
    """

    loads: tuple[tuple[float, ...], ...]
    expert_bytes: int
    workers: tuple[WorkerCapacity, ...]
    current: Placement = field(default_factory=dict)
    min_replicas: int = 1
    max_replicas: int | None = None
    move_cost: float = 0.01
    time_limit_s: float = 10.0


class SolveStatus(StrEnum):
    """How good the answer is known to be."""

    OPTIMAL = "Optimal"
    FEASIBLE = "Feasible"


@dataclass(frozen=True)
class Move:
    """A replica that has to come into being on `target`, copied from the first source that has it (none: the file)."""

    expert: ExpertId
    target: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The ordered moves that lead from one placement to `target`, and the replicas that can be freed then."""

    moves: tuple[Move, ...]
    target: Placement
    drops: tuple[tuple[ExpertId, str], ...]


@dataclass(frozen=True)
class PlacementResult:
    """An answer with its proof.

    Attributes:
        objective: Sum over layers of the makespan and the price of the moves, in units of load / speed.
        bound: Proven lower bound of `objective`.
        makespan: Sum over layers of the makespan alone.
        imbalance: Mean over layers of busiest / average worker time (1.0 is balanced).
    """

    status: SolveStatus
    placement: Placement
    objective: float
    bound: float
    makespan: float
    imbalance: float
    solve_seconds: float

    @property
    def gap(self) -> float:
        """(objective - bound) / objective, 0 when nothing is loaded."""
        return (self.objective - self.bound) / self.objective if self.objective > 0 else 0.0


class InfeasiblePlacement(Exception):
    """The problem has no answer; the message says what to change (more workers, or more memory per worker)."""
