"""Compare placements: balance, fan-out, moves and time of our planner beside contiguous, greedy, EPLB and two stages.

`make bench-placement`, or `bench_placement.py --traces FOLDER` for other traces; docs/benchmarks.md says what it shows.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import placement_cases as cases
import placement_methods as methods
from common import OUTPUT, ROOT, Aim, write_report
from placement_judge import Judge, seen_by
from placement_plots import draw_front

from flexpert_placement.evaluate import makespans
from flexpert_placement.instance import instance_of, placement_of
from flexpert_placement.transitions import transitions, transitions_bound
from flexpert_placement.transitions_model import solve_transitions
from flexpert_placement.types import InfeasiblePlacement, SolverName

Row = dict[str, Any]
REPEATS = 5
SLACK = 0.03
"""Of the makespan, given up for fan-out, in the aims."""

TRANSITIONS_SLACK = 0.05
"""The same for transitions."""

NEVER = 1e9
"""Seconds of what was not found."""

SIMPLE: dict[str, methods.Method] = {
    "contiguous": methods.contiguous,
    "random": methods.random,
    "greedy": methods.greedy,
    "eplb": methods.eplb_global,
    "eplb_hierarchical": methods.eplb_hierarchical,
}


def trace_rows(traces: Sequence[cases.Trace]) -> list[Row]:
    """Half of each trace placed, the other half judged."""
    rows: list[Row] = []
    for trace in traces:
        for workers in (4, 8, 16, 32):
            for spare in (0, 8, 16):
                problem = cases.trace_problem(trace.place, workers, spare)
                case = {"section": "traces", "trace": trace.name, "workers": workers, "spare": spare}
                judge = Judge(case, problem, seen_by(problem, trace.judge))
                rows += [judge.run(name, place) for name, place in SIMPLE.items()]
                rows.append(judge.run("ours", lambda problem: methods.balanced(problem, 2.0)[1]))
                slacks = (0.0, 0.01, 0.02, SLACK, 0.05, 0.1) if (workers, spare) == (8, 0) else ()
                for slack in slacks or ((SLACK,) if workers == 8 or spare == 0 else ()):
                    found = _timed(partial(methods.affine, time_limit_s=20.0, slack=slack), problem)
                    rows.append(judge.row("ours_affine", *found, slack=slack))
    return rows


def uneven_rows(traces: Sequence[cases.Trace]) -> list[Row]:
    """Two sizes of workers in one pool."""
    rows: list[Row] = []
    for trace in traces:
        problem = cases.uneven_problem(trace.place)
        judge = Judge({"section": "uneven", "trace": trace.name}, problem, seen_by(problem, trace.judge))
        rows += [judge.run(name, SIMPLE[name]) for name in ("contiguous", "greedy", "eplb")]
        rows.append(judge.run("ours", lambda problem: methods.balanced(problem, 2.0)[1]))
    return rows


def change_rows(traces: Sequence[cases.Trace]) -> list[Row]:
    """The work changes from one trace to the next; the placement follows within a budget of moves."""
    rows: list[Row] = []
    for before, after in zip(traces, [*traces[1:], traces[0]], strict=True):
        if len(traces) < 2 or before.place.loads().shape != after.place.loads().shape:
            continue
        first = cases.trace_problem(before.place, 8, 8)
        there = methods.balanced(first, 4.0)[1]
        problem = replace(seen_by(first, after.place), current=placement_of(there, first))
        case = {"section": "change", "trace": f"{before.name} to {after.name}", "workers": 8, "spare": 8}
        judge = Judge(case, problem, seen_by(first, after.judge))
        rows.append(judge.row("stay", there, 0.0))
        afresh = _timed(lambda p: methods.balanced(replace(p, current={}), 4.0)[1], problem)
        rows.append(judge.row("afresh", *afresh))
        rows += [judge.run(name, place) for name, place in (("eplb", SIMPLE["eplb"]), ("eplb_keep", methods.eplb_keep))]
        layers = len(problem.loads)
        sixth = int(0.16 * rows[-3]["moves"])
        for moves in (4 * layers, 8 * layers, sixth, 12 * layers, 24 * layers):
            try:
                found = _timed(partial(methods.within, time_limit_s=8.0, moves=moves), problem)
            except InfeasiblePlacement as error:
                print(f"{case['trace']}, {moves} moves: {error}")
                continue
            rows.append(judge.row("ours", *found, budget_moves=moves, aimed=moves == sixth))
    return rows


def large_rows(traces: list[cases.Trace]) -> list[Row]:
    """58 layers of 256 experts, each repeat with other loads of the same skew."""
    rows: list[Row] = []
    for repeat in range(REPEATS):
        for workers, slots in ((32, 9), (72, 4), (144, 2), (320, 1)):
            problem = cases.large_problem(traces, workers, slots, repeat)
            judge = Judge({"section": "large", "shape": f"{workers}x{slots}", "repeat": repeat}, problem)
            rows.append(judge.run("eplb", methods.eplb_global))
            rows.append(judge.run("ours", lambda problem: methods.balanced(problem, 9.0)[1]))
    return rows


def mixtral_rows() -> list[Row]:
    """32 layers of 8 experts on 4 and 8 workers: proofs of the least makespan, and of the fewest transitions."""
    rows: list[Row] = []
    for repeat in range(REPEATS):
        for workers in (4, 8):
            problem = cases.mixtral_problem(workers, repeat)
            case = {"section": "mixtral", "workers": workers, "repeat": repeat}
            judge, instance = Judge(case, problem), instance_of(problem)
            rows.append(judge.run("eplb", methods.eplb_global))
            started = time.perf_counter()
            result, dense = methods.balanced(problem, 10.0)
            proven = result.status.value == "Optimal"
            rows.append(judge.row("ours", dense, time.perf_counter() - started, proven=proven))
            started = time.perf_counter()
            limits = makespans(instance, methods.greedy(problem)) * (1 + TRANSITIONS_SLACK)
            chain = solve_transitions(instance, limits, SolverName.CBC)
            seconds = time.perf_counter() - started
            if chain.dense is not None:
                more = {"proven": chain.proven, "transitions": chain.transitions}
                rows.append(judge.row("ours_transitions", chain.dense, seconds, **more))
    return rows


def transitions_rows(traces: Sequence[cases.Trace]) -> list[Row]:
    """How often tokens change worker from layer to layer, on 8 workers."""
    rows: list[Row] = []
    for trace in traces:
        problem = cases.transitions_problem(trace.place, 8)
        instance = instance_of(problem)
        judge = Judge({"section": "transitions", "trace": trace.name, "workers": 8}, problem)
        limits = instance.even * (1 + TRANSITIONS_SLACK)
        caps = np.full(8, instance.shape[1] // 8)
        bound = transitions_bound(instance, limits, caps)
        placings: dict[str, methods.Method] = {
            "contiguous": methods.contiguous,
            "two_stage": methods.two_stage,
            "ours_transitions": partial(methods.followed, time_limit_s=5.0, slack=TRANSITIONS_SLACK),
        }
        for name, place in placings.items():
            dense, seconds = _timed(place, problem)
            rows.append(judge.row(name, dense, seconds, transitions=transitions(instance, dense), bound=bound))
    return rows


def aims_of(rows: Sequence[Row]) -> list[Aim]:
    """The issue's aims, of those sections that ran; the spread is over traces, shapes or repeats."""
    found = [
        _aim("makespan_vs_eplb_worst", _versus_eplb(rows), 1.0, "lower", "ratio", max),
        *(
            _aim(f"makespan_vs_bound_{shape}", _of(rows, "large", "makespan_vs_bound", shape=shape), aim)
            for shape, aim in (("32x9", 1.002), ("72x4", 1.01), ("144x2", 1.03))
        ),
        _aim("slowest_58x256_s", _of(rows, "large", "seconds"), 10.0, "lower", "s", max),
        *_fan_out_aims(rows),
        *_migration_aims(rows),
        _aim("mixtral_proof_s", _proofs(rows), 5.0, "lower", "s", max),
        _aim("transitions_closed_share", _closed(rows), 0.6, "higher", "ratio", min),
    ]
    return [aim for aim in found if aim is not None]


