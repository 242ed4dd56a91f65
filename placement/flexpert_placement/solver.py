"""Places a model's experts on workers; the operator calls `solve` and turns the answer into a plan.

A quick answer (greedy) stands first; where it is not proven good, an integer program per layer tries to improve it, and
nothing worse than the quick answer is ever returned. Memory couples the layers: each layer gets its fair part of every
worker's slots, and never so many that a later layer could not be placed.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence

from flexpert_placement.integer_program import solve_layer
from flexpert_placement.layer import LayerPlacement, LayerProblem, Pair, greedy
from flexpert_placement.types import (
    ExpertId,
    InfeasiblePlacement,
    Placement,
    PlacementProblem,
    PlacementResult,
    SolveStatus,
    WorkerCapacity,
)

GOOD_ENOUGH = 1.01
"""An answer within this factor of its bound is not worth an integer program."""

MOST_BINARIES = 4096
"""Integer programs larger than this do not beat the quick answer in any time one would wait (measured)."""


def solve(problem: PlacementProblem, clock: Callable[[], float] = time.monotonic) -> PlacementResult:
    """Decide which worker holds which expert, and with which share of its traffic.

    Raises:
        InfeasiblePlacement: The experts do not fit; the message says by how much and what to change.
    """
    started = clock()
    check_capacity(problem)
    free = [slots_of(worker, problem.expert_bytes) for worker in problem.workers]
    placement: dict[ExpertId, dict[str, float]] = {}
    objective = bound = makespan = imbalance = 0.0
    proven = True
    num_layers = len(problem.loads)
    for layer in range(num_layers):
        layer_problem = layer_of(problem, layer, free)
        time_left = problem.time_limit_s - (clock() - started)
        answer = place_layer(layer_problem, time_left / (num_layers - layer))
        for (expert, worker), served in sorted(answer.served.items()):
            share = served / layer_problem.loads[expert] if layer_problem.loads[expert] > 0 else None
            row = placement.setdefault(ExpertId(layer, expert), {})
            row[problem.workers[worker].id] = share if share is not None else 1.0
            free[worker] -= 1
        makespan += answer.makespan(layer_problem)
        objective += answer.objective(layer_problem)
        bound += answer.objective(layer_problem) if answer.proven else layer_problem.bound()
        imbalance += answer.makespan(layer_problem) * sum(layer_problem.speeds) / sum(layer_problem.loads)
        proven = proven and answer.proven
    return PlacementResult(
        status=SolveStatus.OPTIMAL if proven else SolveStatus.FEASIBLE,
        placement={expert: normalised(row) for expert, row in placement.items()},
        objective=objective,
        bound=min(bound, objective),
        makespan=makespan,
        imbalance=imbalance / num_layers if num_layers else 1.0,
        solve_seconds=clock() - started,
    )


def place_layer(problem: LayerProblem, time_limit_s: float) -> LayerPlacement:
    """The better of the quick answer and the integer program's."""
    quick = greedy(problem)
    good = quick is not None and quick.objective(problem) <= GOOD_ENOUGH * problem.bound()
    small = len(problem.loads) * len(problem.speeds) <= MOST_BINARIES
    if quick is not None and (good or not small or time_limit_s <= 0):
        return LayerPlacement(quick.served, proven=good)
    solution = solve_layer(problem, max(time_limit_s, 1.0))
    options = [option for option in (quick, solution.placement) if option is not None]
    if not options:
        raise InfeasiblePlacement("no placement was found in time: give workers more memory, or the solver more time")
    best = min(options, key=lambda option: option.objective(problem))
    return LayerPlacement(best.served, proven=solution.optimal)


def layer_of(problem: PlacementProblem, layer: int, free: Sequence[int]) -> LayerProblem:
    """The problem of one layer, given the slots that the layers before it left."""
    loads = problem.loads[layer]
    if sum(loads) <= 0:
        loads = tuple(1.0 for _ in loads)
    layers_left = len(problem.loads) - layer
    needed_later = (layers_left - 1) * len(loads) * problem.min_replicas
    current = resident_pairs(problem, layer)
    holding = [sum(worker == position for _, worker in current) for position in range(len(free))]
    fair = [math.ceil(slots / layers_left) for slots in free]
    speeds = tuple(worker.speed for worker in problem.workers)
    return LayerProblem(
        loads=loads,
        speeds=speeds,
        slots=tuple(min(slots, max(part, held)) for slots, part, held in zip(free, fair, holding, strict=True)),
        total_slots=sum(free) - needed_later,
        current=current,
        min_replicas=problem.min_replicas,
        max_replicas=min(problem.max_replicas or len(speeds), len(speeds)),
        move_price=problem.weights.move * sum(loads) / sum(speeds),
    )


def resident_pairs(problem: PlacementProblem, layer: int) -> frozenset[Pair]:
    """(expert, worker position) of the replicas that exist on the workers of the problem."""
    position = {worker.id: index for index, worker in enumerate(problem.workers)}
    return frozenset(
        (expert.index, position[worker])
        for expert, row in problem.current.items()
        if expert.layer == layer
        for worker in row
        if worker in position
    )


def check_capacity(problem: PlacementProblem) -> None:
    """Refuse what cannot fit, in the user's terms."""
    if not problem.workers:
        raise InfeasiblePlacement("there is no worker to hold the experts: set spec.experts.workers to at least 1")
    if len(problem.workers) < problem.min_replicas:
        raise InfeasiblePlacement(
            f"{problem.min_replicas} replicas of an expert need as many workers and there are {len(problem.workers)}: "
            f"raise spec.experts.workers or lower spec.placement.minReplicasPerExpert"
        )
    experts = sum(len(row) for row in problem.loads)
    needed = experts * problem.min_replicas
    slots = [min(slots_of(worker, problem.expert_bytes), experts) for worker in problem.workers]
    if sum(slots) < needed:
        gib = needed * problem.expert_bytes / len(problem.workers) / 2**30
        raise InfeasiblePlacement(
            f"{needed} replicas of {problem.expert_bytes} bytes do not fit into {len(problem.workers)} workers, which "
            f"have room for {sum(slots)}: raise spec.experts.memoryPerWorker to at least {gib:.3g}Gi, "
            f"or spec.experts.workers"
        )


def slots_of(worker: WorkerCapacity, expert_bytes: int) -> int:
    """Replicas that fit into a worker."""
    return worker.memory_bytes // expert_bytes


def normalised(row: Mapping[str, float]) -> dict[str, float]:
    """Shares that add up to 1; equal ones where nothing is loaded."""
    total = sum(row.values())
    return {worker: share / total if total > 0 else 1.0 / len(row) for worker, share in row.items()}


def imbalance(loads: Sequence[Sequence[float]], placement: Placement, workers: Sequence[WorkerCapacity]) -> float:
    """Mean over layers of the busiest worker's time over the average one, under `loads` [layers, experts].

    Returns:
        1.0 when balanced, or when nothing is loaded.
    """
    speed = {worker.id: worker.speed for worker in workers}
    ratios = []
    for layer, row in enumerate(loads):
        times = dict.fromkeys(speed, 0.0)
        for index, load in enumerate(row):
            for worker, share in placement.get(ExpertId(layer, index), {}).items():
                if worker in times:
                    times[worker] += load * share / speed[worker]
        average = sum(times[worker] * speed[worker] for worker in times) / sum(speed.values()) if speed else 0.0
        if average > 0:
            ratios.append(max(times.values()) / average)
    return sum(ratios) / len(ratios) if ratios else 1.0
