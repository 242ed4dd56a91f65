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
    """

    dense: Dense | None
    transitions: float
    proven: bool


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

        maximise     Σ N[l,e,j] · s[l,e,j,g]
        once_l_e:    Σ_g x[l,e,g] = 1
        even_l_g:    Σ_e x[l,e,g] = S
        time_l_g:    Σ_e load[l,e] · x[l,e,g] ≤ speed[g] · limit[l]
        from_l_e_g:  Σ_j s[l,e,j,g] = S · x[l,e,g]
        to_l_j_g:    Σ_e s[l,e,j,g] = S · x[l+1,j,g]

    The aggregated rows `from` and `to` hold because every worker has exactly S experts of the next layer, and of
    the one before; they say more than s ≤ x does for each pair, and make the program close. Where workers are alike
    their names mean nothing, so that expert e of layer 0 may be kept to the workers 0 … e (`named`).

    Where workers are alike and the partitions few, dynamic programming answers instead (`transitions_chain`).

    Args:
        instance: A problem with transitions that `fits_model`.
        limits: [layers] time that no worker may exceed.
        solver: CBC by PuLP's binary, or HiGHS by `highspy`.
        time_limit_s: Wall time; the solvers may take twice as long.
    """
    steps = instance.traffic.transitions
    assert steps is not None
    if fits_chain(instance):
        homes = longest_chain(instance, steps, limits)
        return TransitionsSolution(None, 1.0, proven=True) if homes is None else _solution(instance, homes, steps)
    program, x = _program(instance, steps, limits)
    program.solve(_command(solver, time_limit_s))
    # PuLP calls a timed-out run "Optimal" in `status`; only `sol_status` tells the two apart.
    if program.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return TransitionsSolution(None, 1.0, proven=False)
    homes = np.zeros(instance.shape[:2], dtype=np.int64)
    for (layer, expert, worker), variable in x.items():
        if (variable.value() or 0.0) > 0.5:
            homes[layer, expert] = worker
    return _solution(instance, homes, steps, program.sol_status == pulp.LpSolutionOptimal)


def _solution(instance: Instance, homes: Ints, steps: Floats, proven: bool = True) -> TransitionsSolution:
    shares = np.full(instance.shape, np.nan)
    np.put_along_axis(shares, homes[..., None], 1.0, axis=2)
    return TransitionsSolution(Dense(shares), _changed(Dense(shares), steps), proven)


def _program(instance: Instance, steps: Floats, limits: Floats) -> tuple[pulp.LpProblem, Variables]:
    layers, experts, workers = instance.shape
    each = experts // workers
    program = pulp.LpProblem("transitions", pulp.LpMaximize)
    x = {
        (layer, expert, worker): pulp.LpVariable(f"x_{layer}_{expert}_{worker}", cat=pulp.LpBinary)
        for layer, expert, worker in np.ndindex(layers, experts, workers)
    }
    s = {
        place: pulp.LpVariable("s_" + "_".join(map(str, place)), 0, 1)
        for place in np.ndindex(layers - 1, experts, experts, workers)
    }
    program += pulp.lpSum(float(steps[layer, e, j]) * s[layer, e, j, g] for layer, e, j, g in s)
    for layer in range(layers):
        for e in range(experts):
            program += pulp.lpSum(x[layer, e, g] for g in range(workers)) == 1, f"once_{layer}_{e}"
        for g in range(workers):
            busy = pulp.lpSum(float(instance.loads[layer, e]) * x[layer, e, g] for e in range(experts))
            program += pulp.lpSum(x[layer, e, g] for e in range(experts)) == each, f"even_{layer}_{g}"
            program += busy <= float(instance.speeds[g] * limits[layer]), f"time_{layer}_{g}"
    for layer, e, g in np.ndindex(layers - 1, experts, workers):
        ahead = pulp.lpSum(s[layer, e, j, g] for j in range(experts))
        back = pulp.lpSum(s[layer, j, e, g] for j in range(experts))
        program += ahead == each * x[layer, e, g], f"from_{layer}_{e}_{g}"
        program += back == each * x[layer + 1, e, g], f"to_{layer}_{e}_{g}"
    if np.ptp(instance.speeds) == 0:
        for e, g in combinations(range(workers), 2):
            program += x[0, e, g] == 0, f"named_{e}_{g}"
    return program, x


def _command(solver: SolverName, time_limit_s: float) -> pulp.LpSolver:
    if solver is SolverName.HIGHS:
        return pulp.HiGHS(msg=False, threads=1, timeLimit=time_limit_s)
    return pulp.PULP_CBC_CMD(msg=False, threads=1, timeLimit=time_limit_s)


def _changed(dense: Dense, steps: Floats) -> float:
    held = dense.held.astype(np.float64)
    stay = np.einsum("leg,lej,ljg->l", held[:-1], steps, held[1:], optimize=True)
    return float(np.mean(1.0 - stay / steps.sum(axis=(1, 2))))
