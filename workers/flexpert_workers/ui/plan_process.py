"""`python -m flexpert_workers.ui.plan_process`: places experts for a dry run; a question in, an answer out, as JSON.

`dry_run` starts one and ends it with whoever asked. It is a process of its own because a search takes seconds of a
processor, which the pool controller's event loop must not wait for.
"""

import os
import sys

import msgspec

from flexpert_placement.evaluate import imbalance
from flexpert_placement.plan import make_plan
from flexpert_placement.solver import solve
from flexpert_placement.types import (
    Budget,
    ExpertId,
    InfeasiblePlacement,
    Placement,
    PlacementProblem,
    WorkerCapacity,
)

NICENESS = 10
Row = tuple[int, int, str, float]
"""(layer, index, worker, share) of a replica."""


class Capacity(msgspec.Struct, frozen=True):
    """A worker that is to hold experts."""

    id: str
    memory_bytes: int
    failure_domain: str
    node: str


class Question(msgspec.Struct, frozen=True):
    """What is to be placed.

    Attributes:
        loads: [layers, experts] tokens.
        current: The placement as it is, live replicas alone.
        holders: Workers of `current`, whose balance is compared.
        moves: Replicas copied at most; None: any number.
    """

    loads: list[list[float]]
    expert_bytes: int
    workers: list[Capacity]
    current: list[Row]
    holders: list[str]
    min_replicas: int
    moves: int | None
    time_limit_s: float


class Answer(msgspec.Struct, frozen=True):
    """Where experts would be, or why that cannot be said.

    Attributes:
        moves: (layer, index, target, sources).
        before: Imbalance of what is there, None where nothing is placed; `after`: of the answer.
        drops: Replicas that could go.
    """

    error: str = ""
    status: str = ""
    target: list[Row] = []
    moves: list[tuple[int, int, str, list[str]]] = []
    drops: int = 0
    before: float | None = None
    after: float = 1.0
    gap: float = 0.0
    seconds: float = 0.0
    notes: list[str] = []


def answer(question: Question) -> Answer:
    """Solve it."""
    current: dict[ExpertId, dict[str, float]] = {}
    for layer, index, worker, share in question.current:
        current.setdefault(ExpertId(layer, index), {})[worker] = share
    problem = PlacementProblem(
        loads=tuple(tuple(row) for row in question.loads),
        expert_bytes=question.expert_bytes,
        workers=tuple(
            WorkerCapacity(one.id, one.memory_bytes, failure_domain=one.failure_domain, node=one.node)
            for one in question.workers
        ),
        current=current,
        min_replicas=question.min_replicas,
        budget=Budget(moves=question.moves),
        time_limit_s=question.time_limit_s,
    )
    try:
        result = solve(problem)
    except InfeasiblePlacement as impossible:
        return Answer(error=str(impossible))
    plan = make_plan(current, result.placement, frozenset(question.holders))
    holders = [WorkerCapacity(worker, 0) for worker in question.holders]
    return Answer(
        status=str(result.status),
        target=_rows(plan.target),
        moves=[(move.expert.layer, move.expert[1], move.target, list(move.sources)) for move in plan.moves],
        drops=len(plan.drops),
        before=imbalance(problem.loads, current, holders) if current else None,
        after=imbalance(problem.loads, plan.target, problem.workers),
        gap=result.gap,
        seconds=result.solve_seconds,
        notes=list(result.notes),
    )


def _rows(placement: Placement) -> list[Row]:
    return [
        (expert.layer, expert[1], worker, share)
        for expert, shares in sorted(placement.items())
        for worker, share in sorted(shares.items())
    ]


def main() -> int:
    """One question from standard input, its answer to standard output."""
    os.nice(NICENESS)
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    sys.stdout.buffer.write(msgspec.json.encode(answer(question)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
