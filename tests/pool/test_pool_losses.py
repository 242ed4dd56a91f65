"""The whole controller when workers, engines or earlier controllers are lost: recovery, fencing, adoption."""

from typing import Any

import pytest

from flexpert_workers.messages import control
from flexpert_workers.pool.exceptions import NotGranted
from flexpert_workers.pool.state import Cause, Condition, Phase
from flexpert_workers.pool.tables import placement_of
from flexpert_workers.routing import Epoch


async def test_lost_experts_are_placed_anew(rig: Any, attach: Any) -> None:
    names = await rig.placed(3)
    engine = attach(rig, "e-1")
    rig.workers.workers[names[0]].kill()
    await rig.until(lambda: rig.controller.keeper.epoch > Epoch(1, 1))
    await rig.controller.operations.settled()
    operation = rig.controller.operations.last
    assert (operation.cause, operation.phase) == (Cause.FAILURE, Phase.SUCCEEDED)
    assert operation.moved_experts == 3
    assert rig.truthful()
    assert rig.controller.lost_experts() == ()
    assert engine.tables[-1].epoch == rig.controller.keeper.epoch
    assert rig.controller.fleet.workers[names[0]].condition is Condition.LOST
    ready = await rig.ready(3)
    assert names[0] not in ready, "a replacement has an id of its own"


async def test_replicas_elsewhere_need_no_copy(rig: Any) -> None:
    names = await rig.placed(3)
    everywhere = {expert: dict.fromkeys(names[:2], 0.5) for expert in rig.spread(names)}
    await rig.reconfigure("replicate", everywhere)
    rig.workers.workers[names[0]].kill()
    await rig.until(lambda: rig.controller.operations.last.cause is Cause.FAILURE)
    operation = await rig.finished(rig.controller.operations.last.id)
    assert operation.moved_experts == 0
    assert set(placement_of(rig.controller.keeper.table).values().__iter__().__next__()) == {names[1]}
    assert rig.truthful()


async def test_recovery_waits_for_room(fake_workers: Any, start_controller: Any) -> None:
    async with start_controller(fake_workers(1)) as rig:
        (name,) = await rig.placed(1)
        rig.workers.workers[name].kill()
        await rig.until(lambda: len(rig.controller.lost_experts()) == 8)
        await rig.until(lambda: rig.controller.lost_experts() == () and rig.controller.operations.running is None)
        assert rig.truthful()
        assert rig.controller.message() == ""


async def test_no_room_is_said(fake_workers: Any, start_controller: Any) -> None:
    async with start_controller(fake_workers(2, memory_experts=4)) as rig:
        names = await rig.placed(2)
        rig.workers.broken = True
        rig.workers.workers[names[0]].kill()
        await rig.until(lambda: "no worker has room" in rig.controller.message())
        await rig.until(lambda: "built broken" in rig.controller.message())
        assert len(rig.controller.lost_experts()) == 4
        rig.workers.broken = False
        await rig.until(lambda: not rig.controller.lost_experts() and not rig.controller.operations.running)
        assert rig.truthful()


async def test_a_worker_that_lacks_what_it_should_hold(rig: Any) -> None:
    names = await rig.placed(3)
    forgetful = rig.workers.workers[names[0]]
    missing = next(iter(forgetful.experts))
    forgetful.experts.discard(missing)
    await rig.until(lambda: rig.controller.keeper.epoch > Epoch(1, 1) and not rig.controller.operations.running)
    assert rig.truthful()
    assert rig.workers.workers[names[0]].up


async def test_a_silent_worker_is_lost_and_ended(rig: Any) -> None:
    names = await rig.placed(3)
    silent = rig.workers.workers[names[0]]
    for kind in (control.AskLoads, control.Describe, control.AskPrepare, control.Prepare):
        silent.script[kind] = lambda _: None
    await rig.until(lambda: not silent.up)
    await rig.until(lambda: rig.controller.keeper.epoch > Epoch(1, 1) and not rig.controller.operations.running)
    assert rig.truthful()


async def test_recovery_preempts_before_commit(rig: Any) -> None:
    names = await rig.placed(3)
    rig.workers.workers[names[0]].gate.clear()
    rig.controller.reconfigure(rig.request("slow", rig.spread(names[::-1])))
    await rig.until(lambda: rig.controller.operations.get("slow").phase is Phase.PREPARE)
    rig.workers.workers[names[2]].kill()
    operation = await rig.finished("slow")
    rig.workers.workers[names[0]].gate.set()
    assert operation.phase is Phase.ROLLED_BACK
    assert names[2] in operation.message
    await rig.until(lambda: rig.controller.keeper.epoch > Epoch(1, 1) and not rig.controller.operations.running)
    assert rig.controller.operations.last.cause is Cause.FAILURE
    assert rig.truthful()