def _aim(
    name: str,
    values: Sequence[float],
    aim: float,
    better: str = "lower",
    unit: str = "ratio",
    choose: Callable[[Iterable[float]], float] = statistics.median,
) -> Aim | None:
    if not values:
        return None
    return Aim(name, float(choose(values)), aim, better, unit, (min(values), max(values)))


def _of(rows: Sequence[Row], section: str, value: str, method: str = "ours", **fields: Any) -> list[float]:
    wanted = {"section": section, "method": method, **fields}
    return [float(row[value]) for row in rows if all(row.get(name) == each for name, each in wanted.items())]


def _versus_eplb(rows: Sequence[Row]) -> list[float]:
    """Of each instance: our makespan over the best of EPLB's."""
    cases_of: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        if row["section"] in ("traces", "uneven", "large", "mixtral"):
            key = tuple(row.get(name) for name in ("section", "trace", "workers", "spare", "shape", "repeat"))
            cases_of.setdefault(key, {})[row["method"]] = row["makespan_vs_bound"]
    return [
        each["ours"] / min(each[name] for name in methods.EPLB if name in each)
        for each in cases_of.values()
        if "ours" in each and "eplb" in each
    ]


def _fan_out_aims(rows: Sequence[Row]) -> list[Aim | None]:
    here = {"workers": 8, "spare": 0}
    plain = _of(rows, "traces", "heldout_fan_out", "contiguous", **here)
    ours = _of(rows, "traces", "heldout_fan_out", "ours_affine", slack=SLACK, **here)
    ratios = [one / other for one, other in zip(ours, plain, strict=True)]
    balance = _of(rows, "traces", "heldout_imbalance", "ours_affine", slack=SLACK, **here)
    return [
        _aim("fanout_vs_contiguous", ratios, 0.78, choose=max),
        _aim("fanout_heldout_imbalance", balance, 1.06, choose=max),
    ]


