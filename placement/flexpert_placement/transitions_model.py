"""The transitions of small shapes as an integer program, for proofs: 32 layers of 8 experts on 4 or 8 workers.

`benchmarks/bench_placement.py` and the solver call it where `fits_model` says that it closes. At 26 layers of 64
experts no such program finds anything; `improve_transitions` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pulp

from flexpert_placement.instance import Dense, Floats, Instance, Ints
from flexpert_placement.models.runner import Found, run
from flexpert_placement.transitions import transitions
from flexpert_placement.transitions_chain import fits_chain, longest_chain
from flexpert_placement.types import SolverName

MOST_LINKS = 40_000
"""Variables that link experts of neighbouring layers; programs with more do not close."""

Variables = Mapping[tuple[int, int, int], pulp.LpVariable]


@dataclass(frozen=True, eq=False)
class TransitionsSolution:
    """What the program found.

    Attributes:
        dense: The placement, or None when none was found in time.
        transitions: Its fraction of steps that change worker.
        proven: Whether no placement is better, or, without one, whether there is none.
        bound: Proven lower bound of what is minimised; -inf where nothing is known.
    """

    dense: Dense | None
    transitions: float
    proven: bool
    bound: float = -np.inf


@dataclass(frozen=True, eq=False)
class _Worth:
    """What is minimised: `most` less the `steps` [layers - 1, experts, experts] that stay, and `price` per makespan."""

    steps: Floats
    most: float
    price: float

    def value(self, instance: Instance, homes: Ints) -> float:
        held = np.zeros(instance.shape)
        np.put_along_axis(held, homes[..., None], 1.0, axis=2)
        stay = float(np.einsum("leg,lej,ljg->", held[:-1], self.steps, held[1:], optimize=True))
        times = np.einsum("leg,le->lg", held, instance.loads) / instance.speeds
        return self.most - stay + self.price * float(times.max(axis=1).sum())


def _worth_of(instance: Instance) -> _Worth:
    """As `evaluate.objective_of` has it; transitions alone where the problem does not weigh them."""
    steps, weights = instance.traffic.transitions, instance.problem.weights
    assert steps is not None
    most = float(instance.even.sum()) * weights.transitions if weights.transitions else 1.0
    total = steps.sum(axis=(1, 2), keepdims=True)
    worth = steps / np.where(total > 0, total, 1.0) * (most / len(steps))
    return _Worth(worth, most, weights.makespan if weights.transitions else 0.0)


def is_complete(instance: Instance) -> bool:
    """Whether the model knows every placement there is: each layer has just the slots that its experts take."""
    experts, layer_slots = instance.shape[1], instance.layer_slots
    return bool(layer_slots.sum() == experts and np.ptp(layer_slots) == 0)


def fits_model(instance: Instance) -> bool:
    """Whether the problem is small enough, and the model's condition holds: experts divide evenly among the workers."""
    layers, experts, workers = instance.shape
    return experts % workers == 0 and (layers - 1) * experts * experts * workers <= MOST_LINKS


