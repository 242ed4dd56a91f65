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
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from timeless_pool import EXPERTS, MODEL, SLOTS, PoolOfTheTest

from flexpert_workers.messages import control
from flexpert_workers.pool.fakes import FakeWorkers, page_of
from flexpert_workers.pool.state import (
    Cause,
    Condition,
    Phase,
    PoolSpec,
    Slot,
)
from flexpert_workers.pool.tables import placement_of
from flexpert_workers.routing import NO_EPOCH, RoutingTable

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


class Pool(PoolOfTheTest, RuleBasedStateMachine):
    """A pool of up to four workers with room for a few experts each."""

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
            assert there or newer or self.died_with(expert), f"nobody who was given {expert} has it"

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


def test_a_table_that_was_stored_and_never_in_force_may_be_adopted() -> None:
    """One of two workers has stored the table that gives the lost experts to the other, which could not store it and
    gave them back; the controller dies meanwhile. The next one finds the table, and that the experts are not there.
    """
    pool = Pool()
    try:
        pool.begin(room=3, workers=2, standby=0)
        pool.spoil(slot=2, what="a full disk")
        pool.kill_worker(slot=0)
        pool.some_time()
        pool.kill_controller(grant=False)
        assert pool.died_with((0, 0)), "the state is the one that is meant"
        pool.a_stale_engine_is_slow_never_wrong()
        pool.heal_and_settle()
        assert pool.controller.lost_experts() == ()
        pool.a_stale_engine_is_slow_never_wrong()
    finally:
        pool.teardown()


TestPool = Pool.TestCase
TestPool.settings = settings(
    max_examples=int(os.environ.get("FLEXPERT_EXAMPLES", "12")),
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    phases=(HypothesisPhase.generate, HypothesisPhase.shrink),
)
