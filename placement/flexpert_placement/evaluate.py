"""What a placement is worth: the objective's terms. The solver compares by it, and so do benchmarks and the CLI."""

from collections.abc import Sequence

import numpy as np

from flexpert_placement.instance import Dense, Floats, Instance
from flexpert_placement.types import ExpertId, Placement, Terms, WorkerCapacity


def worker_times(instance: Instance, dense: Dense) -> Floats:
    """[layers, workers] time each worker needs for its part of a layer, in units of load / speed."""
    return np.asarray(dense.served(instance.loads).sum(axis=1) / instance.speeds)


def makespans(instance: Instance, dense: Dense) -> Floats:
    """[layers] the busiest worker's time."""
    return np.asarray(worker_times(instance, dense).max(axis=1))


def terms_of(instance: Instance, dense: Dense) -> Terms:
    """The objective's terms, unweighted; those that nothing is known about are 0."""
    return Terms(
        makespan=float((makespans(instance, dense) / instance.even).mean()) if len(instance.even) else 1.0,
        moves=int((dense.held & ~instance.current).sum()),
    )


def move_prices(instance: Instance) -> Floats:
    """[layers] what copying a replica costs, in units of load / speed; nothing where all has to be copied anyway."""
    if not instance.current.any():
        return np.zeros(len(instance.even))
    return np.asarray(instance.problem.weights.move * instance.even)


def objective_of(instance: Instance, dense: Dense) -> float:
    """The weighted sum of the terms, over all layers, in units of load / speed."""
    moves = (dense.held & ~instance.current).sum(axis=(1, 2))
    return float(
        instance.problem.weights.makespan * makespans(instance, dense).sum() + (move_prices(instance) * moves).sum()
    )


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
