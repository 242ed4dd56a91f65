"""What a placement is worth, as a row of the benchmark's report."""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flexpert_placement import PlacementProblem, Traffic
from flexpert_placement.affinity import cross_node, fan_out
from flexpert_placement.bounds import makespan_bound
from flexpert_placement.evaluate import makespans
from flexpert_placement.instance import Dense, Instance, instance_of
from flexpert_placement.trace import RoutingTrace


@dataclass(frozen=True, eq=False)
class Judge:
    """Judges placements of one problem.

    Attributes:
        case: What the rows call the instance.
        problem: What was placed.
        judged: The same with loads and tokens that were not seen when placing; None where there are none.
    """

    case: dict[str, Any]
    problem: PlacementProblem
    judged: PlacementProblem | None = None

    def run(self, method: str, place: Callable[[PlacementProblem], Dense]) -> dict[str, Any]:
        """Place, time it, and judge."""
        started = time.perf_counter()
        dense = place(self.problem)
        return self.row(method, dense, time.perf_counter() - started)

    def row(self, method: str, dense: Dense, seconds: float, **more: Any) -> dict[str, Any]:
        instance = instance_of(self.problem)
        moves = int((dense.held & ~instance.current).sum())
        bound = makespan_bound(instance)
        row = {
            **self.case,
            "method": method,
            "makespan_vs_bound": float(makespans(instance, dense).sum()) / bound,
            "imbalance": imbalance_of(instance, dense),
            "moves": moves,
            "bytes": moves * self.problem.expert_bytes,
            "seconds": seconds,
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            **more,
        }
        if self.judged is not None:
            unseen = instance_of(self.judged)
            row["heldout_imbalance"] = imbalance_of(unseen, dense)
            if self.judged.traffic.sample is not None:
                row["heldout_fan_out"] = fan_out(unseen, dense)
                row["heldout_cross_node"] = cross_node(unseen, dense)
        return row


def imbalance_of(instance: Instance, dense: Dense) -> float:
    """Mean over layers of the busiest worker's time over the time under perfect balance."""
    return float((makespans(instance, dense) / instance.even).mean())


def seen_by(problem: PlacementProblem, trace: RoutingTrace) -> PlacementProblem:
    """The same workers under the loads and tokens of another trace."""
    loads = np.pad(trace.loads(), ((0, 0), (0, len(problem.loads[0]) - trace.num_experts)))
    rows = tuple(tuple(row) for row in loads.tolist())
    return replace(problem, loads=rows, traffic=Traffic(sample=trace.sample(8192)))
