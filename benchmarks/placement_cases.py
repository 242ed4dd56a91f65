"""The problems that `bench_placement` places: real traces, a large model with their skew, Mixtral's shape."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flexpert_placement import PlacementProblem, Traffic, WorkerCapacity
from flexpert_placement.trace import InvalidTrace, RoutingTrace, load_trace

Floats = NDArray[np.float64]
SAMPLE_TOKENS = 8192


@dataclass(frozen=True, eq=False)
class Trace:
    """A trace in halves: tokens to place with, and tokens to judge by."""

    name: str
    place: RoutingTrace
    judge: RoutingTrace


def traces_in(folder: Path) -> list[Trace]:
    """Every trace of a folder.

    Raises:
        InvalidTrace: There is none, or one is damaged.
    """
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise InvalidTrace(f"there is no .npz trace in {folder}: give a folder that has some, with --traces")
    return [Trace(path.stem, *load_trace(path).halves()) for path in paths]


def workers_of(number: int, slots: int, nodes: int = 2) -> tuple[WorkerCapacity, ...]:
    """Workers alike, with room for so many experts of one byte, spread over nodes."""
    return tuple(WorkerCapacity(f"w{n}", slots, node=f"n{n * nodes // number}") for n in range(number))


def trace_problem(trace: RoutingTrace, workers: int, spare: int) -> PlacementProblem:
    """A trace on `workers` with `spare` slots a layer, rounded up to the same number on every worker."""
    slots = -(-(trace.num_experts + spare) // workers) * trace.num_layers
    return problem_of(trace.loads(), workers_of(workers, slots), Traffic(sample=trace.sample(SAMPLE_TOKENS)))


def uneven_problem(trace: RoutingTrace) -> PlacementProblem:
    """Four workers, and four that are twice as fast and large, with an eighth of the slots to spare."""
    slots = -(-trace.num_experts * 9 // (8 * 12)) * trace.num_layers
    workers = workers_of(8, slots)
    large = tuple(replace(worker, memory_bytes=2 * slots, speed=2.0) for worker in workers[4:])
    return problem_of(trace.loads(), (*workers[:4], *large), Traffic(sample=trace.sample(SAMPLE_TOKENS)))


def transitions_problem(trace: RoutingTrace, workers: int) -> PlacementProblem:
    """A trace of which the transitions are known; no spare slots."""
    slots = -(-trace.num_experts // workers) * trace.num_layers
    return problem_of(trace.loads(), workers_of(workers, slots), Traffic(transitions=trace.transitions()))


def large_problem(traces: list[Trace], workers: int, slots: int, seed: int) -> PlacementProblem:
    """58 layers of 256 experts on workers with so many slots a layer, each layer as skewed as one of a trace."""
    rng = np.random.default_rng(seed)
    loads = np.stack([_stretched(_any_layer(traces, rng), 256, rng) for _ in range(58)])
    return problem_of(loads, workers_of(workers, 58 * slots), Traffic(), seed)


def mixtral_problem(workers: int, seed: int) -> PlacementProblem:
    """32 layers of 8 experts without spare slots; where a token goes next depends on where it is."""
    rng = np.random.default_rng(seed)
    steps = rng.dirichlet(np.ones(8), size=(31, 8)) * rng.uniform(500, 1500, size=(31, 8, 1))
    loads = np.stack([steps[0].sum(axis=1), *(step.sum(axis=0) for step in steps)])
    return problem_of(loads, workers_of(workers, 32 * 8 // workers), Traffic(transitions=steps), seed)


def problem_of(loads: Floats, workers: tuple[WorkerCapacity, ...], traffic: Traffic, seed: int = 0) -> PlacementProblem:
    rows = tuple(tuple(row) for row in loads.tolist())
    return PlacementProblem(rows, expert_bytes=1, workers=workers, traffic=traffic, seed=seed)


def _any_layer(traces: list[Trace], rng: np.random.Generator) -> Floats:
    loads = traces[int(rng.integers(len(traces)))].place.loads()
    row: Floats = loads[int(rng.integers(len(loads)))]
    return row


def _stretched(loads: Floats, experts: int, rng: np.random.Generator) -> Floats:
    """Loads of more experts with the same distribution, in any order."""
    ranks = np.linspace(0, len(loads) - 1, experts)
    return rng.permutation(np.interp(ranks, np.arange(len(loads)), np.sort(loads + 1.0)))
