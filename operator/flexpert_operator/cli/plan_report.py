"""What `flexpert plan` says about an answer, as values, as text for people and as JSON."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from flexpert_operator.cli.planning import Question
from flexpert_operator.cli.tables import mebibytes, table
from flexpert_placement.consistency import Consistency, Drift, consistency, drift
from flexpert_placement.evaluate import terms_of
from flexpert_placement.instance import dense_of, instance_of
from flexpert_placement.plan import make_plan
from flexpert_placement.trace import RoutingTrace, trace_of
from flexpert_placement.types import (
    Placement,
    PlacementProblem,
    PlacementResult,
    Plan,
    Terms,
    Traffic,
    WorkerCapacity,
)

SEGMENT = 16
"""Tokens of a segment, for local routing consistency."""
MOST_TOKENS = 4096
"""Tokens that consistency and fan-out are measured on."""
MOST_MOVES = 20
"""Moves that the text lists."""


@dataclass(frozen=True)
class Prediction:
    """What carrying the plan out would take; from the pool where there is one."""

    moved_bytes: int
    seconds: float
    peak_bytes: dict[str, int]
    waves: int = 1
    refusal: str = ""


@dataclass(frozen=True, eq=False)
class Report:
    """All that is said.

    Attributes:
        judged: What the placement is worth on another trace, if one was given.
        makespan: Sum of the busiest workers' times over that of perfect balance.
        makespan_bound: Proven least of it.
    """

    question: Question
    result: PlacementResult
    plan: Plan
    before: Terms
    after: Terms
    judged: tuple[Terms, Terms] | None
    makespan: float
    makespan_bound: float
    prediction: Prediction | None
    consistency: Consistency | None
    drift: Drift | None


def plan_of(question: Question, result: PlacementResult) -> Plan:
    """What leads from what is there to the answer; no moves where nothing is."""
    current = question.problem.current
    return make_plan(current, result.placement) if current else Plan((), result.placement, ())


def report_of(
    question: Question,
    result: PlacementResult,
    plan: Plan,
    judge: RoutingTrace | None,
    prediction: Prediction | None,
) -> Report:
    """Judge an answer."""
    problem, trace = question.problem, question.trace
    even = sum(sum(row) or len(row) for row in problem.loads) / sum(worker.speed for worker in problem.workers)
    return Report(
        question=question,
        result=result,
        plan=plan,
        before=worth(problem.loads, trace, question.before, _holders(question)),
        after=worth(problem.loads, trace, result.placement, problem.workers),
        judged=None
        if judge is None
        else (
            worth(problem.loads, judge, question.before, _holders(question)),
            worth(problem.loads, judge, result.placement, problem.workers),
        ),
        makespan=result.makespan / even,
        makespan_bound=result.makespan_bound / even,
        prediction=prediction,
        consistency=_consistency(trace) if trace is not None else None,
        drift=_drift(trace) if trace is not None else None,
    )


def worth(
    loads: tuple[tuple[float, ...], ...],
    trace: RoutingTrace | None,
    placement: Placement,
    workers: tuple[WorkerCapacity, ...],
) -> Terms:
    """What a placement on these workers is worth for a trace's tokens, or where there are none for `loads` alone."""
    traffic = Traffic()
    if trace is not None:
        loads = tuple(tuple(row) for row in trace.loads().tolist())
        traffic = Traffic(transitions=trace.transitions(), sample=trace.sample(MOST_TOKENS))
    judged = PlacementProblem(loads, 1, workers, traffic=traffic)
    return terms_of(instance_of(judged), dense_of(placement, judged))


def _holders(question: Question) -> tuple[WorkerCapacity, ...]:
    """The workers of the placement as it is, those too that the question leaves out."""
    known = {worker.id: worker for worker in question.problem.workers}
    names = sorted({name for row in question.before.values() for name in row})
    return tuple(known.get(name, WorkerCapacity(name, 0)) for name in names)


def predicted(question: Question, plan: Plan, bytes_per_second: float) -> Prediction | None:
    """Bytes and seconds of a plan where no pool can be asked; None where an expert's size is not known."""
    if not question.knows_bytes or not question.problem.current:
        return None
    size = question.problem.expert_bytes
    held = Counter(worker for row in question.problem.current.values() for worker in row)
    coming = Counter(move.target for move in plan.moves)
    return Prediction(
        moved_bytes=len(plan.moves) * size,
        seconds=max(coming.values(), default=0) * size / bytes_per_second,
        peak_bytes={worker.id: (held[worker.id] + coming[worker.id]) * size for worker in question.problem.workers},
    )


