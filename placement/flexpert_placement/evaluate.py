"""What a placement is worth: the objective's terms. The solver compares by it, and so do benchmarks and the CLI."""

from collections.abc import Sequence

import numpy as np

from flexpert_placement.instance import Dense, Floats, Instance
from flexpert_placement.types import ExpertId, Placement, Terms, Traffic, WorkerCapacity

TO_NEW_WORKERS = 0.1
"""Price of a copy to a worker that holds nothing yet, as a part of that of any other."""


def worker_times(instance: Instance, dense: Dense) -> Floats:
    """[layers, workers] time each worker needs for its part of a layer, in units of load / speed."""
    return np.asarray(dense.load_of_workers(instance.loads) / instance.speeds)


def makespans(instance: Instance, dense: Dense) -> Floats:
    """[layers] the busiest worker's time."""
    return np.asarray(worker_times(instance, dense).max(axis=1))


def terms_of(instance: Instance, dense: Dense) -> Terms:
    """The objective's terms, unweighted; those that nothing is known about are 0."""
    traffic = instance.traffic
    fan_out = cross_node = cross_zone = changes = 0.0
    if _knows_tokens(traffic):
        fan_out, cross_node, cross_zone = affinity_terms(instance, dense)
    if traffic.transitions is not None and len(traffic.transitions):
        changes = transition_term(instance, dense)
    return Terms(
        makespan=float((makespans(instance, dense) / instance.even).mean()) if len(instance.even) else 1.0,
        fan_out=fan_out,
        cross_node=cross_node,
        cross_zone=cross_zone,
        transitions=changes,
        moves=int((dense.held & ~instance.current).sum()),
    )


def affinity_terms(instance: Instance, dense: Dense) -> tuple[float, float, float]:
    """Fan-out, and the nodes and zones beyond a token's first, by the sample of tokens or the co-activation."""
    from flexpert_placement.affinity import cross_node, cross_zone, fan_out

    return fan_out(instance, dense), cross_node(instance, dense), cross_zone(instance, dense)


def _knows_tokens(traffic: Traffic) -> bool:
    if traffic.sample is None and traffic.coactivation is None:
        return False
    from flexpert_placement.affinity import knows_tokens

    return knows_tokens(traffic)


def transition_term(instance: Instance, dense: Dense) -> float:
    """Fraction of the steps between layers that change worker."""
    from flexpert_placement.transitions import transitions

    return transitions(instance, dense)


def move_prices(instance: Instance) -> Floats:
    """[layers, workers] what copying a replica to a worker costs, in units of load / speed.

    Little for workers that hold nothing yet, since to be filled is what they were added for; nothing where no worker
    holds anything.
    """
    settled = np.asarray(instance.current.any(axis=(0, 1)))
    rates = np.where(settled, 1.0, TO_NEW_WORKERS if settled.any() else 0.0)
    return np.asarray(instance.problem.weights.move * instance.even[:, None] * rates[None, :])


def objective_of(instance: Instance, dense: Dense) -> float:
    """The weighted sum of the terms, over all layers, in units of load / speed.

    The makespan counts as it is. Fan-out counts as a part of the experts that a token chooses, nodes and zones beyond
    the first as a part of those that it might reach, both times the even time, so that the worst is as bad as one more
    perfectly balanced layer; transitions likewise.
    """
    weights, traffic = instance.problem.weights, instance.traffic
    moves = (dense.held & ~instance.current).sum(axis=1)
    value = float(weights.makespan * makespans(instance, dense).sum() + (move_prices(instance) * moves).sum())
    even = float(instance.even.sum())
    if weights.fan_out + weights.cross_node + weights.cross_zone and _knows_tokens(traffic):
        from flexpert_placement.affinity import chosen_per_token

        chosen = chosen_per_token(traffic)
        fan_out, nodes, zones = affinity_terms(instance, dense)
        value += even * weights.fan_out * fan_out / chosen
        value += even * (weights.cross_node * nodes + weights.cross_zone * zones) / max(chosen - 1.0, 1.0)
    if traffic.transitions is not None and len(traffic.transitions) and weights.transitions:
        value += even * weights.transitions * transition_term(instance, dense)
    return value


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