async def test_recovery_takes_over_after_commit(rig: Any) -> None:
    names = await rig.placed(3)
    rig.workers.workers[names[0]].script[control.Retire] = lambda _: control.Refused("internal", "ask again")
    rig.controller.reconfigure(rig.request("committed", rig.spread(names[::-1])))
    await rig.until(lambda: rig.controller.operations.get("committed").phase is Phase.RETIRE)
    rig.workers.workers[names[2]].kill()
    operation = await rig.finished("committed")
    assert operation.phase is Phase.SUCCEEDED
    rig.workers.workers[names[0]].script.clear()
    await rig.until(lambda: rig.controller.keeper.epoch > Epoch(1, 2) and not rig.controller.operations.running)
    assert rig.truthful()


async def test_death_while_recovering(fake_workers: Any, start_controller: Any) -> None:
    async with start_controller(fake_workers(4)) as rig:
        names = await rig.placed(4)
        for name in names[1:]:
            rig.workers.workers[name].gate.clear()
        rig.workers.workers[names[0]].kill()
        await rig.until(lambda: rig.controller.operations.last.cause is Cause.FAILURE)
        rig.workers.workers[names[1]].kill()
        for worker in rig.workers.workers.values():
            worker.gate.set()
        await rig.until(lambda: not rig.controller.lost_experts() and not rig.controller.operations.running)
        assert rig.truthful()


async def test_silent_engines_are_expelled(rig: Any, attach: Any) -> None:
    names = await rig.placed(3)
    silent, good = attach(rig, "e-silent"), attach(rig, "e-good")
    await rig.until(lambda: silent.tables and good.tables)
    silent.listens = False
    operation = await rig.reconfigure("next", rig.spread(names[::-1]))
    assert operation.phase is Phase.SUCCEEDED
    assert "e-silent" in operation.message
    conditions = {engine.id: engine.condition for engine in rig.controller.engines.engines()}
    assert conditions == {"e-silent": Condition.LOST, "e-good": Condition.READY}


async def test_a_new_controller_adopts_the_highest_table(rig: Any, start_controller: Any, attach: Any) -> None:
    names = await rig.placed(3)
    table = rig.controller.keeper.table
    await rig.controller.stop()
    async with start_controller(rig.workers) as heir:
        assert heir.controller.keeper.table == table
        assert heir.controller.keeper.term == 0
        engine = attach(heir, "e-1")
        await heir.until(lambda: engine.tables)
        assert engine.tables[0] == table, "served before a term is granted"
        with pytest.raises(NotGranted):
            heir.controller.reconfigure(heir.request("early", heir.spread(names)))
        with pytest.raises(NotGranted, match="higher"):
            heir.configure(term=1)
        with pytest.raises(NotGranted, match="incarnation"):
            heir.controller.configure(rig.controller.incarnation, 9, 1, rig.controller.spec)
        heir.configure(term=2)
        await heir.until(lambda: heir.controller.keeper.epoch == Epoch(2, 2))
        await heir.controller.operations.settled()
        assert placement_of(heir.controller.keeper.table) == placement_of(table)
        assert heir.controller.operations.last is None, "fencing is no operation"
        again = heir.controller.reconfigure(heir.request("initial", heir.spread(names)))
        assert again.phase is Phase.SUCCEEDED, "the operation of the adopted table is known"
        assert set(await heir.ready(3)) == set(names), "no worker was started anew"


async def test_an_unfinished_prepare_is_cleaned_by_the_next_controller(rig: Any, start_controller: Any) -> None:
    names = await rig.placed(3)
    rig.workers.workers[names[0]].gate.clear()
    rig.controller.reconfigure(rig.request("interrupted", rig.spread(names[::-1])))
    await rig.until(lambda: sum(len(worker.experts) for worker in rig.workers.up()) > 8)
    await rig.controller.stop()
    rig.workers.workers[names[0]].gate.set()
    async with start_controller(rig.workers) as heir:
        heir.configure(term=2)
        await heir.until(lambda: heir.controller.keeper.epoch.term == 2)
        await heir.controller.operations.settled()
        assert sum(len(worker.experts) for worker in rig.workers.up()) == 8
        assert heir.truthful()


async def test_a_fenced_controller_gives_up_its_term(rig: Any, start_controller: Any) -> None:
    names = await rig.placed(3)
    async with start_controller(rig.workers) as heir:
        heir.configure(term=2)
        await heir.until(lambda: heir.controller.keeper.epoch.term == 2)
        operation = await rig.reconfigure("old", rig.spread(names[::-1]))
        assert operation.phase is Phase.ROLLED_BACK
        assert rig.controller.keeper.term == 0
        assert heir.truthful()
