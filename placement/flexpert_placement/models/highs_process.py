"""Solves an MPS file with HiGHS, in a process of its own that `runner` can kill: HiGHS may overrun its time limit.

Run as a script: highs_process.py MODEL.mps ANSWER.json TIME_LIMIT_S RELATIVE_GAP. Imports nothing of ours, and keeps
`highspy` out of processes that may import `ortools`, with which it does not go together.
"""

import json
import math
import sys
from pathlib import Path

import highspy


def main(model: str, answer: str, time_limit_s: float, relative_gap: float) -> None:
    """Solve `model` and write {"status", "objective", "bound", "values"} to `answer`."""
    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("time_limit", time_limit_s)
    solver.setOptionValue("mip_rel_gap", relative_gap)
    solver.readModel(model)
    solver.run()
    info = solver.getInfo()
    found = info.primal_solution_status == 2
    optimal = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
    infeasible = solver.getModelStatus() == highspy.HighsModelStatus.kInfeasible
    names, values = solver.getLp().col_names_, solver.getSolution().col_value
    bound = info.mip_dual_bound
    Path(answer).write_text(
        json.dumps(
            {
                "status": "optimal" if optimal else "infeasible" if infeasible else "feasible" if found else "unknown",
                "objective": info.objective_function_value if found else None,
                "bound": bound if math.isfinite(bound) else None,
                "values": dict(zip(names, values, strict=True)) if found else {},
            }
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
