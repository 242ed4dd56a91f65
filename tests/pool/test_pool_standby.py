"""Warm standbys: who is promoted when, among fake workers."""

from dataclasses import replace
from typing import Any

import pytest

from flexpert_proto import pool_pb2
from flexpert_workers.pool.exceptions import InvalidPlan
from flexpert_workers.pool.state import Cause, Condition, Phase
from flexpert_workers.pool.view import pool_message


def standbys(rig: Any) -> list[str]:
    return [worker.id for worker in rig.controller.fleet.all() if worker.condition is Condition.STANDBY]


async def pool_of(rig: Any, workers: int) -> list[str]:
    """A pool that serves with `workers` workers and has the other one stand by."""
    want(rig, workers)
    names = await rig.ready(workers)
    await rig.until(lambda: len(standbys(rig)) == 3 - workers)
    operation = await rig.reconfigure("initial", rig.spread(names), Cause.INITIAL)
    assert operation.phase is Phase.SUCCEEDED, operation.message
    return names


def want(rig: Any, workers: int) -> None:
    spec = replace(rig.controller.spec or rig.default_spec, workers=workers, standby_workers=1)
    rig.configure(spec=spec)


async def test_a_standby_holds_nothing_and_is_not_placed_on(rig: Any) -> None:
    names = await pool_of(rig, 2)
    (standby,) = standbys(rig)
    assert rig.workers.workers[standby].experts == set()
    with pytest.raises(InvalidPlan, match=f"placed on {standby}"):
        rig.controller.reconfigure(rig.request("wrong", rig.spread([*names, standby])))
    message = pool_message(rig.controller, pool_pb2.GetPoolRequest(with_placement=True))
    states = {worker.id: worker.State.Name(worker.state) for worker in message.workers}
    assert states == {names[0]: "READY", names[1]: "READY", standby: "STANDBY"}
    assert (message.wanted_workers, message.wanted_standby_workers) == (2, 1)
    assert message.table_operation == "initial"


async def test_growth_takes_the_standby_at_once_and_another_comes_behind(rig: Any, new_slot: Any) -> None:
    await pool_of(rig, 2)
    (standby,) = standbys(rig)
    want(rig, 3)
    assert rig.controller.fleet.workers[standby].condition is Condition.READY, "nothing had to start"
    operation = await rig.reconfigure("grow", rig.spread(await rig.ready(3)))
    assert operation.phase is Phase.SUCCEEDED
    rig.workers.add_slot(new_slot(3))
    await rig.until(lambda: len(standbys(rig)) == 1)
    assert rig.truthful()


async def test_a_dead_workers_experts_go_to_the_standby(rig: Any) -> None:
    names = await pool_of(rig, 2)
    (standby,) = standbys(rig)
    lost = set(rig.workers.workers[names[0]].experts)
    kept = set(rig.workers.workers[names[1]].experts)
    rig.workers.workers[names[0]].kill()
    await rig.until(lambda: rig.controller.operations.last.cause is Cause.FAILURE)
    recovery = await rig.finished(rig.controller.operations.last.id)
    assert recovery.phase is Phase.SUCCEEDED
    assert rig.workers.workers[standby].experts == lost
    assert rig.workers.workers[names[1]].experts == kept
    await rig.until(lambda: len(standbys(rig)) == 1)
    assert set(await rig.ready(2)) == {names[1], standby}
    assert rig.truthful()


async def test_a_growth_that_is_taken_back_leaves_the_standby(rig: Any) -> None:
    await pool_of(rig, 2)
    (standby,) = standbys(rig)
    want(rig, 3)
    await rig.ready(3)
    want(rig, 2)
    assert standbys(rig) == [standby]


async def test_the_standby_of_an_earlier_controller_stays_one(rig: Any, start_controller: Any) -> None:
    names = await pool_of(rig, 2)
    (standby,) = standbys(rig)
    await rig.controller.stop()
    async with start_controller(rig.workers) as heir:
        assert set(await heir.ready(2)) == set(names), "they hold experts"
        heir.configure(term=2, spec=replace(heir.default_spec, workers=2, standby_workers=1))
        assert standbys(heir) == [standby]


async def test_a_draining_standby_ends(rig: Any) -> None:
    await pool_of(rig, 2)
    (standby,) = standbys(rig)
    rig.controller.drain((standby,), undo=False)
    await rig.until(lambda: not rig.workers.workers[standby].up)
    rig.controller.drain((standby,), undo=True)
    await rig.until(lambda: len(standbys(rig)) == 1)
