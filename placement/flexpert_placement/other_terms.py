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
    if weights.fan_out + weights.cross_node + weights.cross_zone:
        best = _better(instance, best, _closer_together(instance, best, limits, seconds_left), accept)
    if traffic.transitions is not None and len(traffic.transitions) and weights.transitions:
        best = _better(instance, best, _fewer_transitions(instance, best, limits, seconds_left), accept)
    return best


def _closer_together(
    instance: Instance, dense: Dense, limits: np.typing.NDArray[np.float64], seconds_left: Callable[[], float]
) -> Dense:
    from flexpert_placement.affinity import chosen_per_token, improve_affinity, knows_tokens

    if not knows_tokens(instance.traffic):
        return dense
    weights, price = instance.problem.weights, 0.0
    if instance.current.any():
        most = max(weights.fan_out, weights.cross_node, weights.cross_zone)
        price = weights.move * chosen_per_token(instance.traffic) / most
    return improve_affinity(instance, dense, limits, price, max(seconds_left(), 0.0))


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
