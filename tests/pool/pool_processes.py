"""A controller over real worker processes, and a dispatch client that never stops computing."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flexpert_workers.dispatch import DispatchClient, TableHolder
from flexpert_workers.pool.controller import PoolController
from flexpert_workers.pool.fakes import FakeEngines
from flexpert_workers.pool.links import ControlLink
from flexpert_workers.pool.state import Condition, ModelFacts, PoolSpec
from flexpert_workers.pool.subprocesses import SubprocessWorkers
from flexpert_workers.routing import RoutingTable

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
            POOL, self._digest, self.tables, deadline_s=900.0, hang_timeout_s=60.0, refresh=lambda: None
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
        while (news := await registry.next_news(lease)) is not None:
            table = RoutingTable.decode(news.table)
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
