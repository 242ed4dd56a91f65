"""The placement problem as an integer program, whole or over a neighbourhood of a placement.

`neighbourhoods` frees a few replicas of a placement and leaves the rest; `solve_exactly` frees all.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pulp

from flexpert_placement.evaluate import move_prices
from flexpert_placement.instance import Bools, Floats, Instance
from flexpert_placement.models.runner import Found, Outcome, run

Stop = Callable[[], bool]
Variables = dict[tuple[int, int, int], pulp.LpVariable]


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """What may change.

    Attributes:
        held: [L, E, W] the placement that is to be improved.
        free: [L, E, W] replicas that may come or go.
    """

    held: Bools
    free: Bools

    @property
    def layers(self) -> list[int]:
        """Layers in which something may change."""
        return [int(layer) for layer in np.flatnonzero(self.free.any(axis=(1, 2)))]


def build(instance: Instance, around: Neighbourhood, least: Floats) -> tuple[pulp.LpProblem, Variables]:
    """The program of the layers in which something may change; the others stay as they are.

    With x[l,e,w] ∈ {0,1} (worker w holds expert e of layer l; a constant where it is not free), y[l,e,w] ≥ 0 (the part
    of load[l,e] that w serves), the makespans t[l], and z[l,e,d] ∈ [0,1] (e has a replica in failure domain d):

        minimise     weight · Σ_l t[l] + Σ price[l,w] · x[l,e,w] over the replicas that are not resident

        serve_l_e:     Σ_w y[l,e,w] = load[l,e]
        held_l_e_w:    y[l,e,w] ≤ load[l,e] · x[l,e,w]
        busy_l_w:      Σ_e y[l,e,w] ≤ speed[w] · t[l]
        memory_w:      Σ_l,e x[l,e,w] ≤ slots[w], all layers together
        slots_l_w:     Σ_e x[l,e,w] ≤ slots_per_layer, where the problem has it
        fewest_l_e:    Σ_w x[l,e,w] ≥ fewest[l,e]
        most_l_e:      Σ_w x[l,e,w] ≤ most[l,e]
        domain_l_e_d:  z[l,e,d] ≤ Σ_{w in d} x[l,e,w]
        apart_l_e:     Σ_d z[l,e,d] ≥ min_failure_domains
        moves:         Σ x over the replicas that are not resident ≤ the budget, of all layers
        moves_l:       the same for the budget of a layer
        alike_l_v_w:   Σ_e load[l,e] · x[l,e,v] ≥ Σ_e load[l,e] · x[l,e,w] for interchangeable workers v < w

    Pins are lower bounds of x; t[l] is at least `least[l]`, which is proven, in the unit of the loads. Loads are scaled
    by the layer's even time. `alike` leaves one of the placements that differ only in the names of workers; it is left
    out where there is something resident or several layers share memory unevenly, so that names mean something.
    The formulation follows MoETuner (arXiv 2502.06643), with replicas, shares and moves added.

    Args:
        instance: The problem.
        around: What may change.
        least: [L] proven lower bounds of the makespans.
    """
    program = pulp.LpProblem("placement", pulp.LpMinimize)
    parts = _Parts(instance, around, least)
    program += parts.objective()
    for name, row in parts.rows():
        program.addConstraint(row, name)
    return program, parts.x


def solve_exactly(
    instance: Instance, around: Neighbourhood, least: Floats, time_limit_s: float, gap: float, stop: Stop
) -> tuple[Bools | None, Outcome]:
    """Solve the program; the replicas [L, E, W] when it found some, and the solver's words.

    To write it down takes part of the time, and may take all of it.
    """
    started = time.monotonic()
    program, x = build(instance, around, least)
    left = time_limit_s - (time.monotonic() - started)
    if left <= 0 or stop():
        return None, Outcome(Found.NOTHING)
    outcome = run(program, instance.problem.solver, left, gap, stop)
    if not outcome.is_answer or outcome.values is None:
        return None, outcome
    held = around.held & ~around.free
    for place, variable in x.items():
        held[place] = outcome.values.get(variable.name, 0.0) > 0.5
    return held, outcome


def is_proof(outcome: Outcome) -> bool:
    """Whether the program's best answer is known."""
    return outcome.found is Found.OPTIMAL


