"""The whole controller among fake workers and engines: growth, transactions, what is refused."""

import asyncio
from typing import Any

import pytest

from flexpert_workers.errors import StaleEpoch
from flexpert_workers.messages import control
from flexpert_workers.pool.exceptions import Committed, InvalidPlan, NotGranted, OperationRunning, UnknownName
from flexpert_workers.pool.state import Condition, Phase
from flexpert_workers.pool.tables import placement_of
from flexpert_workers.routing import NO_EPOCH, Epoch, RoutingTable


async def test_nothing_starts_before_a_term_is_granted(rig: Any) -> None:
    assert rig.workers.workers == {}
    assert "configure" in rig.controller.message()
    with pytest.raises(NotGranted):
        rig.controller.reconfigure(rig.request("early", {}))


async def test_initial_placement(rig: Any, attach: Any) -> None:
    engine = attach(rig, "e-1")
    names = await rig.placed(3)
    operation = rig.controller.operations.get("initial")
    assert operation.moved_experts == 8
    assert operation.moved_bytes == 800
    assert operation.epoch == Epoch(1, 1) == rig.controller.keeper.epoch
    assert set(operation.phase_seconds) == {"prepare", "commit", "retire"}
    assert rig.truthful()
    assert [table.epoch for table in engine.tables] == [Epoch(1, 1)]
    assert all(RoutingTable.decode(rig.workers.workers[name].table).epoch == Epoch(1, 1) for name in names)
    assert rig.engines.applied == [rig.controller.spec]


async def test_workers_store_a_table_before_an_engine_sees_it(rig: Any, attach: Any) -> None:
    names = await rig.placed(3)
    engine = attach(rig, "e-1")
    await rig.until(lambda: engine.tables)
    seen_at_store = []
    last = rig.workers.workers[names[-1]]

    def store(request: Any) -> Any:
        seen_at_store.append(engine.tables[-1].epoch)
        return last._store(request.table)

    last.script[control.StoreTable] = store
    await rig.reconfigure("again", rig.spread(names[::-1]))
    assert seen_at_store == [Epoch(1, 1)]
    assert engine.tables[-1].epoch == Epoch(1, 2)


async def test_grow_and_shrink(rig: Any, new_slot: Any) -> None:
    names = await rig.placed(3)
    rig.workers.add_slot(new_slot(3))
    grown = await rig.ready(4)
    operation = await rig.reconfigure("grow", rig.spread(grown))
    assert operation.phase is Phase.SUCCEEDED
    assert rig.truthful()
    (new,) = set(grown) - set(names)
    assert len(rig.workers.workers[new].experts) == 2
    assert sum(len(worker.experts) for worker in rig.workers.up()) == 8

    rig.controller.drain((new,), undo=False)
    operation = await rig.reconfigure("shrink", rig.spread(names))
    assert operation.phase is Phase.SUCCEEDED
    await rig.until(lambda: rig.controller.fleet.workers[new].stopped)
    assert not rig.workers.workers[new].up
    drained = rig.controller.fleet.workers[new]
    assert (drained.condition, drained.stopped, drained.live) == (Condition.DRAINING, True, False)
    assert len(rig.workers.workers) == 4, "the slot of a drained worker stays empty"
    rig.workers.remove_slot("slot-3")
    await rig.until(lambda: new not in rig.controller.fleet.workers)
    assert rig.truthful()


async def test_undone_drain_fills_the_slot_again(rig: Any) -> None:
    rig.configure()
    names = await rig.ready(3)
    rig.controller.drain((names[0],), undo=False)
    await rig.until(lambda: rig.controller.fleet.workers[names[0]].stopped)
    rig.controller.drain((names[0],), undo=True)
    assert len(await rig.ready(3)) == 3
    with pytest.raises(UnknownName):
        rig.controller.drain(("nobody",), undo=False)


async def test_the_slot_of_a_worker_that_died_while_it_was_drained_is_filled_once_that_is_undone(rig: Any) -> None:
    names = await rig.placed(3)
    rig.controller.drain((names[0],), undo=False)
    rig.workers.workers[names[0]].kill()
    await rig.until(lambda: rig.controller.fleet.workers[names[0]].stopped)
    await rig.until(lambda: set(rig.controller.fleet.live()) == set(names[1:]) and rig.truthful())
    assert len(rig.workers.workers) == 3, "its pod is on its way out"
    rig.controller.drain((names[0],), undo=True)
    assert len(await rig.ready(3)) == 3


