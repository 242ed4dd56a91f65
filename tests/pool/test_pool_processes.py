"""The controller with real worker processes and a tiny checkpoint, while a dispatch client never stops computing."""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pool_processes import (
    EXPERTS,
    LAYERS,
    PATIENCE_S,
    POOL,
    Dispatching,
    Processes,
    differing,
    engine_of,
    impatient,
    patient,
    rounds,
    spread,
)

from flexpert_workers.pool.controller import PoolController
from flexpert_workers.pool.fakes import FakeEngines
from flexpert_workers.pool.links import ControlLink
from flexpert_workers.pool.state import Cause, Condition, ModelFacts, Phase, PoolSpec, Slot
from flexpert_workers.pool.subprocesses import Host, SubprocessWorkers
from flexpert_workers.routing import Epoch


@pytest.fixture
def socket_folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="fxp") as folder:
        yield folder


@pytest.fixture
async def processes(
    tiny_checkpoint: str, socket_folder: str, controller_settings: Any, rig_type: Any, new_slot: Callable[[int], Slot]
) -> AsyncIterator[Processes]:
    launcher = SubprocessWorkers([new_slot(0), new_slot(1)], Host(socket_dir=str(Path(socket_folder) / "s")))
    made = Processes(tiny_checkpoint, launcher, lambda: patient(controller_settings()), rig_type)
    try:
        yield made
    finally:
        await made.close()


@pytest.mark.timeout(900)
async def test_grow_shrink_die_restart_under_dispatch(processes: Processes, new_slot: Callable[[int], Slot]) -> None:
    rig = await processes.again()
    rig.controller.configure(rig.controller.incarnation, 1, 1, processes.spec)
    names = await rig.ready(2, timeout_s=PATIENCE_S)
    assert (await rig.reconfigure("initial", spread(names), Cause.INITIAL)).phase is Phase.SUCCEEDED
    dispatching = Dispatching(processes.spec.source, rig.controller.model.digest)
    engine = engine_of(rig, dispatching)
    dispatching.start()
    try:
        await rounds(rig, dispatching, 3)

        processes.launcher.add_slot(new_slot(2))
        grown = await rig.ready(3, timeout_s=PATIENCE_S)
        operation = await rig.reconfigure("grow", spread(grown))
        assert operation.phase is Phase.SUCCEEDED, operation.message
        assert operation.moved_bytes == operation.moved_experts * rig.controller.model.expert_bytes > 0
        await rounds(rig, dispatching, 3)

        (new,) = set(grown) - set(names)
        rig.controller.drain((new,), undo=False)
        operation = await rig.reconfigure("shrink", spread(names))
        assert operation.phase is Phase.SUCCEEDED, operation.message
        await rig.until(lambda: rig.controller.fleet.workers[new].stopped)
        await processes.launcher.remove_slot("slot-2")
        await rounds(rig, dispatching, 3)

        os.kill(processes.launcher.pid(names[0]), signal.SIGKILL)
        await rig.until(lambda: rig.controller.operations.last.cause is Cause.FAILURE)
        recovery = await rig.finished(rig.controller.operations.last.id)
        assert recovery.phase is Phase.SUCCEEDED, recovery.message
        assert recovery.moved_experts == LAYERS * EXPERTS // 2
        await rounds(rig, dispatching, 3)
        assert names[0] not in await rig.ready(2, timeout_s=PATIENCE_S)

        table, workers = rig.controller.keeper.table, await rig.ready(2, timeout_s=PATIENCE_S)
        engine.cancel()
        rig = await processes.again()
        assert rig.controller.keeper.table == table
        assert rig.controller.keeper.term == 0
        engine = engine_of(rig, dispatching)
        rig.controller.configure(rig.controller.incarnation, 2, 1, processes.spec)
        await rig.until(lambda: rig.controller.keeper.epoch == Epoch(2, table.epoch.sequence + 1))
        assert await rig.ready(2, timeout_s=PATIENCE_S) == workers
        await rounds(rig, dispatching, 3)
        assert sum(len(worker.experts) for worker in rig.controller.fleet.all()) >= LAYERS * EXPERTS
        assert await asyncio.to_thread(differing, rig, processes.spec.source) == []
    finally:
        dispatching.stop()
        engine.cancel()
    assert dispatching.wrong == []


