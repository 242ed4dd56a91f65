"""Which worker takes which cluster of every layer, exactly: the last word where memory ties the layers together.

A layer by itself is an assignment problem (`relabel`); it is the memory that all layers share which makes all of them
one integer program. `construction` calls it where swaps (`memory.fit_together`) found no way, or not the nearest.
"""

from collections.abc import Callable

import numpy as np
import pulp

from flexpert_placement.instance import Bools, Instance
from flexpert_placement.models.runner import Outcome, run

MOST_NAMES = 4096
"""Pairs of a cluster and a worker, all layers together, that a program is tried for."""

Names = dict[tuple[int, int, int], pulp.LpVariable]


def fits_clusters(instance: Instance) -> bool:
    """Whether the program is small enough to close."""
    layers, _, workers = instance.shape
    return layers * workers**2 <= MOST_NAMES


def clusters_to_workers(
    layers: list[Bools], instance: Instance, time_limit_s: float, stop: Callable[[], bool]
) -> tuple[list[Bools] | None, Outcome]:
    """Give every worker one cluster of each layer, so that as many replicas as can be stay where they are.

    With z[l,c,w] ∈ {0,1} (worker w takes cluster c of layer l), for workers of the speed that c was made for,

        maximise    Σ kept[l,c,w] · z[l,c,w]
        taken_l_c:  Σ_w z[l,c,w] = 1
        one_l_w:    Σ_c z[l,c,w] = 1
        memory_w:   Σ_l,c replicas[l,c] · z[l,c,w] ≤ slots[w]

    Args:
        layers: For each layer the clusters [experts, workers], the columns being named anew.
        instance: Says what workers hold at most, how fast they are and what is there.
        time_limit_s: Wall time.
        stop: Whether all is to end.

    Returns:
        The layers with their columns permuted, None where none was found, and the solver's words: its objective is the
        number of replicas that stay, negated.
    """
    held = np.stack(layers)
    kept = np.matmul(instance.current.transpose(0, 2, 1).astype(np.int64), held.astype(np.int64))
    program, z = _program(held, kept, instance)
    outcome = run(program, instance.problem.solver, time_limit_s, stop=stop)
    if not outcome.is_answer or outcome.values is None:
        return None, outcome
    named = np.zeros_like(held)
    for (layer, cluster, worker), variable in z.items():
        if outcome.values.get(variable.name, 0.0) > 0.5:
            named[layer][:, worker] = held[layer][:, cluster]
    return list(named), outcome


def _program(held: Bools, kept: np.typing.NDArray[np.int64], instance: Instance) -> tuple[pulp.LpProblem, Names]:
    num_layers, _, num_workers = held.shape
    workers, speeds = range(num_workers), instance.speeds
    program = pulp.LpProblem("clusters", pulp.LpMinimize)
    z = {
        (layer, c, w): pulp.LpVariable(f"z_{layer}_{c}_{w}", cat=pulp.LpBinary)
        for layer in range(num_layers)
        for c in workers
        for w in workers
        if speeds[c] == speeds[w]
    }
    program += pulp.LpAffineExpression([(one, -int(kept[layer, w, c])) for (layer, c, w), one in z.items()])
    alike = [[v for v in workers if speeds[v] == speeds[w]] for w in workers]
    for layer in range(num_layers):
        for w in workers:
            program += pulp.lpSum(z[layer, w, v] for v in alike[w]) == 1, f"taken_{layer}_{w}"
            program += pulp.lpSum(z[layer, c, w] for c in alike[w]) == 1, f"one_{layer}_{w}"
    replicas = held.sum(axis=1)
    for w in workers:
        filled = pulp.LpAffineExpression(
            [(z[layer, c, w], int(replicas[layer, c])) for layer in range(num_layers) for c in alike[w]]
        )
        program += filled <= int(instance.slots[w]), f"memory_{w}"
    return program, z