async def test_a_worker_that_is_drained_before_it_has_come_up_is_ended(rig: Any, new_slot: Any) -> None:
    rig.configure()
    await rig.ready(3)
    rig.workers.slow = True
    rig.workers.add_slot(new_slot(3))
    await rig.until(lambda: len(rig.controller.fleet.workers) == 4)
    (new,) = (one.id for one in rig.controller.fleet.all() if one.condition is Condition.STARTING)
    rig.controller.drain((new,), undo=False)
    await rig.until(lambda: rig.controller.fleet.workers[new].stopped)
    assert not rig.workers.workers[new].up
    rig.workers.remove_slot("slot-3")
    await rig.until(lambda: new not in rig.controller.fleet.workers)


async def test_draining_keeps_a_worker_that_holds_experts(rig: Any) -> None:
    names = await rig.placed(3)
    rig.controller.drain((names[0],), undo=False)
    await rig.until(lambda: rig.controller.fleet.workers[names[0]].condition is Condition.DRAINING)
    for _ in range(3):
        await rig.controller._round()
    assert rig.workers.workers[names[0]].up


async def test_stale_base_epoch_is_refused(rig: Any) -> None:
    names = await rig.placed(3)
    stale = rig.request("late", rig.spread(names))
    await rig.reconfigure("first", rig.spread(names[::-1]))
    with pytest.raises(StaleEpoch):
        rig.controller.reconfigure(stale)
    assert "in force" in rig.controller.predict(stale).refusal


async def test_an_operation_is_idempotent_by_id(rig: Any) -> None:
    names = await rig.placed(3)
    request = rig.request("same", rig.spread(names[::-1]))
    rig.controller.reconfigure(request)
    again = rig.controller.reconfigure(request)
    assert again.id == "same"
    ended = await rig.finished("same")
    assert rig.controller.reconfigure(request) == ended
    assert rig.controller.keeper.epoch == Epoch(1, 2)


async def test_one_operation_at_a_time(rig: Any) -> None:
    names = await rig.placed(3)
    target = rig.workers.workers[names[0]]
    target.gate.clear()
    rig.controller.reconfigure(rig.request("first", rig.spread(names[::-1])))
    with pytest.raises(OperationRunning, match="first"):
        rig.controller.reconfigure(rig.request("second", rig.spread(names)))
    target.gate.set()
    assert (await rig.finished("first")).phase is Phase.SUCCEEDED


async def test_cancel_before_commit_rolls_back(rig: Any) -> None:
    names = await rig.placed(3)
    before = {name: set(rig.workers.workers[name].experts) for name in names}
    rig.workers.workers[names[0]].gate.clear()
    rig.controller.reconfigure(rig.request("wrong", rig.spread(names[::-1])))
    rig.controller.operations.cancel("wrong")
    operation = await rig.finished("wrong")
    assert operation.phase is Phase.CANCELLED
    assert rig.controller.keeper.epoch == Epoch(1, 1)
    assert {name: rig.workers.workers[name].experts for name in names} == before
    assert rig.controller.operations.cancel("wrong").phase is Phase.CANCELLED
    with pytest.raises(UnknownName):
        rig.controller.operations.cancel("nothing")


