import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from pool_plans import plan

from flexpert_workers.errors import CheckpointError
from flexpert_workers.pool.controller import PoolController, Settings
from flexpert_workers.pool.fakes import FakeEngines, FakeWorkers
from flexpert_workers.pool.fleet import Patience
from flexpert_workers.pool.leases import LeaseTerms
from flexpert_workers.pool.reconfigure import Deadlines
from flexpert_workers.pool.state import (
    Cause,
    Condition,
    Engine,
    ModelFacts,
    Operation,
    Phase,
    Placement,
    PoolSpec,
    Request,
    Slot,
)
from flexpert_workers.routing import RoutingTable

POOL = "uid-1"
MODEL = ModelFacts("file:///model", "", "Auto", "digest", "MixtralForCausalLM", 2, 4, 2, 100)
SPEC = PoolSpec(uid=POOL, name="tiny", namespace="default", source=MODEL.source, memory_per_worker_bytes=10_000)


def settings() -> Settings:
    return Settings(
        pool=POOL,
        round_s=0.02,
        discovery_s=2.0,
        patience=Patience(ping_s=0.05, answer_s=0.2, misses=2, audit_s=0.05),
        leases=LeaseTerms(lease_s=5.0, acknowledge_s=0.2),
        deadlines=Deadlines(prepare_s=5.0, store_s=1.0, retire_s=1.0, rollback_s=1.0, ask_s=1.0, longest_poll_s=0.02),
    )


@dataclass
class Rig:
    """A controller among fakes."""

    controller: PoolController
    workers: FakeWorkers
    engines: FakeEngines = field(default_factory=FakeEngines)
    term: int = 1
    default_spec: PoolSpec = SPEC

    async def until(self, true: Callable[[], object], timeout_s: float = 60.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not true():
                await self.controller.changes.wait(self.controller.changes.count, 0.02)

    def configure(self, term: int | None = None, spec: PoolSpec = SPEC) -> None:
        self.controller.configure(self.controller.incarnation, self.term if term is None else term, 1, spec)

    async def ready(self, count: int, timeout_s: float = 60.0) -> list[str]:
        def names() -> list[str]:
            workers = self.controller.fleet.all()
            return [worker.id for worker in workers if worker.condition is Condition.READY]

        await self.until(lambda: len(names()) == count, timeout_s)
        return names()

    def spread(self, names: list[str]) -> Placement:
        """Every expert on one worker, round and round."""
        experts = sorted(MODEL.all_experts())
        return {expert: {names[number % len(names)]: 1.0} for number, expert in enumerate(experts)}

    def request(self, name: str, target: Placement, cause: Cause = Cause.SCALE) -> Request:
        """The plan that leads to `target` from what workers hold."""
        return plan(self.controller, name, target, cause)

    async def reconfigure(self, name: str, target: Placement, cause: Cause = Cause.SCALE) -> Operation:
        self.controller.reconfigure(self.request(name, target, cause))
        return await self.finished(name)

    async def finished(self, name: str) -> Operation:
        await self.until(lambda: self.controller.operations.get(name).phase.finished, timeout_s=240)
        await self.controller.operations.settled()
        return self.controller.operations.get(name)

    async def placed(self, count: int) -> list[str]:
        """A pool that serves with `count` workers."""
        self.configure()
        names = await self.ready(count)
        operation = await self.reconfigure("initial", self.spread(names), Cause.INITIAL)
        assert operation.phase is Phase.SUCCEEDED, operation.message
        return names

    def truthful(self) -> bool:
        """Every replica that the table names is on a worker that is up and holds it."""
        table = self.controller.keeper.table
        assert table is not None
        return all(
            self.workers.workers[address.worker].up
            and table.experts_of(address.worker) <= self.workers.workers[address.worker].experts
            for address in table.workers
        )


@asynccontextmanager
async def running(workers: FakeWorkers, inspector: object = None) -> AsyncIterator[Rig]:
    async def inspect(source: str, revision: str, dtype: str) -> ModelFacts:
        if "missing" in source:
            raise CheckpointError(f"there is no checkpoint at {source}")
        return replace(workers.model, source=source, revision=revision, dtype=dtype)

    engines = FakeEngines()
    controller = PoolController(settings(), workers, engines, workers.link, inspect)
    await controller.start()
    try:
        yield Rig(controller, workers, engines)
    finally:
        await controller.stop()


@pytest.fixture
def fake_workers() -> Callable[..., FakeWorkers]:
    def make(count: int, memory_experts: int = 10_000) -> FakeWorkers:
        return FakeWorkers(MODEL, [slot(number) for number in range(count)], memory_experts)

    return make


def slot(number: int) -> Slot:
    return Slot(f"slot-{number}", pod=f"pod-{number}", node=f"node-{number}")


@pytest.fixture(scope="session")
def new_slot() -> Callable[[int], Slot]:
    return slot


@pytest.fixture
def start_controller() -> Callable[[FakeWorkers], object]:
    return running


@pytest.fixture
async def rig(fake_workers: Callable[..., FakeWorkers]) -> AsyncIterator[Rig]:
    async with running(fake_workers(3)) as made:
        yield made


@dataclass
class AttachedEngine:
    """An engine of the registry that acknowledges what it is told, while it `listens`."""

    rig: Rig
    engine: Engine
    listens: bool = True
    tables: list[RoutingTable] = field(default_factory=list)

    async def run(self) -> None:
        registry = self.rig.controller.engines
        lease = registry.register(self.engine)
        while (news := await registry.next_news(lease)) is not None:
            table = RoutingTable.decode(news.table)
            self.tables.append(table)
            if self.listens:
                self.engine = replace(self.engine, epoch=table.epoch)
                registry.renew(lease, self.engine)


@pytest.fixture
async def attach() -> AsyncIterator[Callable[[Rig, str], AttachedEngine]]:
    tasks: list[asyncio.Task[None]] = []

    def make(rig: Rig, name: str) -> AttachedEngine:
        engine = AttachedEngine(rig, Engine(name, Condition.READY, endpoint=f"tcp://{name}"))
        tasks.append(asyncio.create_task(engine.run()))
        return engine

    yield make
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(scope="session")
def controller_settings() -> Callable[[], Settings]:
    return settings


@pytest.fixture(scope="session")
def rig_type() -> type[Rig]:
    return Rig


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Source of a Mixtral with random weights: 2 MoE layers of 8 experts, top-2."""
    import torch
    import transformers

    torch.manual_seed(7)
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=128,
    )
    folder = tmp_path_factory.mktemp("tiny")
    transformers.MixtralForCausalLM(config).save_pretrained(folder)
    return f"file://{folder}"
