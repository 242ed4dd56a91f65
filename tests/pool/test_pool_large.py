"""A model of thousands of experts: the event loop goes on while plans, tables and recoveries are worked out."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from flexpert_workers.pool.controller import PoolController, Settings
from flexpert_workers.pool.fakes import FakeEngines, FakeWorkers
from flexpert_workers.pool.predict import Planned
from flexpert_workers.pool.state import Cause, Condition, ModelFacts, Move, Phase, Placement, PoolSpec, Request, Slot

MODEL = ModelFacts("file:///m", "", "Auto", "digest", "MixtralForCausalLM", 20, 128, 8, 100)
EXPERTS = sorted(MODEL.all_experts())
WORKERS = 4
PATIENCE_S = 60.0


def while_the_loop_turns(controller: PoolController, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Have every plan wait until the event loop has come round once more; gives whether it did, plan by plan."""
    loop, turned = asyncio.get_running_loop(), []
    planning = controller.operations.planning

    def watched(request: Request) -> Callable[[], Planned]:
        compute, turn = planning(request), threading.Event()

        def after_a_turn() -> Planned:
            loop.call_soon_threadsafe(turn.set)
            turned.append(turn.wait(PATIENCE_S))
            return compute()

        return after_a_turn

    monkeypatch.setattr(controller.operations, "planning", watched)
    return turned


def request(controller: PoolController, name: str, target: Placement) -> Request:
    held = controller.fleet.held()
    moves = tuple(
        Move(expert, worker, ("",))
        for expert, shares in target.items()
        for worker in shares
        if expert not in held.get(worker, frozenset())
    )
    return Request(name, Cause.SCALE, controller.keeper.epoch, moves, target)


async def test_the_loop_goes_on_while_a_large_plan_is_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    room = len(EXPERTS) // WORKERS * 3 // 2
    workers = FakeWorkers(MODEL, [Slot(f"s-{number}", pod=f"p-{number}") for number in range(WORKERS)], room)

    async def inspect(*_: str) -> ModelFacts:
        return MODEL

    controller = PoolController(Settings("uid-1"), workers, FakeEngines(), workers.link, inspect)
    await controller.start()
    controller.configure(
        controller.incarnation, 1, 1, PoolSpec("uid-1", "large", "default", MODEL.source, workers=WORKERS)
    )

    async def until(true: Any) -> None:
        async with asyncio.timeout(120):
            while not true():
                await controller.changes.wait(controller.changes.count, 0.05)

    def ready() -> list[str]:
        return [one.id for one in controller.fleet.all() if one.condition is Condition.READY]

    async def carried_out(name: str) -> None:
        await until(lambda: controller.operations.running is None)
        operation = controller.operations.get(name)
        assert operation.phase is Phase.SUCCEEDED, operation.message

    await until(lambda: len(ready()) == WORKERS)
    names = ready()
    first = request(controller, "first", {e: {names[n % WORKERS]: 1.0} for n, e in enumerate(EXPERTS)})
    turned = while_the_loop_turns(controller, monkeypatch)
    assert (await controller.predict_aside(first)).refusal == ""
    assert turned == [True]
    await controller.reconfigure_aside(first)
    await carried_out("first")
    swap = request(controller, "swap", {e: {names[(n + 1) % WORKERS]: 1.0} for n, e in enumerate(EXPERTS)})
    begun = await controller.reconfigure_aside(swap)
    assert turned == [True, True, True]
    monkeypatch.undo()
    assert begun.predicted is not None
    assert begun.predicted.waves > 1
    await carried_out("swap")
    workers.workers[names[0]].kill()
    await until(lambda: controller.operations.running is not None)
    await until(lambda: controller.operations.running is None and controller.lost_experts() == ())
    await controller.stop()
