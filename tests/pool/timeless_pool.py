"""A pool whose time passes as fast as nothing happens in it: the real controller, fake workers, an engine that listens.

`test_pool_properties` drives it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from pool_plans import plan

from flexpert_workers.errors import StaleEpoch
from flexpert_workers.messages import control
from flexpert_workers.pool.controller import PoolController, Settings
from flexpert_workers.pool.exceptions import PoolRefusal
from flexpert_workers.pool.fakes import FakeEngines, FakeWorker
from flexpert_workers.pool.fleet import Patience
from flexpert_workers.pool.leases import Lease, LeaseTerms
from flexpert_workers.pool.reconfigure import Deadlines
from flexpert_workers.pool.state import (
    Cause,
    Condition,
    Engine,
    Expert,
    ModelFacts,
    Placement,
    Request,
)
from flexpert_workers.pool.tables import placement_of
from flexpert_workers.routing import NO_EPOCH, Epoch, RoutingTable

MODEL = ModelFacts("file:///m", "", "Auto", "digest", "MixtralForCausalLM", 2, 3, 2, 100)
EXPERTS = sorted(MODEL.all_experts())
SLOTS = 4
SETTINGS = Settings(
    pool="uid-1",
    round_s=0.002,
    discovery_s=5.0,
    lost_kept_s=0.5,
    patience=Patience(ping_s=0.005, answer_s=1.0, misses=2, audit_s=0.01),
    leases=LeaseTerms(lease_s=30.0, acknowledge_s=0.02),
    deadlines=Deadlines(
        prepare_s=0.2, store_s=1.0, retire_s=0.05, rollback_s=0.05, ask_s=1.0, poll_s=0.001, longest_poll_s=0.005
    ),
)
_Answer = TypeVar("_Answer")


class Timeless(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        select = self._selector.select

        def jump(timeout: float | None = None) -> Any:
            self._now += timeout or 0.0
            return select(0)

        self._selector.select = jump

    def time(self) -> float:
        return self._now


class EngineOfTheTest:
    """Sees tables as an engine does, and acknowledges them while it `listens`."""

    def __init__(self) -> None:
        self.tables: list[RoutingTable] = []
        self.listens = True
        self._engine = Engine("e-1", Condition.READY)
        self._task: asyncio.Task[None] | None = None

    def attach(self, controller: PoolController) -> None:
        self.detach()
        self._task = asyncio.create_task(self._run(controller, controller.engines.register(self._engine)))

    def detach(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self, controller: PoolController, lease: Lease) -> None:
        while True:
            news = await controller.engines.next_news(lease)
            if news is None:  # expelled: an engine attaches again
                lease = controller.engines.register(self._engine)
                continue
            table = RoutingTable.decode(news.table)
            if not self.tables or table.epoch > self.tables[-1].epoch:
                self.tables.append(table)
            if self.listens:
                self._engine = replace(self._engine, epoch=self.tables[-1].epoch)
                controller.engines.renew(lease, self._engine)


class PoolOfTheTest:
    """The pool, and what a test asks of it."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Timeless()
        self.engine = EngineOfTheTest()
        self.published: dict[Epoch, RoutingTable] = {}
        self.faults: list[str] = []
        self.reasons: list[str] = []
        self.seen: dict[str, Epoch] = {}
        self.retried: Request | None = None
        self.placed_before: dict[str, Placement] = {}
        self.term = 1
        self.numbers = iter(range(10**6))

    def teardown(self) -> None:
        self.run(self._stop())
        self.loop.close()

    def run(self, work: Awaitable[_Answer]) -> _Answer:
        async def bounded() -> _Answer:
            async with asyncio.timeout(20):
                return await work

        return self.loop.run_until_complete(bounded())

    def some_time(self) -> None:
        """Let what is under way go on for a little."""

        async def turns() -> None:
            for _ in range(3):
                await self.controller.changes.wait(self.controller.changes.count, 0.002)

        self.run(turns())

    async def until(self, true: Callable[[], object]) -> None:
        while not true():
            await self.controller.changes.wait(self.controller.changes.count, 0.002)

    async def _begin_controller(self, grant: bool = True) -> None:
        async def inspect(source: str, revision: str, dtype: str) -> ModelFacts:
            return replace(MODEL, source=source, revision=revision, dtype=dtype)

        launcher = FakeEngines()
        self.controller = PoolController(
            SETTINGS,
            self.workers,
            launcher,
            self.workers.link,
            inspect,
            clock=self.loop.time,
            new_id=lambda: f"{next(self.numbers):06}",
        )
        publish = self.controller.engines.publish

        def watched(table: RoutingTable) -> None:
            self.faults += self.wrong_with(table)
            self.published.setdefault(table.epoch, table)
            publish(table)

        self.controller.engines.publish = watched  # type: ignore[method-assign]
        quiet = [worker for worker in self.workers.up() if control.Describe in worker.script]
        for worker in quiet:  # a controller that starts waits for the workers that it finds; a hung one is found later
            worker.kill()
        await self.controller.start()
        self.engine.attach(self.controller)
        if grant:
            self.term += 1
            self._configure()

    async def _stop(self) -> None:
        self.engine.detach()
        if hasattr(self, "controller"):
            await self.controller.stop()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def wrong_with(self, table: RoutingTable) -> list[str]:
        """Invariants 1 and 2 at the moment of publishing."""
        wrong = []
        older = self.published.get(table.epoch)
        if older is not None and older.encode() != table.encode():
            wrong.append(f"{table.epoch} is two tables")
        if older is None and self.published and table.epoch <= max(self.published):
            wrong.append(f"{table.epoch} comes after {max(self.published)}")
        live, own = self.controller.fleet.live(), table.epoch.term == self.controller.keeper.term
        for expert, shares in placement_of(table).items():
            if own and older is None and not any(self.has(worker, expert) for worker in shares if worker in live):
                wrong.append(f"{table.epoch}: no live worker has {expert}")
        for address in table.workers:
            worker = self.workers.workers[address.worker]
            stored = RoutingTable.decode(worker.table).epoch if worker.table else NO_EPOCH
            if own and older is None and worker.up and stored < table.epoch and not worker.script:
                wrong.append(f"{table.epoch} is published before {address.worker} has stored it")
        return wrong

    def has(self, worker: str, expert: Expert) -> bool:
        return expert in self.workers.workers[worker].experts

    def died_with(self, expert: Expert) -> bool:
        """Whether the only ones that held an expert are dead."""
        holders = [worker for worker in self.workers.workers.values() if expert in worker.experts]
        return bool(holders) and not any(worker.up for worker in holders)

    def lowest_live(self, seen: Epoch) -> Epoch:
        """The least that a new controller has to find: what the engine saw, if a worker that has it lives."""
        held = [RoutingTable.decode(one.table).epoch for one in self.workers.up() if one.table]
        return min(seen, max(held, default=NO_EPOCH))

    def configure(self) -> None:
        self.run(self._call(self._configure))

    def _configure(self) -> None:
        try:
            self.controller.configure(self.controller.incarnation, self.term, 1, self.spec)
        except PoolRefusal:
            self.term += 1
            self.controller.configure(self.controller.incarnation, self.term, 1, self.spec)

    def ask(self, target: Placement, cause: Cause) -> None:
        """A plan as the operator makes it: from what the controller tells."""
        name = f"op-{next(self.numbers)}"
        request = plan(self.controller, name, target, cause)
        before = placement_of(self.controller.keeper.table)
        if self.refused(lambda: self.controller.reconfigure(request)) is not None:
            self.retried = request
            self.placed_before[name] = before

    def refused(self, act: Callable[[], Any]) -> Any:
        """What `act` returns, or None when the controller refuses it with a reason."""
        try:
            return self.loop.run_until_complete(self._call(act))
        except (PoolRefusal, StaleEpoch) as refusal:
            self.reasons.append(str(refusal))
            return None

    async def _call(self, act: Callable[[], _Answer]) -> _Answer:
        return act()

    def worker_in(self, slot: int) -> FakeWorker | None:
        """The worker that runs in a slot."""
        listed = self.loop.run_until_complete(self.workers.list())
        return next((self.workers.workers[one.worker] for one in listed if one.slot == f"slot-{slot}"), None)

    def up(self) -> list[FakeWorker]:
        return self.workers.up() if hasattr(self, "workers") else []

    def ready(self) -> list[str]:
        return [one.id for one in self.controller.fleet.all() if one.condition is Condition.READY]

    def settled(self) -> bool:
        """Nobody is missing that could be there, and nothing runs."""
        wanted = self.spec.workers or 0
        able = [one for one in self.controller.fleet.all() if one.live]
        return (
            len(able) == SLOTS
            and len(self.ready()) >= wanted
            and self.controller.operations.running is None
            and not (self.controller.keeper.foreign_term and self.fits())
        )

    def served(self) -> bool:
        """Every expert has a live replica, unless there is no room for all of them."""
        table = self.controller.keeper.table
        if table is None:
            return False
        return not self.fits() or self.controller.lost_experts() == ()

    def fits(self) -> bool:
        """Whether all experts find room on the workers that serve."""
        return len(self.ready()) * self.room >= len(EXPERTS)
