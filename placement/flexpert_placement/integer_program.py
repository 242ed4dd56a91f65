"""The integer program of one layer, by PuLP and CBC; `solver` calls it when the quick answer is not proven good."""

from dataclasses import dataclass

import pulp

from flexpert_placement.layer import LayerPlacement, LayerProblem, balance_shares

RELATIVE_GAP = 0.01


@dataclass(frozen=True)
class LayerSolution:
    """What the solver found: `placement` is None when it found none in time; `optimal` when it proved its gap."""

    placement: LayerPlacement | None
    optimal: bool


def solve_layer(problem: LayerProblem, time_limit_s: float) -> LayerSolution:
    """Place one layer: least makespan plus price of the moves.

    With x[e,w] ∈ {0,1} (worker w holds expert e), y[e,w] ≥ 0 (load of e that w serves) and the makespan t:

        minimise  t + move_price · Σ x[e,w] over the pairs that are not resident
        serve_e:     Σ_w y[e,w] = load[e]
        held_e_w:    y[e,w] ≤ load[e] · x[e,w]
        busy_w:      Σ_e y[e,w] ≤ speed[w] · t
        slots_w:     Σ_e x[e,w] ≤ slots[w]
        memory:      Σ x ≤ total_slots
        fewest_e:    Σ_w x[e,w] ≥ min_replicas
        most_e:      Σ_w x[e,w] ≤ max_replicas

    The formulation follows MoETuner (arXiv 2502.06643) with replicas and shares added.
    """
    experts, workers = range(len(problem.loads)), range(len(problem.speeds))
    pairs = [(e, w) for e in experts for w in workers]
    scale = problem.makespan_bound()
    load = [value / scale for value in problem.loads]
    program = pulp.LpProblem("layer", pulp.LpMinimize)
    x = {(e, w): pulp.LpVariable(f"x_{e}_{w}", cat=pulp.LpBinary) for e, w in pairs}
    y = {(e, w): pulp.LpVariable(f"y_{e}_{w}", lowBound=0) for e, w in pairs}
    t = pulp.LpVariable("t", lowBound=1.0)
    moved = pulp.lpSum(x[pair] for pair in pairs if pair not in problem.current)
    program += t + problem.move_price / scale * moved
    for e in experts:
        program += pulp.lpSum(y[e, w] for w in workers) == load[e], f"serve_{e}"
        program += pulp.lpSum(x[e, w] for w in workers) >= problem.min_replicas, f"fewest_{e}"
        program += pulp.lpSum(x[e, w] for w in workers) <= problem.max_replicas, f"most_{e}"
    for e, w in pairs:
        program += y[e, w] <= load[e] * x[e, w], f"held_{e}_{w}"
    for w in workers:
        program += pulp.lpSum(y[e, w] for e in experts) <= problem.speeds[w] * t, f"busy_{w}"
        program += pulp.lpSum(x[e, w] for e in experts) <= problem.slots[w], f"slots_{w}"
    program += pulp.lpSum(x.values()) <= problem.total_slots, "memory"
    program.solve(pulp.PULP_CBC_CMD(msg=False, threads=1, timeLimit=max(time_limit_s, 0.1), gapRel=RELATIVE_GAP))
    # PuLP calls a timed-out run "Optimal" in `status`; only `sol_status` tells the two apart.
    if program.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return LayerSolution(None, optimal=False)
    return LayerSolution(
        best_shares(problem, {p for p in pairs if x[p].value() > 0.5}, {p: (y[p].value() or 0) * scale for p in pairs}),
        optimal=program.sol_status == pulp.LpSolutionOptimal,
    )


def best_shares(
    problem: LayerProblem, held: set[tuple[int, int]], solved: dict[tuple[int, int], float]
) -> LayerPlacement:
    """The program's shares, cleaned of rounding, or water-filled ones when those are better."""
    served = {pair: max(0.0, solved[pair]) for pair in held}
    for expert, load in enumerate(problem.loads):
        mine = [pair for pair in held if pair[0] == expert]
        total = sum(served[pair] for pair in mine)
        for pair in mine:
            served[pair] = served[pair] * load / total if total > 0 else load / len(mine)
    options = [LayerPlacement(served), LayerPlacement(balance_shares(problem, held))]
    return min(options, key=lambda option: option.makespan(problem))