def _migration_aims(rows: Sequence[Row]) -> list[Aim | None]:
    gains, moves = [], []
    for row in rows:
        if row["section"] == "change" and row.get("aimed"):
            beside = {
                other["method"]: other
                for other in rows
                if other["section"] == "change" and other["trace"] == row["trace"] and other["method"] != "ours"
            }
            stay, afresh = beside["stay"], beside["afresh"]
            gains.append((stay["imbalance"] - row["imbalance"]) / (stay["imbalance"] - afresh["imbalance"]))
            moves.append(row["moves"] / afresh["moves"])
    return [
        _aim("migration_gain_share", gains, 0.8, "higher", choose=min),
        _aim("migration_move_share", moves, 0.16, choose=max),
    ]


def _proofs(rows: Sequence[Row]) -> list[float]:
    """Seconds of each proof on Mixtral's shape; `NEVER` where none was found."""
    mine = [row for row in rows if row["section"] == "mixtral" and "proven" in row]
    return [row["seconds"] if row["proven"] else NEVER for row in mine]


def _closed(rows: Sequence[Row]) -> list[float]:
    mine = [row for row in rows if row["section"] == "transitions"]
    plain = {row["trace"]: row for row in mine if row["method"] == "contiguous"}
    return [
        (plain[row["trace"]]["transitions"] - row["transitions"]) / (plain[row["trace"]]["transitions"] - row["bound"])
        for row in mine
        if row["method"] == "ours_transitions"
    ]


def _timed(place: methods.Method, problem: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    dense = place(problem)
    return dense, time.perf_counter() - started


def draw(rows: Sequence[Row]) -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    front = [row for row in rows if row["section"] == "traces" and (row["workers"], row["spare"]) == (8, 0)]
    if front:
        titles = ("imbalance on the held-out half", "distinct workers per token and layer, held out")
        draw_front(OUTPUT / "placement_fan_out.png", front, "heldout_imbalance", "heldout_fan_out", titles)
    change = [row for row in rows if row["section"] == "change"]
    if change:
        titles = ("replicas copied", "imbalance on the held-out half")
        draw_front(OUTPUT / "placement_moves.png", change, "moves", "heldout_imbalance", titles)


def show(rows: Sequence[Row]) -> None:
    columns = ("makespan_vs_bound", "heldout_imbalance", "heldout_fan_out", "transitions", "moves", "seconds")
    for row in rows:
        keys = ("section", "trace", "shape", "workers", "spare", "slack", "budget_moves", "repeat")
        name = " ".join(str(row[key]) for key in keys if key in row)
        values = " ".join(f"{row[key]:9.4g}" if key in row else f"{'':9}" for key in columns)
        print(f"{name:58.58} {row['method']:18} {values}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--traces", type=Path, default=ROOT.parent / "shared" / "traces", help="a folder of .npz traces"
    )
    parser.add_argument("--sections", default="traces,uneven,change,large,mixtral,transitions", help="those to run")
    arguments = parser.parse_args()
    traces = cases.traces_in(arguments.traces)
    sections: dict[str, Callable[[], list[Row]]] = {
        "traces": lambda: trace_rows(traces),
        "uneven": lambda: uneven_rows(traces),
        "change": lambda: change_rows(traces),
        "large": lambda: large_rows(traces),
        "mixtral": mixtral_rows,
        "transitions": lambda: transitions_rows(traces),
    }
    rows: list[Row] = []
    for name in arguments.sections.split(","):
        found = sections[name]()
        show(found)
        rows += found
    draw(rows)
    write_report("placement", aims_of(rows), rows, "cpu", ("numpy", "scipy", "pulp", "highspy"))


if __name__ == "__main__":
    main()
