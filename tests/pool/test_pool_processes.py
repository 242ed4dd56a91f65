"""The controller with real worker processes and a tiny checkpoint, while a dispatch client never stops computing."""

import asyncio
import os
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flexpert_workers.dispatch import DispatchClient, TableHolder
from flexpert_workers.pool.controller import PoolController
from flexpert_workers.pool.fakes import FakeEngines
from flexpert_workers.pool.links import ControlLink
from flexpert_workers.pool.state import Cause, Condition, ModelFacts, Phase, PoolSpec, Slot
from flexpert_workers.pool.subprocesses import Host, SubprocessWorkers
from flexpert_workers.routing import Epoch, RoutingTable

POOL = "uid-1"
PATIENCE_S = 240.0
LAYERS, EXPERTS, ROWS = 2, 8, 6


class Dispatching:
    """A thread that dispatches every layer again and again and compares each answer with the model's own."""

    def __init__(self, source: str, digest: str) -> None:
        import torch
        import transformers

        self.tables = TableHolder()
        self.rounds = 0
        self.wrong: list[str] = []
        self._torch = torch
        self._model = transformers.AutoModelForCausalLM.from_pretrained(source.removeprefix("file://"))
        self._digest = digest
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dispatching", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        client = DispatchClient(
            POOL, self._digest, self.tables, deadline_s=120.0, hang_timeout_s=60.0, refresh=lambda: None
        )
        try:
            while not self._ending.is_set():
                for layer in range(LAYERS):
                    self._compare(client, layer)
                self.rounds += 1
        except BaseException as failure:
            self.wrong.append(repr(failure))
            raise
        finally:
            client.close()

    def _compare(self, client: DispatchClient, layer: int) -> None:
        torch = self._torch
        generator = torch.Generator().manual_seed(self.rounds)
        hidden = torch.randn(ROWS, 64, generator=generator)
        weights, index = torch.rand(ROWS, EXPERTS, generator=generator).topk(2)
        answer = client.dispatch(layer, hidden, index, weights)
        experts = self._model.model.layers[layer].mlp.experts
        experts.config._experts_implementation = "eager"
        with torch.no_grad():
            expected = experts(hidden, index, weights)
        if not torch.allclose(answer, expected, atol=1e-5):
            self.wrong.append(f"round {self.rounds} layer {layer}")


class Processes:
    """A controller over real workers; `again` makes the next incarnation."""

    def __init__(self, source: str, launcher: SubprocessWorkers, settings: Any, rig: Any) -> None:
        self.spec = PoolSpec(
            uid=POOL,
            name="tiny",
            namespace="default",
            source=source,
            memory_per_worker_bytes=1 << 28,
            worker_threads=1,
        )
        self.launcher = launcher
        self._settings = settings
        self._rig = rig
        self._running: list[PoolController] = []

    async def again(self, change: Callable[[Any], Any] = lambda settings: settings) -> Any:
        await self._stop()
        return await self.beside(change)

    async def beside(self, change: Callable[[Any], Any] = lambda settings: settings) -> Any:
        """One more controller, while earlier ones believe that they are the only one."""
        settings = change(self._settings())
        controller = PoolController(settings, self.launcher, FakeEngines(), ControlLink, self._inspect)
        self._running.append(controller)
        await controller.start()
        return self._rig(controller, self.launcher)

    async def close(self) -> None:
        await self._stop()
        self.launcher.kill_all()

    async def _stop(self) -> None:
        while self._running:
            await self._running.pop().stop()

    async def _inspect(self, source: str, revision: str, dtype: str) -> ModelFacts:
        return await asyncio.to_thread(facts_of, source, revision, dtype)


def facts_of(source: str, revision: str, dtype: str) -> ModelFacts:
    from flexpert_workers.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(source, dtype)
    shape = (checkpoint.num_layers, checkpoint.num_experts, checkpoint.experts_per_token)
    page_bytes = checkpoint.layout.page_bytes
    return ModelFacts(source, revision, dtype, checkpoint.digest, checkpoint.architecture, *shape, page_bytes)


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


def patient(settings: Any) -> Any:
    """A busy machine is slow: only dead workers are to be taken for dead, and the engine here reports rarely."""
    deadlines = replace(settings.deadlines, prepare_s=120.0, ask_s=60.0, store_s=60.0)
    return replace(
        settings,
        patience=replace(settings.patience, answer_s=60.0),
        leases=replace(settings.leases, lease_s=3600.0),
        deadlines=deadlines,
    )


def impatient(settings: Any) -> Any:
    """A worker that keeps silent for a while is taken for dead, but not one that is slow on a busy machine."""
    return replace(
        settings,
        patience=replace(settings.patience, answer_s=5.0, misses=3),
        deadlines=replace(settings.deadlines, ask_s=5.0, store_s=5.0),
    )


def engine_of(rig: Any, dispatching: Dispatching) -> "asyncio.Task[None]":
    """An engine's lease: every table goes to the dispatching thread, and is acknowledged."""
    from flexpert_workers.pool.state import Engine

    async def attach() -> None:
        registry = rig.controller.engines
        engine = Engine("e-1", Condition.READY)
        lease = registry.register(engine)
        while (encoded := await registry.next_table(lease)) is not None:
            table = RoutingTable.decode(encoded)
            dispatching.tables.publish(table)
            registry.renew(lease, replace(engine, epoch=table.epoch))

    return asyncio.create_task(attach())


def spread(names: list[str]) -> dict[tuple[int, int], dict[str, float]]:
    return {
        (number // EXPERTS, number % EXPERTS): {names[number % len(names)]: 1.0} for number in range(LAYERS * EXPERTS)
    }


def differing(rig: Any, source: str) -> list[tuple[str, tuple[int, int]]]:
    """Experts whose bytes, as a worker's page owner has them, are not the checkpoint's."""
    from flexpert_workers.checkpoint import open_checkpoint
    from flexpert_workers.transfer import Identity, PageFetcher

    checkpoint = open_checkpoint(source, "Auto")
    fetcher = PageFetcher(Identity(POOL, checkpoint.digest))
    wrong = []
    try:
        for worker in rig.controller.fleet.all():
            for expert in worker.experts:
                page = bytearray(checkpoint.layout.page_bytes)
                fetcher.fetch(worker.state.transfer_endpoint, expert, memoryview(page))
                if page != checkpoint.read_expert(*expert):
                    wrong.append((worker.id, expert))
    finally:
        fetcher.close()
    return wrong


async def rounds(rig: Any, dispatching: Dispatching, count: int) -> None:
    until = dispatching.rounds + count
    await rig.until(lambda: dispatching.rounds >= until or dispatching.wrong, timeout_s=PATIENCE_S)
    assert dispatching.wrong == []


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
