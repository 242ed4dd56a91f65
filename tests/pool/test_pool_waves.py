"""Plans that do not fit at once: waves, each with its own commit and epoch, and what they cost. Fakes only."""

from dataclasses import replace
from typing import Any

import pytest

from flexpert_proto import pool_pb2
from flexpert_workers.messages import control
from flexpert_workers.pool.exceptions import InvalidPlan
from flexpert_workers.pool.state import Phase
from flexpert_workers.pool.tables import placement_of
from flexpert_workers.routing import Epoch, RoutingTable

ROOM = 5
"""Experts that fit into a worker of these tests: four that it serves, and one on its way."""


def swapped(rig: Any, names: list[str]) -> Any:
    """Every expert on the other worker."""
    return {expert: {names[1 - names.index(next(iter(row)))]: 1.0} for expert, row in rig.spread(names).items()}


async def test_everything_changes_sides_one_by_one(fake_workers: Any, start_controller: Any, attach: Any) -> None:
    async with start_controller(fake_workers(2, memory_experts=ROOM)) as rig:
        names = await rig.placed(2)
        engine = attach(rig, "e-1")
        target = swapped(rig, names)
        request = rig.request("swap", target)
        predicted = rig.controller.predict(request)
        assert (predicted.waves, predicted.refusal, predicted.moved_experts) == (4, "", 8)
        assert set(predicted.peak_bytes.values()) == {ROOM * 100}
        operation = await rig.reconfigure("swap", target)
        assert operation.phase is Phase.SUCCEEDED, operation.message
        assert placement_of(rig.controller.keeper.table) == target
        assert rig.controller.keeper.epoch == operation.epoch == Epoch(1, 5)
        assert [table.operation for table in engine.tables[-4:]] == ["swap#1", "swap#2", "swap#3", "swap"]
        assert all(table.experts_without_replica() == () for table in engine.tables)
        assert (operation.moved_experts, operation.moved_bytes, operation.wave) == (8, 800, 4)
        assert operation.predicted is not None
        assert operation.peak_bytes == operation.predicted.peak_bytes
        assert {worker.peak for worker in rig.workers.up()} == {ROOM}
        assert rig.truthful()


async def test_a_wave_that_fails_leaves_what_the_ones_before_it_did(fake_workers: Any, start_controller: Any) -> None:
    async with start_controller(fake_workers(2, memory_experts=ROOM)) as rig:
        names = await rig.placed(2)
        worker = rig.workers.workers[names[0]]

        def prepare(request: Any) -> Any:
            damaged = control.Refused("checkpoint", "a page differs from its checksum")
            return damaged if request.operation == "swap#2" else worker._answer(request)

        worker.script[control.Prepare] = prepare
        operation = await rig.reconfigure("swap", swapped(rig, names))
        assert operation.phase is Phase.ROLLED_BACK
        assert "in wave 2 of 4" in operation.message
        assert "checksum" in operation.message
        assert operation.epoch == rig.controller.keeper.epoch == Epoch(1, 2)
        assert rig.controller.keeper.table.operation == "swap#1"
        assert operation.moved_experts == 2
        assert rig.truthful()
        worker.script.clear()
        rest = await rig.reconfigure("rest", swapped(rig, names))
        assert rest.phase is Phase.SUCCEEDED
        assert rest.moved_experts == 6


async def test_cancel_between_two_commits(fake_workers: Any, start_controller: Any) -> None:
    async with start_controller(fake_workers(2, memory_experts=ROOM)) as rig:
        names = await rig.placed(2)
        worker = rig.workers.workers[names[0]]
        worker.script[control.Retire] = lambda _: control.Refused("internal", "in use: ask again")
        rig.controller.reconfigure(rig.request("swap", swapped(rig, names)))
        await rig.until(lambda: rig.controller.keeper.epoch == Epoch(1, 2))
        rig.controller.operations.cancel("swap")
        operation = await rig.finished("swap")
        assert operation.phase is Phase.CANCELLED
        assert "after wave 1 of 4" in operation.message
        assert rig.controller.keeper.epoch == Epoch(1, 2)
        assert rig.truthful()


async def test_the_next_controller_finds_a_table_of_half_a_plan(fake_workers: Any, start_controller: Any) -> None:
    from flexpert_workers.pool.view import pool_message

    async with start_controller(fake_workers(2, memory_experts=ROOM)) as rig:
        names = await rig.placed(2)
        rig.workers.workers[names[0]].script[control.Retire] = lambda _: None
        rig.controller.reconfigure(rig.request("swap", swapped(rig, names)))
        await rig.until(lambda: rig.controller.keeper.epoch == Epoch(1, 2))
        await rig.controller.stop()
        rig.workers.workers[names[0]].script.clear()
        async with start_controller(rig.workers) as heir:
            heir.configure(term=2)
            await heir.until(lambda: heir.controller.keeper.epoch.term == 2)
            await heir.controller.operations.settled()
            told = pool_message(heir.controller, pool_pb2.GetPoolRequest())
            assert told.table_operation == "swap#1", "the operator asks for the rest"
            operation = await heir.reconfigure("swap-again", swapped(heir, names))
            assert operation.phase is Phase.SUCCEEDED, operation.message
            assert heir.truthful()


async def test_what_no_wave_can_do_is_refused(fake_workers: Any, start_controller: Any) -> None:
    async with start_controller(fake_workers(2, memory_experts=4)) as rig:
        names = await rig.placed(2)
        with pytest.raises(InvalidPlan, match="memory is 400; raise memoryPerWorker"):
            rig.controller.reconfigure(rig.request("swap", swapped(rig, names)))


async def test_what_is_in_the_domain_already_is_not_predicted_to_be_copied(rig: Any) -> None:
    rig.configure()
    names = await rig.ready(3)
    for number, name in enumerate(names):
        rig.workers.workers[name].domain = "one" if number < 2 else "other"
    operation = await rig.reconfigure("initial", {e: {names[0]: 1.0} for e in rig.spread(names)})
    assert operation.moved_bytes == 800
    await rig.controller.fleet.refresh(names)
    beside = rig.controller.predict(rig.request("x", {e: {names[1]: 1.0} for e in rig.spread(names)}))
    assert (beside.moved_bytes, beside.moved_experts, beside.attached_experts) == (0, 8, 8)
    across = rig.controller.predict(rig.request("x", {e: {names[2]: 1.0} for e in rig.spread(names)}))
    assert (across.moved_bytes, across.attached_experts) == (800, 0)
    endpoints = rig.controller.fleet.copy_endpoints
    assert endpoints(names[1], (names[0], names[2], "")) == (f"fake://{names[2]}",)
    assert endpoints(names[2], (names[0], names[1], "")) == (f"fake://{names[0]}", f"fake://{names[1]}")


async def test_the_steps_of_a_growth_with_a_standby(rig: Any) -> None:
    rig.configure(spec=replace(rig.default_spec, workers=2, standby_workers=1))
    names = await rig.ready(2)
    initial = await rig.reconfigure("initial", rig.spread(names))
    assert initial.step_seconds["start"] > 0, "two workers had to be started"
    rig.configure(spec=replace(rig.default_spec, workers=3, standby_workers=1))
    grown = await rig.reconfigure("grow", rig.spread(await rig.ready(3)))
    assert grown.step_seconds["start"] == 0, "the third was up"
    assert grown.step_seconds["commit"] > 0
    table = RoutingTable.decode(rig.workers.up()[0].table)
    assert table.epoch == grown.epoch