async def test_cancel_after_commit_is_refused(rig: Any) -> None:
    names = await rig.placed(3)
    busy = control.Refused("internal", "in use: ask again")
    worker = rig.workers.workers[names[0]]
    worker.script[control.Retire] = lambda _: busy
    rig.controller.reconfigure(rig.request("committed", rig.spread(names[::-1])))
    await rig.until(lambda: rig.controller.operations.get("committed").phase is Phase.RETIRE)
    with pytest.raises(Committed):
        rig.controller.operations.cancel("committed")
    del worker.script[control.Retire]
    assert (await rig.finished("committed")).phase is Phase.SUCCEEDED


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        (control.Prepare, control.Refused("capacity", "no room")),
        (control.AskPrepare, control.PrepareStatus("bad", False, 0, 0, 0, "the file is corrupt")),
        (control.StoreTable, control.Refused("internal", "no")),
        (control.Prepare, None),
        (control.AskPrepare, None),
        (control.StoreTable, None),
    ],
)
async def test_failure_before_commit_rolls_back(rig: Any, attach: Any, kind: Any, answer: Any) -> None:
    names = await rig.placed(3)
    engine = attach(rig, "e-1")
    await rig.until(lambda: engine.tables)
    placement = placement_of(rig.controller.keeper.table)
    failing = rig.workers.workers[names[-1]]
    failing.script[kind] = lambda _: answer
    before = len(failing.asked)
    rig.controller.reconfigure(rig.request("bad", rig.spread(names[::-1])))
    await rig.until(lambda: any(isinstance(request, kind) for request in failing.asked[before:]))
    await rig.until(lambda: rig.controller.operations.get("bad").phase.finished or not failing.script)
    operation = await rig.finished("bad")
    failing.script.clear()
    assert operation.phase is Phase.ROLLED_BACK
    assert operation.message
    assert operation.epoch is None
    assert placement_of(rig.controller.keeper.table) == placement
    assert placement_of(engine.tables[-1]) == placement
    assert rig.truthful()
    if kind is control.StoreTable:
        assert rig.controller.keeper.epoch > Epoch(1, 2), "a table that some worker stored is superseded"


async def test_failure_after_commit_rolls_forward(rig: Any) -> None:
    names = await rig.placed(3)
    worker = rig.workers.workers[names[0]]
    worker.script[control.Retire] = lambda _: control.Refused("internal", "in use: ask again")
    target = rig.spread(names[::-1])
    operation = await rig.reconfigure("forward", target)
    assert operation.phase is Phase.SUCCEEDED
    assert "in use" in operation.message
    assert placement_of(rig.controller.keeper.table) == target
    worker.script.clear()
    await rig.reconfigure("next", target)
    assert sum(len(one.experts) for one in rig.workers.up()) == 8, "the next retire frees what is left"


async def test_wrong_plans_are_refused(rig: Any) -> None:
    names = await rig.placed(3)
    target = dict(rig.spread(names))
    del target[1, 3]
    with pytest.raises(InvalidPlan, match="layer 1 expert 3"):
        rig.controller.reconfigure(rig.request("incomplete", target))
    with pytest.raises(InvalidPlan, match="not a live worker"):
        rig.controller.reconfigure(rig.request("nowhere", {**target, (1, 3): {"w-x": 1.0}}))
    with pytest.raises(InvalidPlan, match="add up to 1"):
        rig.controller.reconfigure(rig.request("shares", {**target, (1, 3): {names[0]: 0.4}}))


async def test_a_bad_model_is_said_and_starts_nothing(rig: Any) -> None:
    from dataclasses import replace

    spec = replace(rig.controller.spec or _spec(), source="file:///missing")
    rig.configure(spec=spec)
    await rig.until(lambda: "no checkpoint at file:///missing" in rig.controller.message())
    assert rig.workers.workers == {}
    assert rig.engines.applied == []
    rig.configure()
    assert len(await rig.ready(3)) == 3
    assert rig.controller.message() == ""


async def test_loads_outlive_workers(rig: Any) -> None:
    names = await rig.placed(3)
    for name in names:
        rig.workers.workers[name].tokens[5] = 7
    await rig.until(lambda: rig.controller.fleet.loads.total(8)[5] == 21)
    rig.workers.workers[names[0]].kill()
    await rig.ready(3)
    assert rig.controller.fleet.loads.total(8) == (0, 0, 0, 0, 0, 21, 0, 0)


async def test_a_table_of_nothing_is_no_epoch(rig: Any) -> None:
    rig.configure()
    await rig.ready(3)
    assert rig.controller.keeper.epoch == NO_EPOCH
    assert rig.controller.lost_experts() == ()
    await asyncio.sleep(0)


def _spec() -> Any:
    from flexpert_workers.pool.state import PoolSpec

    return PoolSpec(uid="uid-1", name="tiny", namespace="default", source="file:///model")
