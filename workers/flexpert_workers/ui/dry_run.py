"""A dry run of a plan for the page: where experts would best be, and what the controller says it would take.

`app` calls `DryRuns.try_out`. A process of its own places the experts (`plan_process`); the controller's Plan predicts
the moves. Nothing of the pool is changed, and one such run goes on at a time.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any

import msgspec

from flexpert_workers.errors import FlexpertError
from flexpert_workers.pool.controller import PoolController
from flexpert_workers.pool.state import Cause, Condition, ModelFacts, Move, Placement, Prediction, Request, Worker
from flexpert_workers.pool.tables import placement_of
from flexpert_workers.pool.waves import live_part
from flexpert_workers.ui.plan_process import Answer, Capacity, Question
from flexpert_workers.ui.snapshot import placement_json

LONGEST_S = 30.0
GRACE_S = 30.0
"""Beyond its time limit, for a process to start and to end."""


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the page asks for.

    Attributes:
        without: Workers that are to hold nothing.
        replicas: Copies of every expert at least.
        moves: Replicas copied at most; None: any number.
        seconds: For the search.
    """

    without: Annotated[list[str], msgspec.Meta(max_length=4096)] = []
    replicas: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    moves: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    seconds: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_S)] = 5.0


class CannotTry(FlexpertError):
    """There is no answer; the message says why, and what to change."""


class Busy(FlexpertError):
    """Another dry run goes on."""


Place = Callable[[Question], Coroutine[Any, Any, Answer]]


class DryRuns:
    """Dry runs of one controller, one at a time."""

    def __init__(self, controller: PoolController, place: Place | None = None) -> None:
        self._controller = controller
        self._place = place or place_in_process
        self._running = False

    async def try_out(self, wish: Wish) -> dict[str, object]:
        """What would come of it, as JSON.

        Raises:
            CannotTry: It cannot be placed so, or there is nothing to place.
            Busy: Another one runs.
        """
        if self._running:
            raise Busy("another dry run goes on; try again when it is done")
        self._running = True
        try:
            return await self._try_out(wish)
        finally:
            self._running = False

    async def _try_out(self, wish: Wish) -> dict[str, object]:
        controller, model = self._controller, self._controller.model
        if model is None:
            raise CannotTry(controller.message() or "no model is known yet")
        base, workers = controller.keeper.epoch, controller.fleet.all()
        current = live_part(placement_of(controller.keeper.table), workers)
        loads = controller.fleet.loads.counts(model.layers * model.experts).reshape(model.layers, model.experts)
        answer = await self._place(question_of(wish, model, workers, current, loads.astype(float).tolist()))
        if answer.error:
            raise CannotTry(answer.error)
        target: dict[tuple[int, int], dict[str, float]] = {}
        for layer, index, worker, share in answer.target:
            target.setdefault((layer, index), {})[worker] = share
        moves = tuple(Move((layer, index), worker, tuple(sources)) for layer, index, worker, sources in answer.moves)
        request = Request("dry-run", Cause.REBALANCE, base, moves, target, recorded=False)
        return result_json(answer, moves, target, await controller.predict_aside(request), model)


def question_of(
    wish: Wish, model: ModelFacts, workers: tuple[Worker, ...], current: Placement, loads: list[list[float]]
) -> Question:
    """What is to be placed, as the operator would ask it: one expert's bytes stay free on every worker, for copies.

    Raises:
        CannotTry: A worker is not known, or none is left.
    """
    unknown = sorted(set(wish.without) - {worker.id for worker in workers})
    if unknown:
        raise CannotTry(f"no worker {', '.join(unknown)}")
    targets = [
        worker
        for worker in workers
        if worker.condition is Condition.READY and worker.live and worker.id not in wish.without
    ]
    if not targets:
        raise CannotTry("no worker that is ready is left: leave fewer out")
    return Question(
        loads=loads,
        expert_bytes=model.expert_bytes,
        workers=[_capacity(worker, model) for worker in targets],
        current=[(*expert, worker, share) for expert, row in sorted(current.items()) for worker, share in row.items()],
        holders=sorted({worker for row in current.values() for worker in row}),
        min_replicas=wish.replicas,
        moves=wish.moves,
        time_limit_s=wish.seconds,
    )


def result_json(
    answer: Answer, moves: tuple[Move, ...], target: Placement, prediction: Prediction, model: ModelFacts
) -> dict[str, object]:
    """What the page shows of an answer, and of the controller's prediction."""
    return {
        "status": answer.status,
        "before": answer.before,
        "after": answer.after,
        "gap": answer.gap,
        "solveSeconds": answer.seconds,
        "notes": answer.notes,
        "drops": answer.drops,
        "moves": [
            {"expert": move.expert[0] * model.experts + move.expert[1], "to": move.target, "from": list(move.sources)}
            for move in moves
        ],
        "placement": placement_json(target, model.experts),
        "prediction": _prediction_json(prediction),
    }


def _prediction_json(prediction: Prediction) -> Mapping[str, object]:
    return {
        "movedExperts": prediction.moved_experts,
        "attachedExperts": prediction.attached_experts,
        "movedBytes": prediction.moved_bytes,
        "seconds": prediction.seconds,
        "waves": prediction.waves,
        "refusal": prediction.refusal,
        "peakBytes": dict(prediction.peak_bytes),
    }


def _capacity(worker: Worker, model: ModelFacts) -> Capacity:
    assert worker.state is not None, "a worker that experts may be placed on has described itself"
    slot = worker.slot
    node = slot.node if slot is not None else ""
    domain = slot.failure_domain if slot is not None else ""
    return Capacity(worker.id, max(worker.state.memory_bytes - model.expert_bytes, 0), domain or node, node)


async def place_in_process(question: Question) -> Answer:
    """Ask `plan_process`. It ends when this call does, with all that it started.

    Raises:
        CannotTry: It came to no answer.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "flexpert_workers.ui.plan_process",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(question.time_limit_s + GRACE_S):
            said, complaint = await process.communicate(msgspec.json.encode(question))
        return msgspec.json.decode(said, type=Answer)
    except TimeoutError as late:
        raise CannotTry("the search did not end in time; the head has too little processor time") from late
    except msgspec.DecodeError as unreadable:
        tail = complaint.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise CannotTry(f"the search failed: {tail[0]}") from unreadable
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