def text_of(report: Report, dry_run: str) -> str:
    """For people."""
    parts = [_shape(report), _comparison(report), _proof(report), _moves(report), _why(report), _routing(report)]
    return "\n\n".join(part for part in (*parts, _by_worker(report), dry_run) if part)


def json_of(report: Report) -> dict[str, Any]:
    """For programs."""
    result, prediction = report.result, report.prediction
    return {
        "status": str(result.status),
        "before": {"name": report.question.before_name, **_worth_json(report, report.before)},
        "after": _worth_json(report, report.after),
        "judged": None
        if report.judged is None
        else {"before": _worth_json(report, report.judged[0]), "after": _worth_json(report, report.judged[1])},
        "makespan": report.makespan,
        "makespanBound": report.makespan_bound,
        "objective": result.objective,
        "bound": result.bound,
        "gap": result.gap,
        "seconds": result.solve_seconds,
        "hottest": [{"layer": expert.layer, "expert": expert[1]} for expert in result.hottest],
        "limiting": list(result.limiting),
        "notes": list(result.notes),
        "moves": [
            {"layer": move.expert.layer, "expert": move.expert[1], "target": move.target, "sources": list(move.sources)}
            for move in report.plan.moves
        ],
        "predicted": None
        if prediction is None
        else {
            "movedBytes": prediction.moved_bytes,
            "seconds": prediction.seconds,
            "peakBytes": prediction.peak_bytes,
            "waves": prediction.waves,
            "refusal": prediction.refusal,
        },
        "consistency": None
        if report.consistency is None
        else {"segment": report.consistency.segment, "srp": report.consistency.srp, "sch": report.consistency.sch},
        "drift": None
        if report.drift is None
        else {"distance": report.drift.mean_distance, "correlation": report.drift.mean_correlation},
        "placement": [
            {"layer": expert.layer, "expert": expert[1], "worker": worker, "share": share}
            for expert, row in sorted(result.placement.items())
            for worker, share in sorted(row.items())
        ],
    }


def _worth_json(report: Report, one: Terms) -> dict[str, Any]:
    return {"imbalance": one.makespan, **{_camel(name): value for name, _, value in _known_terms(report, one)}}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return "".join([first, *(word.capitalize() for word in rest)])


def _known_terms(report: Report, one: Terms) -> list[tuple[str, str, float]]:
    """(name, what people read, value) of the terms that the tokens and the workers tell something about."""
    problem = report.question.problem
    if report.question.trace is None:
        return []
    terms = [("fan_out", "fan-out (workers per token and layer)", one.fan_out)]
    if len({worker.node for worker in problem.workers}) > 1:
        terms.append(("cross_node", "nodes per token and layer, beyond the first", one.cross_node))
    if len({worker.zone for worker in problem.workers}) > 1:
        terms.append(("cross_zone", "zones per token and layer, beyond the first", one.cross_zone))
    if len(problem.loads) > 1:
        terms.append(("transitions", "changes of worker per token and step", one.transitions))
    return terms


