"""The ways to place that `bench_placement` compares, each from a problem to an array of shares, all at equal slots."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from placement_eplb import balanced_packing, eplb, keep_slots
from scipy.optimize import linear_sum_assignment

from flexpert_placement import PlacementProblem, PlacementResult, solve
from flexpert_placement.affinity import improve_affinity
from flexpert_placement.evaluate import makespans
from flexpert_placement.instance import Dense, Instance, dense_of, instance_of
from flexpert_placement.transitions import improve_transitions
from flexpert_placement.types import Budget, Weights

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Method = Callable[[PlacementProblem], Dense]
EPLB = ("eplb", "eplb_hierarchical", "eplb_keep")


def from_homes(homes: Ints, workers: int) -> Dense:
    """A placement with one replica each, from [layers, experts] workers."""
    shares = np.full((*homes.shape, workers), np.nan)
    np.put_along_axis(shares, homes[..., None], 1.0, axis=2)
    return Dense(shares)


def contiguous(problem: PlacementProblem) -> Dense:
    layers, experts, workers = instance_of(problem).shape
    return from_homes(np.tile(np.arange(experts) * workers // experts, (layers, 1)), workers)


def random(problem: PlacementProblem) -> Dense:
    layers, experts, workers = instance_of(problem).shape
    rng = np.random.default_rng(problem.seed)
    even = np.arange(experts) * workers // experts
    return from_homes(np.stack([rng.permutation(even) for _ in range(layers)]), workers)


def greedy(problem: PlacementProblem) -> Dense:
    """The heaviest expert first, to the worker that is then least busy, equally many on each."""
    instance = instance_of(problem)
    _, experts, workers = instance.shape
    padded = np.pad(instance.loads, ((0, 0), (0, -experts % workers)))
    return from_homes(np.stack([balanced_packing(row, workers)[:experts] for row in padded]), workers)


def eplb_global(problem: PlacementProblem) -> Dense:
    instance = instance_of(problem)
    return Dense(eplb(instance.loads, layer_slots(instance), instance.shape[2]))


def eplb_hierarchical(problem: PlacementProblem) -> Dense:
    """With as many groups as there are nodes, or 8."""
    instance = instance_of(problem)
    nodes = len(set(instance.nodes.tolist()))
    groups = 8 if 8 % nodes == 0 and instance.shape[1] % 8 == 0 else nodes
    return Dense(eplb(instance.loads, layer_slots(instance), instance.shape[2], nodes, groups))


def eplb_keep(problem: PlacementProblem) -> Dense:
    instance = instance_of(problem)
    return Dense(keep_slots(eplb_global(problem).shares, instance.current))


def layer_slots(instance: Instance) -> int:
    """Slots of one layer on all workers, equally many on each, that fit into the smallest worker's memory."""
    return int(instance.slots.min() // instance.shape[0]) * instance.shape[2]


def two_stage(problem: PlacementProblem) -> Dense:
    """In the manner of MoETuner (arXiv 2502.06643): balanced clusters in each layer, then clusters to workers.

    Its first program is played by largest-first packing; the second, the least transitions between the clusters of
    neighbouring layers, is exact: between layers the workers' names are free, so that each step is an assignment.
    """
    steps = problem.traffic.transitions
    assert steps is not None
    clusters = np.nan_to_num(greedy(problem).shares)
    for layer, flow in enumerate(steps):
        stays = clusters[layer].T @ flow @ clusters[layer + 1]
        workers, old = linear_sum_assignment(stays, maximize=True)
        clusters[layer + 1][:, workers] = clusters[layer + 1][:, old]
    return Dense(np.where(clusters > 0, clusters, np.nan))


def ours(problem: PlacementProblem, time_limit_s: float, **changes: object) -> tuple[PlacementResult, Dense]:
    """Our solver's answer, with its proof."""
    asked = replace(problem, time_limit_s=time_limit_s, **changes)  # type: ignore[arg-type]
    result = solve(asked)
    return result, dense_of(result.placement, asked)


def balanced(problem: PlacementProblem, time_limit_s: float) -> tuple[PlacementResult, Dense]:
    return ours(problem, time_limit_s)


def affine(problem: PlacementProblem, time_limit_s: float, slack: float) -> Dense:
    """Few workers per token, for so much of the makespan: what the solver does where the problem weighs fan-out."""
    instance, dense = instance_of(problem), balanced(problem, 2.0)[1]
    limits = np.maximum(makespans(instance, dense), instance.even) * (1 + slack)
    return improve_affinity(instance, dense, limits, time_limit_s=time_limit_s)


def within(problem: PlacementProblem, time_limit_s: float, moves: int) -> Dense:
    """No more moves than so many, all layers together, each for next to nothing."""
    return ours(problem, time_limit_s, budget=Budget(moves=moves), weights=Weights(move=1e-3))[1]


def followed(problem: PlacementProblem, time_limit_s: float, slack: float) -> Dense:
    """Few changes of worker from layer to layer, equally many experts of each layer on every worker."""
    instance = instance_of(problem)
    return improve_transitions(instance, greedy(problem), instance.even * (1 + slack), time_limit_s)
