"""What holds in every state that a pool can be brought into: a state machine of the real controller and fake workers.

Rules scale, rebalance, kill and hang workers, kill the controller, cancel and retry; between them everything else runs
on, in a time that passes as fast as nothing happens in it. After every rule the invariants of DESIGN §6 are checked,
each by a method of its own. Names and the clock are the machine's own, so a failure can be repeated and made small:

1. `every_table_was_whole_when_published`: every expert had a live replica; `epochs_only_grow`.
2. `a_table_never_changes_and_its_workers_have_it`: one epoch is one table, stored on the live workers that it names.
3. `no_worker_and_no_engine_goes_back`: what a worker stored and an engine saw never gets older.
4. `a_stale_engine_is_slow_never_wrong`: an expert that the engine's table gives to nobody who has it was lost by a
   worker's death or a newer table has it.
5. `what_was_undone_left_the_table`: an operation that rolled back has the placement before it in force; one at a time.
6. `silence_ends_by_itself`: nothing waits for a silent engine or worker for ever (`heal_and_settle` comes to an end).
7. `a_new_controller_goes_on`: it adopts a table that is not older than what any engine saw.
8. `bytes_are_the_checkpoints`, `memory_is_bounded`, `standbys_hold_nothing`: of every resident expert, worker, standby.

What needs tokens (8 and 9 of DESIGN §6: requests and their text) is in `test_pool_processes` and the end-to-end tests.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from flexpert_workers.errors import StaleEpoch
from flexpert_workers.messages import control
from flexpert_workers.pool.controller import PoolController, Settings
from flexpert_workers.pool.exceptions import PoolRefusal
from flexpert_workers.pool.fakes import FakeEngines, FakeWorker, FakeWorkers, page_of
from flexpert_workers.pool.fleet import Patience
from flexpert_workers.pool.leases import Lease, LeaseTerms
from flexpert_workers.pool.reconfigure import Deadlines
from flexpert_workers.pool.state import (
    Cause,
    Condition,
    Engine,
    Expert,
    ModelFacts,
    Move,
    Phase,
    Placement,
    PoolSpec,
    Request,
    Slot,
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
FAILURES = {
    "no room": (control.Prepare, control.Refused("capacity", "the budget is spent")),
    "a damaged page": (
        control.AskPrepare,
        control.PrepareStatus("", False, 0, 0, 0, "it differs from its checksum"),
    ),
    "a full disk": (control.StoreTable, control.Refused("internal", "no space left on device")),
    "in use": (control.Retire, control.Refused("internal", "in use: ask again")),
}
SLOT = st.integers(0, SLOTS - 1)
CHOICES = st.lists(st.tuples(SLOT, SLOT), min_size=len(EXPERTS), max_size=len(EXPERTS))
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


class Pool(RuleBasedStateMachine):
    """A pool of up to four workers with room for a few experts each."""

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

    # ---- the world

    @initialize(room=st.integers(3, 7), workers=st.integers(2, 3), standby=st.integers(0, 1))
    def begin(self, room: int, workers: int, standby: int) -> None:
        slots = [Slot(f"slot-{number}", pod=f"pod-{number}") for number in range(SLOTS)]
        self.workers = FakeWorkers(MODEL, slots, memory_experts=room)
        self.room, self.standby = room, standby
        self.spec = PoolSpec("uid-1", "tiny", "default", MODEL.source, workers=workers, standby_workers=standby)
        self.run(self._begin_controller())
        self.run(self.until(lambda: len(self.ready()) == workers))
        ready = self.ready()
        target = {expert: {ready[number % len(ready)]: 1.0} for number, expert in enumerate(EXPERTS)}
        self.ask(target, Cause.INITIAL)
        self.run(self.until(lambda: self.controller.keeper.table is not None))

    @rule(workers=st.integers(1, SLOTS))
    def scale(self, workers: int) -> None:
        self.spec = replace(self.spec, workers=workers)
        self.configure()
        self.some_time()

    @rule(choices=CHOICES, wait=st.booleans())
    def rebalance(self, choices: list[tuple[int, int]], wait: bool) -> None:
        ready = self.ready()
        if not ready:
            return
        rows = {
            expert: {ready[number % len(ready)] for number in choice}
            for expert, choice in zip(EXPERTS, choices, strict=True)
        }
        self.ask({expert: {worker: 1 / len(row) for worker in row} for expert, row in rows.items()}, Cause.REBALANCE)
        self.run(self.until(lambda: self.controller.operations.running is None) if wait else asyncio.sleep(0))

    @rule(slot=SLOT)
    def kill_worker(self, slot: int) -> None:
        worker = self.worker_in(slot)
        if worker is not None:
            self.run(self._call(worker.kill))
        self.some_time()

    @rule(slot=SLOT)
    def hang_worker(self, slot: int) -> None:
        """It is stopped, or cut off, but alive: nothing that it is asked comes back."""
        worker = self.worker_in(slot)
        if worker is not None:
            worker.script = dict.fromkeys(control.ControlRequest.__args__, lambda _: None)
        self.some_time()

    @rule(slot=SLOT, what=st.sampled_from(sorted(FAILURES)))
    def spoil(self, slot: int, what: str) -> None:
        """From now on a worker refuses one kind of request."""
        worker = self.worker_in(slot)
        if worker is not None:
            kind, answer = FAILURES[what]
            worker.script[kind] = lambda _: answer
        self.some_time()

    @rule(slot=SLOT)
    def slow_down(self, slot: int) -> None:
        worker = self.worker_in(slot)
        if worker is not None:
            worker.gate.clear()

    @rule()
    def heal(self) -> None:
        for worker in self.workers.up():
            worker.script.clear()
            worker.gate.set()
        self.some_time()

    @rule(listens=st.booleans())
    def silence_engine(self, listens: bool) -> None:
        self.engine.listens = listens

    @rule(grant=st.booleans())
    def kill_controller(self, grant: bool) -> None:
        self.run(self.controller.stop())
        before = self.engine.tables[-1].epoch if self.engine.tables else NO_EPOCH
        hung = any(worker.script or not worker.gate.is_set() for worker in self.workers.up())
        self.run(self._begin_controller(grant))
        if not hung:
            assert self.controller.keeper.epoch >= self.lowest_live(before), "a_new_controller_goes_on"
        self.some_time()

    @rule()
    def grant_term(self) -> None:
        self.configure()
        self.some_time()

    @rule()
    def cancel(self) -> None:
        running = self.controller.operations.running
        if running is not None:
            self.refused(lambda: self.controller.operations.cancel(running.request.operation))
        self.some_time()

    @rule()
    def retry(self) -> None:
        """The same request again is the same operation, whatever became of it."""
        request = self.retried
        if request is not None and self.controller.operations.find(request.operation) is not None:

            async def again() -> None:
                running = self.controller.operations.running
                assert self.controller.reconfigure(request).id == request.operation
                assert self.controller.operations.running is running, "nothing begins anew"

            self.run(again())
        self.some_time()

    @rule()
    def heal_and_settle(self) -> None:
        """silence_ends_by_itself: with all well again every expert is served, and no page is left over."""
        for worker in self.workers.up():
            worker.script.clear()
            worker.gate.set()
        self.configure()
        self.run(self.until(lambda: self.settled() and self.served()))
        ready = self.ready()
        if len(ready) * (self.room - 1) < len(EXPERTS):
            return
        target = {expert: {ready[number % len(ready)]: 1.0} for number, expert in enumerate(EXPERTS)}
        self.engine.listens = True
        self.ask(target, Cause.SCALE)
        self.run(self.until(lambda: self.settled() and self.served()))
        if self.controller.operations.last is not None and self.controller.operations.last.phase is Phase.SUCCEEDED:
            table = self.controller.keeper.table
            assert table is not None
            for worker in self.workers.up():
                assert worker.experts == table.experts_of(worker.worker), "no page is left over"

    # ---- what holds always

    @invariant()
    def every_table_was_whole_when_published(self) -> None:
        assert self.faults == []

    @invariant()
    def a_table_never_changes_and_its_workers_have_it(self) -> None:
        for table in self.engine.tables:
            assert self.published[table.epoch].encode() == table.encode()

    @invariant()
    def no_worker_and_no_engine_goes_back(self) -> None:
        for name, worker in getattr(self, "workers", FakeWorkers(MODEL, ())).workers.items():
            epoch = RoutingTable.decode(worker.table).epoch if worker.table else NO_EPOCH
            assert epoch >= self.seen.get(name, NO_EPOCH)
            self.seen[name] = epoch
        epochs = [table.epoch for table in self.engine.tables]
        assert epochs == sorted(set(epochs))

    @invariant()
    def a_stale_engine_is_slow_never_wrong(self) -> None:
        if not self.engine.tables:
            return
        table = self.engine.tables[-1]
        newer = any(epoch > table.epoch for epoch in self.published)
        for expert, shares in placement_of(table).items():
            there = [worker for worker in shares if expert in self.workers.workers[worker].experts]
            assert there or newer, f"nobody who was given {expert} has it"

    @invariant()
    def what_was_undone_left_the_table(self) -> None:
        assert all(self.reasons)
        last = self.controller.operations.last if hasattr(self, "controller") else None
        if last is None or last.wave > 1 or last.id not in self.placed_before:
            return
        if last.phase in (Phase.ROLLED_BACK, Phase.CANCELLED) and last.epoch is None:
            assert last.message, "it says why"
            table = self.controller.keeper.table
            if table is not None and table.operation != last.id and not table.operation.startswith("recovery"):
                assert placement_of(table) == self.placed_before[last.id]

    @invariant()
    def bytes_are_the_checkpoints(self) -> None:
        for worker in self.up():
            assert {expert: worker.pages[expert] for expert in worker.experts} == {
                expert: page_of(expert) for expert in worker.experts
            }

    @invariant()
    def memory_is_bounded(self) -> None:
        for worker in self.up():
            assert worker.peak <= self.room

    @invariant()
    def standbys_hold_nothing(self) -> None:
        if not hasattr(self, "controller"):
            return
        table = self.controller.keeper.table
        named = {address.worker for address in table.workers} if table is not None else set()
        standbys = {one.id for one in self.controller.fleet.all() if one.condition is Condition.STANDBY}
        assert not standbys & named

    # ---- inside

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
        held = self.controller.fleet.held()
        moves = tuple(
            Move(expert, worker, (*sorted(one for one in held if expert in held[one]), ""))
            for expert, shares in target.items()
            for worker in shares
            if expert not in held.get(worker, frozenset())
        )
        name = f"op-{next(self.numbers)}"
        request = Request(name, cause, self.controller.keeper.epoch, moves, target)
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


TestPool = Pool.TestCase
TestPool.settings = settings(
    max_examples=int(os.environ.get("FLEXPERT_EXAMPLES", "12")),
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    phases=(HypothesisPhase.generate, HypothesisPhase.shrink),
)
