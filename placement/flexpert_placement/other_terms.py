"""Improves what a placement makes tokens travel, once it is balanced; `solver` calls it where the problem weighs that.

The makespans may grow by the problem's slack. What comes back is taken only if it keeps all rules and is worth more.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from flexpert_placement.evaluate import makespans, objective_of
from flexpert_placement.instance import Dense, Instance

Accept = Callable[[Dense], bool]


SMALL_BOUND = 20_000
"""Pairs of experts of neighbouring layers, all layers together, that transitions are bounded for; about a second."""


@dataclass(frozen=True, eq=False)
class Followed:
    """A placement whose other terms were improved.

    Attributes:
        dense: It.
        transitions_bound: Proven lower bound of `Terms.transitions` within the makespans that the slack allows.
        bound: Proven lower bound of the objective within the same; -inf where only its parts are bounded.
    """

    dense: Dense
    transitions_bound: float = 0.0
    bound: float = -np.inf


def improve_other_terms(
    instance: Instance, dense: Dense, seconds_left: Callable[[], float], accept: Accept
) -> Followed:
    """A placement whose weighted terms are worth at least as much, and what is proven of them.

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
    if traffic.transitions is None or not len(traffic.transitions) or not weights.transitions:
        return Followed(best)
    found = _fewer_transitions(instance, best, limits, seconds_left)
    return replace(found, dense=_better(instance, best, found.dense, accept))


def _closer_together(
    instance: Instance, dense: Dense, limits: np.typing.NDArray[np.float64], seconds_left: Callable[[], float]
) -> Dense:
    if instance.traffic.sample is None and instance.traffic.coactivation is None:
        return dense
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
) -> Followed:
    from flexpert_placement.transitions import improve_transitions, transitions_bound
    from flexpert_placement.transitions_model import fits_model, is_complete, solve_transitions

    layers, experts, _ = instance.shape
    swept = improve_transitions(instance, dense, limits, max(seconds_left() / 2, 0.0))
    fewest, bound = 0.0, -np.inf
    if layers * experts**2 <= SMALL_BOUND and seconds_left() > 0:
        fewest = transitions_bound(instance, limits, instance.layer_slots)
    if not fits_model(instance) or seconds_left() <= 0:
        return Followed(swept, fewest)
    exact = solve_transitions(instance, limits, instance.problem.solver, seconds_left() / 2)
    if is_complete(instance):
        bound = exact.bound
    best = min((one for one in (swept, exact.dense) if one is not None), key=lambda one: objective_of(instance, one))
    return Followed(best, fewest, bound)


def _better(instance: Instance, best: Dense, found: Dense, accept: Accept) -> Dense:
    worth = objective_of(instance, found) < objective_of(instance, best) * (1 - 1e-12)
    return found if worth and accept(found) else best