def solve_transitions(
    instance: Instance, limits: Floats, solver: SolverName = SolverName.CBC, time_limit_s: float = 10.0
) -> TransitionsSolution:
    """Place every expert once, S = experts / workers of each layer on every worker, for the fewest transitions.

    With x[l,e,g] ∈ {0,1} (expert e of layer l is on worker g) and 0 ≤ s[l,e,j,g] ≤ 1 (e of layer l and j of the next
    one are both on g):

        minimise     − Σ N[l,e,j] · s[l,e,j,g]
        once_l_e:    Σ_g x[l,e,g] = 1
        even_l_g:    Σ_e x[l,e,g] = S
        time_l_g:    Σ_e load[l,e] · x[l,e,g] ≤ speed[g] · limit[l]
        from_l_e_g:  Σ_j s[l,e,j,g] = S · x[l,e,g]
        to_l_j_g:    Σ_e s[l,e,j,g] = S · x[l+1,j,g]

    The aggregated rows `from` and `to` hold because every worker has exactly S experts of the next layer, and of
    the one before; they say more than s ≤ x does for each pair, and make the program close. Where workers are alike
    their names mean nothing, so that expert e of layer 0 may be kept to the workers 0 … e (`named`).

    Where the problem weighs transitions, its makespans count as well, so that what is minimised is the objective:
    t[l] takes the place of limit[l], and is at most that. Where workers are alike and the partitions few, dynamic
    programming answers instead (`transitions_chain`).

    Args:
        instance: A problem with transitions that `fits_model`.
        limits: [layers] time that no worker may exceed.
        solver: CBC by PuLP's binary, or HiGHS by `highspy`.
        time_limit_s: Wall time.
    """
    worth = _worth_of(instance)
    if fits_chain(instance):
        homes = longest_chain(instance, worth.steps, limits, worth.price)
        if homes is None:
            return TransitionsSolution(None, 1.0, proven=True, bound=np.inf)
        return _solution(instance, homes, True, worth.value(instance, homes))
    program, x = _program(instance, worth, limits)
    outcome = run(program, solver, time_limit_s)
    bound = -np.inf if outcome.bound is None else worth.most + outcome.bound / _scale(worth)
    if outcome.found is Found.INFEASIBLE:
        return TransitionsSolution(None, 1.0, proven=True, bound=np.inf)
    if not outcome.is_answer or outcome.values is None:
        return TransitionsSolution(None, 1.0, proven=False, bound=bound)
    homes = np.zeros(instance.shape[:2], dtype=np.int64)
    for (layer, expert, worker), variable in x.items():
        if outcome.values.get(variable.name, 0.0) > 0.5:
            homes[layer, expert] = worker
    return _solution(instance, homes, outcome.found is Found.OPTIMAL, bound)


def _solution(instance: Instance, homes: Ints, proven: bool, bound: float) -> TransitionsSolution:
    shares = np.full(instance.shape, np.nan)
    np.put_along_axis(shares, homes[..., None], 1.0, axis=2)
    return TransitionsSolution(Dense(shares), transitions(instance, Dense(shares)), proven, bound)


def _scale(worth: _Worth) -> float:
    """By which the program's objective is multiplied, so that solvers' tolerances do not matter."""
    return 1000.0 / max(worth.most, 1e-300)


def _program(instance: Instance, worth: _Worth, limits: Floats) -> tuple[pulp.LpProblem, Variables]:
    layers, experts, workers = instance.shape
    each = experts // workers
    program = pulp.LpProblem("transitions", pulp.LpMinimize)
    x = {
        (layer, expert, worker): pulp.LpVariable(f"x_{layer}_{expert}_{worker}", cat=pulp.LpBinary)
        for layer, expert, worker in np.ndindex(layers, experts, workers)
    }
    s = {
        place: pulp.LpVariable("s_" + "_".join(map(str, place)), 0, 1)
        for place in np.ndindex(layers - 1, experts, experts, workers)
    }
    t = [pulp.LpVariable(f"t_{layer}", 0, float(limit)) for layer, limit in enumerate(limits)]
    scale = _scale(worth)
    stays = [(s[layer, e, j, g], -scale * float(worth.steps[layer, e, j])) for layer, e, j, g in s]
    program += pulp.LpAffineExpression([*stays, *((time, scale * worth.price) for time in t)])
    for layer in range(layers):
        for e in range(experts):
            program += pulp.lpSum(x[layer, e, g] for g in range(workers)) == 1, f"once_{layer}_{e}"
        for g in range(workers):
            busy = pulp.lpSum(float(instance.loads[layer, e]) * x[layer, e, g] for e in range(experts))
            program += pulp.lpSum(x[layer, e, g] for e in range(experts)) == each, f"even_{layer}_{g}"
            program += busy <= float(instance.speeds[g]) * t[layer], f"time_{layer}_{g}"
    for layer, e, g in np.ndindex(layers - 1, experts, workers):
        ahead = pulp.lpSum(s[layer, e, j, g] for j in range(experts))
        back = pulp.lpSum(s[layer, j, e, g] for j in range(experts))
        program += ahead == each * x[layer, e, g], f"from_{layer}_{e}_{g}"
        program += back == each * x[layer + 1, e, g], f"to_{layer}_{e}_{g}"
    if np.ptp(instance.speeds) == 0:
        for e, g in combinations(range(workers), 2):
            program += x[0, e, g] == 0, f"named_{e}_{g}"
    return program, x
