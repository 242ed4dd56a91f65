"""What holds of real pages whatever happens to a pool: a state machine of real workers, page owners and controller.

Rules scale, rebalance, kill workers and owners, cancel and retry, in any order, without waiting for one another. After
each, every byte of every resident expert is the checkpoint's; in the end nothing is left open, mapped or running. What
tables and epochs do meanwhile is checked by `test_pool_properties`, which has a time of its own.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from real_pool import SLOTS, RealPool, footprint

from flexpert_workers.checkpoint import open_checkpoint
from flexpert_workers.errors import StaleEpoch
from flexpert_workers.pool.exceptions import PoolRefusal
from flexpert_workers.pool.state import Cause, Phase, Request

ROOM = 12
SLOT = st.integers(0, len(SLOTS) - 1)
CHOICES = st.lists(SLOT, min_size=16, max_size=16)
MakePool = Callable[..., RealPool]


@pytest.fixture
def make_pool(tiny_checkpoint: str) -> Iterator[MakePool]:
    """Makes pools that serve, one after the other."""
    checkpoint = open_checkpoint(tiny_checkpoint)
    with tempfile.TemporaryDirectory(prefix="fx") as folder:

        def make(workers: int) -> RealPool:
            pool = RealPool(checkpoint, tiny_checkpoint, folder, ROOM, workers)
            try:
                pool.until(lambda: len(pool.ready()) == workers and len(pool.launcher.running) == len(SLOTS))
                operation = pool.begin(pool.request(pool.spread(pool.ready()), Cause.INITIAL))
                pool.until(pool.settled)
                assert pool.controller.operations.get(operation.id).phase is Phase.SUCCEEDED
            except BaseException:
                pool.close()
                raise
            return pool

        yield make


def machine_of(make: MakePool) -> type[RuleBasedStateMachine]:
    class Pages(RuleBasedStateMachine):
        """A pool of four workers, of which some serve, with room for a few experts each."""

        @initialize(workers=st.integers(2, 3))
        def begin(self, workers: int) -> None:
            self.pool = make(workers)
            self.asked: Request | None = None

        @rule(workers=st.integers(2, 4))
        def scale(self, workers: int) -> None:
            self.pool.configure(workers=workers)
            self.pool.until(lambda: len(self.pool.ready()) >= min(workers, len(self.pool.launcher.running)))
            self.ask(self.pool.spread(self.pool.ready()))

        @rule(choices=CHOICES, wait=st.booleans())
        def rebalance(self, choices: list[int], wait: bool) -> None:
            ready = self.pool.ready()
            if ready:
                experts = zip(self.pool.experts, choices, strict=True)
                self.ask({expert: {ready[choice % len(ready)]: 1.0} for expert, choice in experts})
            if wait:
                self.pool.until(self.pool.settled)
            self.pool.assert_bytes()

        @rule(slot=SLOT)
        def kill_worker(self, slot: int) -> None:
            found = [name for name, (where, _) in self.pool.launcher.running.items() if where == SLOTS[slot]]
            for name in found:
                self.pool.run(self.pool.launcher.stop(name))
            self.pool.assert_bytes()

        @rule(pod=st.sampled_from("ab"))
        def kill_owner(self, pod: str) -> None:
            self.pool.run(self.pool.launcher.replace_owner(pod, self.pool.spec))
            self.pool.assert_bytes()

        @rule()
        def cancel(self) -> None:
            running = self.pool.controller.operations.running
            if running is not None:
                self.refused(lambda: self.pool.controller.operations.cancel(running.request.operation))
            self.pool.assert_bytes()

        @rule()
        def retry(self) -> None:
            if self.asked is not None:
                asked = self.asked
                self.refused(lambda: self.pool.begin(asked))
            self.pool.assert_bytes()

        @rule()
        def settle(self) -> None:
            """Whatever happened, every expert is served again, by bytes that are the checkpoint's."""
            self.pool.until(self.pool.whole)
            self.pool.assert_bytes()
            table = self.pool.controller.keeper.table
            assert table is not None
            resident = self.pool.resident()
            for address in table.workers:
                assert table.experts_of(address.worker) <= resident[address.worker].keys()

        def teardown(self) -> None:
            if hasattr(self, "pool"):
                self.pool.close()

        def ask(self, target: dict) -> None:  # type: ignore[type-arg]
            request = self.pool.request(target, Cause.REBALANCE)
            if self.refused(lambda: self.pool.begin(request)) is not None:
                self.asked = request

        def refused(self, act: Callable[[], object]) -> object | None:
            """What `act` returns, or None when the controller refuses it."""
            try:
                return act()
            except (PoolRefusal, StaleEpoch):
                return None

    return Pages


def test_whatever_happens_resident_bytes_are_the_checkpoints_and_nothing_is_left(make_pool: MakePool) -> None:
    make_pool(2).close()
    before = footprint()
    run_state_machine_as_test(
        machine_of(make_pool),
        settings=settings(
            max_examples=int(os.environ.get("FLEXPERT_EXAMPLES", "4")),
            stateful_step_count=10,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=(HypothesisPhase.generate,),
        ),
    )
    assert_back_at(before)


def test_two_hundred_reconfigurations_leave_nothing_behind(make_pool: MakePool) -> None:
    """Experts go to and fro between two owners, by way of a peer, the file, or what an owner still has."""
    pool = make_pool(2)
    names = pool.ready()

    def cycle(number: int) -> None:
        moved = {pool.experts[(number + step) % 16] for step in range(2)}
        base = pool.controller.keeper.table
        assert base is not None
        target = {
            expert: {names[1 - names.index(next(iter(row)))]: 1.0} if expert in moved else row
            for expert, row in base.placement.items()
        }
        operation = pool.begin(pool.request(target, Cause.REBALANCE))
        if number % 5 == 4:
            pool.controller.operations.cancel(operation.id)
        pool.until(pool.settled)
        pool.assert_bytes()

    for number in range(10):
        cycle(number)
    mapped = sum(len(experts) for experts in pool.resident().values())
    before = footprint()
    for number in range(200):
        cycle(number)
    assert sum(len(experts) for experts in pool.resident().values()) == mapped == 16
    stores = [worker._memory.store for _, worker in pool.launcher.running.values()]  # type: ignore[union-attr]
    assert sum(len(store._free) for store in stores) == len(stores) * (ROOM + 1) - mapped, "no slot is lost"
    budget = 2 * ROOM * -(-pool.model.expert_bytes // 4096) * 4096
    assert all(used <= budget for used in pool.launcher.used_bytes().values())
    after = footprint()
    # What owners keep of what nobody borrows, and have made ahead, comes and goes within their budgets.
    assert after["threads"] <= before["threads"] + 2
    assert after["page mappings"] <= before["page mappings"] + 8
    assert after["descriptors"] <= before["descriptors"] + 2 * 2 * ROOM
    pool.close()


def assert_back_at(before: dict[str, int]) -> None:
    """Connections end beside us: wait for what was there before."""
    for _ in range(600):
        if all(count <= before[name] for name, count in footprint().items()):
            return
        time.sleep(0.1)
    assert footprint() == before