async def test_a_worker_without_a_checkpoint_says_why(
    socket_folder: str, controller_settings: Any, rig_type: Any, new_slot: Callable[[int], Slot]
) -> None:
    launcher = SubprocessWorkers([new_slot(0)], Host(socket_dir=str(Path(socket_folder) / "s")))

    async def believes(source: str, revision: str, dtype: str) -> ModelFacts:
        return ModelFacts(source, revision, dtype, "digest", "MixtralForCausalLM", LAYERS, EXPERTS, 2, 100)

    controller = PoolController(controller_settings(), launcher, FakeEngines(), ControlLink, believes)
    await controller.start()
    rig = rig_type(controller, launcher)
    try:
        spec = PoolSpec(uid=POOL, name="tiny", namespace="default", source=f"file://{socket_folder}/nothing")
        controller.configure(controller.incarnation, 1, 1, spec)
        await rig.until(lambda: "did not start in slot slot-0" in controller.message(), timeout_s=PATIENCE_S)
        assert f"{socket_folder}/nothing" in controller.message()
    finally:
        await controller.stop()
        launcher.kill_all()


@pytest.mark.timeout(900)
async def test_a_stopped_worker_and_two_controllers(processes: Processes, new_slot: Callable[[int], Slot]) -> None:
    """A worker that hangs spoils the operation it is part of and nothing else; a standby takes its place."""
    processes.launcher.add_slot(new_slot(2))
    spec = replace(processes.spec, workers=2, standby_workers=1)
    rig = await processes.again(impatient)
    rig.controller.configure(rig.controller.incarnation, 1, 1, spec)
    names = await rig.ready(2, timeout_s=PATIENCE_S)
    assert (await rig.reconfigure("initial", spread(names), Cause.INITIAL)).phase is Phase.SUCCEEDED
    standby = await standing_by(rig)
    dispatching = Dispatching(processes.spec.source, rig.controller.model.digest)
    engine = engine_of(rig, dispatching)
    dispatching.start()
    try:
        await rounds(rig, dispatching, 3)
        os.kill(processes.launcher.pid(names[0]), signal.SIGSTOP)
        operation = await rig.reconfigure("hung", spread(names[::-1]))
        assert operation.phase is Phase.ROLLED_BACK
        assert names[0] in operation.message
        await rig.until(lambda: names[0] not in {one.worker for one in rig.controller.keeper.table.workers}, PATIENCE_S)
        await rounds(rig, dispatching, 3)
        assert set(await rig.ready(2, timeout_s=PATIENCE_S)) == {standby, names[1]}
        assert rig.controller.operations.last.cause is Cause.FAILURE

        await standing_by(rig)
        heir = await processes.beside(impatient)
        heir.controller.configure(heir.controller.incarnation, 2, 1, spec)
        await heir.until(lambda: heir.controller.keeper.epoch.term == 2, PATIENCE_S)
        await heir.controller.operations.settled()
        late = await rig.reconfigure("late", spread([names[1], standby]))
        assert late.phase is Phase.ROLLED_BACK
        assert late.message
        assert rig.controller.keeper.term == 0
        engine.cancel()
        engine = engine_of(heir, dispatching)
        await rounds(heir, dispatching, 3)
        assert heir.controller.keeper.epoch.term == 2
    finally:
        dispatching.stop()
        engine.cancel()
    assert dispatching.wrong == []


async def standing_by(rig: Any) -> str:
    """The one worker that stands by, as soon as there is one."""

    def found() -> list[str]:
        return [one.id for one in rig.controller.fleet.all() if one.condition is Condition.STANDBY]

    await rig.until(lambda: len(found()) == 1, PATIENCE_S)
    return found()[0]
