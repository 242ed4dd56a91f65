"""Improves what a placement makes tokens travel, once it is balanced; `solver` calls it where the problem weighs that.

The makespans may grow by the problem's slack. What comes back is taken only if it keeps all rules and is worth more.
"""

from collections.abc import Callable

import numpy as np

from flexpert_placement.evaluate import makespans, objective_of
from flexpert_placement.instance import Dense, Instance

Accept = Callable[[Dense], bool]


def improve_other_terms(instance: Instance, dense: Dense, seconds_left: Callable[[], float], accept: Accept) -> Dense:
    """A placement whose weighted terms are worth at least as much.

    Args:
        instance: The problem.
        dense: A balanced placement.
        seconds_left: Wall time that may still be used.
        accept: Whether a placement keeps all rules.
    """
    weights, traffic = instance.problem.weights, instance.traffic
    limits = makespans(instance, dense) * (1 + instance.problem.makespan_slack)
    best = dense
    if traffic.sample is not None and len(traffic.sample) and weights.fan_out + weights.cross_node + weights.cross_zone:
        from flexpert_placement.affinity import improve_affinity

        price = 0.0
        if instance.current.any():
            price = (
                weights.move * traffic.sample.shape[2] / max(weights.fan_out, weights.cross_node, weights.cross_zone)
            )
        found = improve_affinity(instance, best, limits, price, max(seconds_left(), 0.0))
        best = _better(instance, best, found, accept)
    if traffic.transitions is not None and len(traffic.transitions) and weights.transitions:
        best = _better(instance, best, _fewer_transitions(instance, best, limits, seconds_left), accept)
    return best


def _fewer_transitions(
    instance: Instance, dense: Dense, limits: np.typing.NDArray[np.float64], seconds_left: Callable[[], float]
) -> Dense:
    from flexpert_placement.transitions import improve_transitions
    from flexpert_placement.transitions_model import fits_model, solve_transitions

    swept = improve_transitions(instance, dense, limits, max(seconds_left() / 2, 0.0))
    if not fits_model(instance) or seconds_left() <= 0:
        return swept
    exact = solve_transitions(instance, limits, instance.problem.solver, seconds_left() / 2).dense
    return min((one for one in (swept, exact) if one is not None), key=lambda one: objective_of(instance, one))


def _better(instance: Instance, best: Dense, found: Dense, accept: Accept) -> Dense:
    worth = objective_of(instance, found) < objective_of(instance, best) * (1 - 1e-12)
    return found if worth and accept(found) else best
