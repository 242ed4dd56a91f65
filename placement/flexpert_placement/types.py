"""What the solver is told and what it answers. Frozen values.

The operator builds a `PlacementProblem` from what it observed and sends the resulting `Plan` to the pool controller;
`flexpert plan` builds one from a routing trace. Inside the solver the same is `instance.Instance`, as arrays.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


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
        failure_domain: What fails together with it; replicas are kept in `min_failure_domains` different ones.
        node: Workers of one node reach each other without the network; "" is a node of its own.
        zone: Nodes of one zone are close to each other.
    """

    id: str
    memory_bytes: int
    speed: float = 1.0
    failure_domain: str = ""
    node: str = ""
    zone: str = ""


Placement = Mapping[ExpertId, Mapping[str, float]]
"""Expert → worker id → share of the expert's traffic (shares of an expert add up to 1)."""


@dataclass(frozen=True, eq=False)
class Traffic:
    """What is known of the tokens beyond the loads; all of it optional, in the unit of the loads.

    Attributes:
        deviation: [layers, experts] standard deviation of the loads from one interval to the next.
        coactivation: [layers, experts, experts] tokens that chose both experts; symmetric, the diagonal is the loads.
            Fan-out is lowered, and estimated, by it where there is no sample.
        transitions: [layers - 1, experts, experts] tokens that chose the row's expert in a layer, and the column's
            in the next one; a token that chooses k experts in each counts 1/k² for every pair.
        sample: [tokens, layers, k] the experts that a sample of tokens chose, for exact fan-out.
    """

    deviation: NDArray[np.float64] | None = None
    coactivation: NDArray[np.float64] | None = None
    transitions: NDArray[np.float64] | None = None
    sample: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Weights:
    """What the terms of the objective weigh. Each term is 1 for the worst, so that weights compare (see `evaluate`).

    Attributes:
        makespan: Sum over layers of the busiest worker's time, relative to perfect balance.
        fan_out: Distinct workers per token and layer, as a part of the experts a token chooses.
        cross_node: Part of the fan-out that leaves the node of the token's engine or first expert.
        cross_zone: The same for zones.
        transitions: Part of the steps from layer to layer in which a token changes worker (MoETuner's case).
        move: Price of copying one replica, as a fraction of a layer's makespan under perfect balance.
    """

    makespan: float = 1.0
    fan_out: float = 0.0
    cross_node: float = 0.0
    cross_zone: float = 0.0
    transitions: float = 0.0
    move: float = 0.01


@dataclass(frozen=True)
class Budget:
    """What a change may cost at most; None is no limit. Replicas that must be made anyway (lost ones) come first.

    Attributes:
        moves: Replicas copied, all layers together.
        moves_per_layer: Replicas copied in any one layer.
        bytes: Bytes copied, all layers together.
    """

    moves: int | None = None
    moves_per_layer: int | None = None
    bytes: int | None = None


class SolverName(StrEnum):
    """The integer programming solver."""

    CBC = "CBC"
    HIGHS = "HiGHS"


@dataclass(frozen=True)
class PlacementProblem:
    """What is to be placed, on what, and what is there already.

    Attributes:
        loads: [layers, experts] tokens per unit of time (any unit; only ratios count). All zero means unknown: even.
        expert_bytes: Bytes of one replica.
        current: The present placement; replicas on workers that are not in `workers` are gone.
        min_replicas: Live copies that every expert must have, each on another worker.
        max_replicas: Most copies an expert may have; None is one a worker.
        replica_bounds: (fewest, most) copies of single experts, in place of the two above.
        min_failure_domains: Different failure domains that an expert's replicas must lie in.
        pinned: Workers that must hold an expert.
        slots_per_layer: Slots that every worker has for every layer, as SGLang and vLLM lay out memory; None is
            memory that all layers share.
        traffic: What else is known of the tokens.
        caution: Standard deviations (`traffic.deviation`) that every load counts above its mean: workers are balanced
            by what they have to serve in a bad interval.
        makespan_slack: How much of the makespan, as a fraction, may be given up for the other terms.
        time_limit_s: Wall time the solver may take altogether.
        seed: Of all that is drawn; the same problem and seed give the same answer where time does not run out.
    """

    loads: tuple[tuple[float, ...], ...]
    expert_bytes: int
    workers: tuple[WorkerCapacity, ...]
    current: Placement = field(default_factory=dict)
    min_replicas: int = 1
    max_replicas: int | None = None
    replica_bounds: Mapping[ExpertId, tuple[int, int]] = field(default_factory=dict)
    min_failure_domains: int = 1
    pinned: Mapping[ExpertId, frozenset[str]] = field(default_factory=dict)
    slots_per_layer: int | None = None
    traffic: Traffic = field(default_factory=Traffic)
    caution: float = 0.0
    weights: Weights = Weights()
    makespan_slack: float = 0.0
    budget: Budget = Budget()
    solver: SolverName = SolverName.CBC
    time_limit_s: float = 10.0
    seed: int = 0


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
class Terms:
    """The objective's terms, unweighted; those that nothing is known about are 0.

    Attributes:
        makespan: Mean over layers of the busiest worker's time, 1.0 being perfect balance (the imbalance).
        fan_out: Mean over layers of distinct workers per token.
        cross_node: Mean over layers of distinct nodes per token beyond the first.
        cross_zone: Mean over layers of distinct zones per token beyond the first.
        transitions: Mean over steps between layers of the fraction of tokens that change worker.
        moves: Replicas to be copied.
    """

    makespan: float
    fan_out: float = 0.0
    cross_node: float = 0.0
    cross_zone: float = 0.0
    transitions: float = 0.0
    moves: int = 0


@dataclass(frozen=True)
class PlacementResult:
    """An answer with its proof.

    Attributes:
        objective: Sum over layers of the makespan and the prices of the other terms, in units of load / speed.
        bound: Proven lower bound of `objective`; with transitions, among the placements within `makespan_slack`.
        makespan: Sum over layers of the makespan alone.
        makespan_bound: Proven lower bound of `makespan`.
        imbalance: Mean over layers of busiest / average worker time (1.0 is balanced).
        terms: The objective by term.
        hottest: The experts that limit most, hottest first.
        limiting: The workers that are busiest in most layers, most often first.
        notes: Why the answer is as it is, one sentence each.
        arrivals: Worker → replicas that are copied to it.
    """

    status: SolveStatus
    placement: Placement
    objective: float
    bound: float
    makespan: float
    imbalance: float
    solve_seconds: float
    makespan_bound: float = 0.0
    terms: Terms = Terms(makespan=1.0)
    hottest: tuple[ExpertId, ...] = ()
    limiting: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    arrivals: Mapping[str, int] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """(objective - bound) / objective, 0 when nothing is loaded."""
        return (self.objective - self.bound) / self.objective if self.objective > 0 else 0.0


class InfeasiblePlacement(Exception):
    """The problem has no answer; the message says which constraint makes it so and the smallest change that helps."""