class _Parts:
    """Variables of the program, and its rows by name."""

    def __init__(self, instance: Instance, around: Neighbourhood, least: Floats) -> None:
        self._instance, self._around = instance, around
        self._layers = around.layers
        self._scale = instance.even
        self._loads = instance.loads / instance.even[:, None]
        self._prices = move_prices(instance)
        pins = instance.pinned
        self.x: Variables = {
            (int(m), int(e), int(w)): pulp.LpVariable(f"x_{m}_{e}_{w}", int(pins[m, e, w]), 1, pulp.LpInteger)
            for m, e, w in np.argwhere(around.free)
        }
        possible = around.free | around.held
        self._y = {
            (m, int(e), int(w)): pulp.LpVariable(f"y_{m}_{e}_{w}", 0)
            for m in self._layers
            for e, w in np.argwhere(possible[m])
        }
        self._t = {m: pulp.LpVariable(f"t_{m}", float(least[m] / self._scale[m])) for m in self._layers}

    def objective(self) -> pulp.LpAffineExpression:
        weight = self._instance.problem.weights.makespan
        times = [(self._t[m], weight * float(self._scale[m])) for m in self._layers]
        new = [
            (variable, float(self._prices[m, w]))
            for (m, e, w), variable in self.x.items()
            if not self._instance.current[m, e, w]
        ]
        return pulp.LpAffineExpression(times + new)

    def rows(self) -> list[tuple[str, pulp.LpConstraint]]:
        return [
            row for m in self._layers for row in (*self._sharing(m), *self._copies(m), *self._apart(m), *self._alike(m))
        ] + [*self._memory(), *self._moves()]

    def _held(self, layer: int, expert: int, worker: int) -> pulp.LpVariable | int:
        variable = self.x.get((layer, expert, worker))
        return variable if variable is not None else int(self._around.held[layer, expert, worker])

    def _sharing(self, layer: int) -> list[tuple[str, pulp.LpConstraint]]:
        _, experts, workers = self._instance.shape
        rows = []
        served: dict[int, list[pulp.LpVariable]] = {e: [] for e in range(experts)}
        busy: dict[int, list[pulp.LpVariable]] = {w: [] for w in range(workers)}
        for (m, e, w), part in self._y.items():
            if m == layer:
                served[e].append(part)
                busy[w].append(part)
                if (m, e, w) in self.x:
                    rows.append((f"held_{m}_{e}_{w}", part <= float(self._loads[m, e]) * self.x[m, e, w]))
        rows += [(f"serve_{layer}_{e}", pulp.lpSum(row) == float(self._loads[layer, e])) for e, row in served.items()]
        speeds = self._instance.speeds
        rows += [(f"busy_{layer}_{w}", pulp.lpSum(row) <= float(speeds[w]) * self._t[layer]) for w, row in busy.items()]
        return rows

    def _copies(self, layer: int) -> list[tuple[str, pulp.LpConstraint]]:
        rows = []
        for e in map(int, np.flatnonzero(self._around.free[layer].any(axis=1))):
            copies = pulp.lpSum(self._held(layer, e, w) for w in range(self._instance.shape[2]))
            rows.append((f"fewest_{layer}_{e}", copies >= max(1, int(self._instance.fewest[layer, e]))))
            rows.append((f"most_{layer}_{e}", copies <= int(self._instance.most[layer, e])))
        return rows

    def _apart(self, layer: int) -> list[tuple[str, pulp.LpConstraint]]:
        wanted, domains = self._instance.problem.min_failure_domains, self._instance.domains
        rows = []
        if wanted > 1:
            for e in map(int, np.flatnonzero(self._around.free[layer].any(axis=1))):
                z = {int(d): pulp.LpVariable(f"z_{layer}_{e}_{d}", 0, 1) for d in np.unique(domains)}
                for d, reached in z.items():
                    inside = pulp.lpSum(self._held(layer, e, int(w)) for w in np.flatnonzero(domains == d))
                    rows.append((f"domain_{layer}_{e}_{d}", reached <= inside))
                rows.append((f"apart_{layer}_{e}", pulp.lpSum(z.values()) >= wanted))
        return rows

    def _memory(self) -> list[tuple[str, pulp.LpConstraint]]:
        fixed = (self._around.held & ~self._around.free).sum(axis=(0, 1))
        rows = []
        for w in range(self._instance.shape[2]):
            mine = [variable for (_, _, at), variable in self.x.items() if at == w]
            if mine:
                rows.append((f"memory_{w}", pulp.lpSum(mine) <= int(self._instance.slots[w] - fixed[w])))
        if self._instance.problem.slots_per_layer is not None:
            rows += [row for layer in self._layers for row in self._layer_slots(layer)]
        return rows

    def _layer_slots(self, layer: int) -> list[tuple[str, pulp.LpConstraint]]:
        fixed = (self._around.held & ~self._around.free)[layer].sum(axis=0)
        limits = self._instance.layer_slots - fixed
        rows = []
        for w in range(self._instance.shape[2]):
            mine = [variable for (m, _, at), variable in self.x.items() if (m, at) == (layer, w)]
            if mine:
                rows.append((f"slots_{layer}_{w}", pulp.lpSum(mine) <= int(limits[w])))
        return rows

    def _moves(self) -> list[tuple[str, pulp.LpConstraint]]:
        instance, budget = self._instance, self._instance.problem.budget
        if not instance.current.any():
            return []
        fixed = (self._around.held & ~self._around.free & ~instance.current).sum(axis=(1, 2))
        new = [(m, variable) for (m, e, w), variable in self.x.items() if not instance.current[m, e, w]]
        common = [budget.moves, None if budget.bytes is None else budget.bytes // instance.problem.expert_bytes]
        rows = [
            (f"moves{n or ''}", pulp.lpSum(variable for _, variable in new) <= limit - int(fixed.sum()))
            for n, limit in enumerate(common)
            if limit is not None and new
        ]
        if budget.moves_per_layer is not None:
            for layer in self._layers:
                mine = [variable for m, variable in new if m == layer]
                if mine:
                    rows.append((f"moves_{layer}_", pulp.lpSum(mine) <= budget.moves_per_layer - int(fixed[layer])))
        return rows

    def _alike(self, layer: int) -> list[tuple[str, pulp.LpConstraint]]:
        instance = self._instance
        whole = bool(self._around.free[layer].all()) and len(self._layers) == 1
        named = instance.current.any() or instance.pinned.any() or instance.problem.min_failure_domains > 1
        if not whole or named or instance.shape[0] > 1:
            return []
        rows = []
        for v in range(instance.shape[2] - 1):
            if instance.speeds[v] == instance.speeds[v + 1] and instance.slots[v] == instance.slots[v + 1]:
                loads = [
                    pulp.lpSum(float(self._loads[layer, e]) * self._held(layer, e, w) for e in range(instance.shape[1]))
                    for w in (v, v + 1)
                ]
                rows.append((f"alike_{layer}_{v}_{v + 1}", loads[0] >= loads[1]))
        return rows