def _shape(report: Report) -> str:
    problem = report.question.problem
    slots = sum(worker.memory_bytes // problem.expert_bytes for worker in problem.workers)
    replicas = sum(len(row) for row in report.result.placement.values())
    return (
        f"{len(problem.loads)} layers of {len(problem.loads[0])} experts on {len(problem.workers)} workers with "
        f"room for {slots} replicas; {replicas} planned"
    )


def _comparison(report: Report) -> str:
    rows = _rows(report, report.before, report.after, "")
    if report.judged is not None:
        rows += _rows(report, *report.judged, ", judging trace")
    return table(["", report.question.before_name.upper(), "PLANNED"], rows)


def _rows(report: Report, before: Terms, after: Terms, where: str) -> list[list[object]]:
    rows: list[list[object]] = [[f"imbalance (max/mean){where}", f"{before.makespan:.4f}", f"{after.makespan:.4f}"]]
    pairs = zip(_known_terms(report, before), _known_terms(report, after), strict=True)
    return rows + [[f"{said}{where}", f"{one:.3f}", f"{other:.3f}"] for (_, said, one), (_, _, other) in pairs]


def _proof(report: Report) -> str:
    result = report.result
    return (
        f"{result.status} after {result.solve_seconds:.1f} s: makespan {report.makespan:.4f} of perfect balance, "
        f"proven to be at least {report.makespan_bound:.4f}; gap of the objective {100 * result.gap:.2f} %"
    )


def _moves(report: Report) -> str:
    question, plan, prediction = report.question, report.plan, report.prediction
    if not question.problem.current:
        return ""
    cost = ""
    if prediction is not None:
        peak = max(prediction.peak_bytes.values(), default=0)
        cost = f": {mebibytes(prediction.moved_bytes)} in {prediction.seconds:.2f} s, at most {mebibytes(peak)} each"
        cost += f", in {prediction.waves} waves" if prediction.waves > 1 else ""
    lines = [f"{len(plan.moves)} moves, {len(plan.drops)} replicas dropped{cost}"]
    if prediction is not None and prediction.refusal:
        lines.append(f"the pool would refuse it: {prediction.refusal}")
    lines += [
        f"  layer {move.expert.layer} expert {move.expert[1]} to {move.target} from "
        f"{' or '.join(move.sources) if move.sources else 'the checkpoint'}"
        for move in plan.moves[:MOST_MOVES]
    ]
    if len(plan.moves) > MOST_MOVES:
        lines.append(f"  and {len(plan.moves) - MOST_MOVES} more: --format json lists all")
    return "\n".join(lines)


def _why(report: Report) -> str:
    problem, result = report.question.problem, report.result
    lines = []
    if result.hottest:
        hot = (
            f"layer {layer} expert {index} ({_relative(problem.loads[layer], index):.1f} × the mean)"
            for layer, index in result.hottest
        )
        lines.append(f"hottest: {', '.join(hot)}")
    if result.limiting:
        lines.append(f"busiest in most layers: {', '.join(result.limiting)}")
    return "\n".join([*lines, *result.notes])


def _relative(row: tuple[float, ...], index: int) -> float:
    return row[index] * len(row) / sum(row) if sum(row) > 0 else 1.0


def _routing(report: Report) -> str:
    lines = []
    if report.consistency is not None:
        one = report.consistency
        lines.append(
            f"local routing consistency over {one.segment} tokens: SRP {one.srp:.3f}, SCH {one.sch:.3f} "
            f"(a cache of {one.cache_ratio:g} × the experts a token chooses)"
        )
    if report.drift is not None:
        lines.append(
            f"from the trace's first half to its second {100 * report.drift.mean_distance:.1f} % of the load moves "
            f"to other experts; correlation {report.drift.mean_correlation:.3f}"
        )
    return "\n".join(lines)


def _by_worker(report: Report) -> str:
    problem, placement = report.question.problem, report.result.placement
    replicas: Counter[str] = Counter()
    load: Counter[str] = Counter()
    for expert, row in placement.items():
        layer = problem.loads[expert.layer]
        for worker, share in row.items():
            replicas[worker] += 1
            load[worker] += share * (layer[expert[1]] / sum(layer) if sum(layer) else 1 / len(layer))  # type: ignore[assignment]
    coming = Counter(move.target for move in report.plan.moves)
    rows = [
        [
            worker.id,
            replicas[worker.id],
            worker.memory_bytes // problem.expert_bytes,
            f"{100 * load[worker.id] / len(problem.loads):.1f}%",
            coming[worker.id] if problem.current else None,
            mebibytes(replicas[worker.id] * problem.expert_bytes) if report.question.knows_bytes else None,
        ]
        for worker in problem.workers
    ]
    return table(["WORKER", "REPLICAS", "ROOM", "LOAD", "COMING", "SIZE"], rows)


def _consistency(trace: RoutingTrace) -> Consistency | None:
    """Of the first tokens; over shorter segments where no sequence is long enough."""
    tokens = min(trace.num_tokens, MOST_TOKENS)
    ends = np.minimum(np.cumsum(trace.sequence_lengths), tokens)
    lengths = np.diff(ends, prepend=0)
    part = trace_of(trace.experts[:tokens], lengths[lengths > 0], trace.num_experts)
    return consistency(part, segment=min(SEGMENT, int(lengths.max())))


def _drift(trace: RoutingTrace) -> Drift | None:
    if trace.num_tokens < 2:
        return None
    first, second = trace.halves(block=-(-trace.num_tokens // 2))
    return drift(first.loads(), second.loads())
