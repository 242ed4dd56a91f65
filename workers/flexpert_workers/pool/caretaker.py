"""Makes slots and workers agree, round by round: finds, starts, connects, gives up and stops workers.

`controller` owns one. What to do is decided by `reconcile`, purely; here it is done.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from flexpert_workers.messages.control import WorkerState
from flexpert_workers.pool.fleet import WorkerFleet
from flexpert_workers.pool.launchers import LauncherUnavailable, WorkerLauncher
from flexpert_workers.pool.reconcile import SlotFailures, reconcile
from flexpert_workers.pool.state import Condition, LaunchedWorker, ModelFacts, PoolSpec, Slot

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What a round works towards.

    Attributes:
        spec: Of workers to start; None while none may be started.
        model: That they are to serve, if known.
        named: Workers of the table in force.
        busy: A reconfiguration runs: nobody is stopped.
        holds: Whether the model's files are where a slot is.
    """

    spec: PoolSpec | None
    model: ModelFacts | None
    named: frozenset[str]
    busy: bool
    holds: Callable[[Slot], bool] = lambda _: True


class Caretaker:
    """Keeps one worker per slot.

    Attributes:
        problems: Why workers do not come up, by slot.
    """

    def __init__(
        self,
        fleet: WorkerFleet,
        launcher: WorkerLauncher,
        on_connected: Callable[[WorkerState], None],
        lost_kept_s: float,
        new_id: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.problems: dict[str, str] = {}
        self._fleet = fleet
        self._launcher = launcher
        self._on_connected = on_connected
        self._lost_kept_s = lost_kept_s
        self._new_id = new_id
        self._clock = clock
        self._failures: dict[str, SlotFailures] = {}
        self._connecting: dict[str, asyncio.Task[None]] = {}

    async def discover(self, timeout_s: float, pause_s: float) -> None:
        """Connect to every worker that runs, for a bounded time; those that take longer are adopted later."""
        deadline = self._clock() + timeout_s
        while self._clock() < deadline:
            try:
                found = await self._launcher.list()
                slots = {slot.id: slot for slot in await self._launcher.slots()}
            except LauncherUnavailable as away:
                log.info("waiting for the launcher: %s", away)
            else:
                missing = [one for one in found if one.control_endpoint and one.worker not in self._fleet.live()]
                if not missing:
                    return
                await asyncio.gather(*(self._connect(one, slots.get(one.slot)) for one in missing))
            await asyncio.sleep(pause_s)

    async def round(self, wanted: Wanted) -> None:
        """Look at slots and workers once, and act."""
        slots, launched = await self._launcher.slots(), await self._launcher.list()
        workers = self._fleet.all()
        actions = reconcile(slots, launched, workers, wanted.named, self._failures, self._clock(), self._lost_kept_s)
        for worker in actions.vanished:
            self._died(worker, await self._launcher.failure(worker) or "its process or its slot is gone")
        for worker in self._fleet.overdue():
            self._died(worker, "it did not come up in time")
        for worker in self._misfits(wanted):
            self._fleet.lose(worker, "it serves another checkpoint")
        for worker in actions.forget:
            self._fleet.forget(worker)
        self._forget_slots_but({slot.id for slot in slots})
        await self._end_lost(launched)
        for worker in actions.emptied:
            self._fleet.stopped(worker)
        self._connect_new(slots, launched)
        await self._stop_drained(() if wanted.busy else actions.stop)
        if wanted.spec is not None:
            await asyncio.gather(*(self._start(slot, wanted.spec) for slot in actions.start if wanted.holds(slot)))

    def close(self) -> None:
        """Give up what is being connected."""
        for task in self._connecting.values():
            task.cancel()

    # ---- coming

    async def _start(self, slot: Slot, spec: PoolSpec) -> None:
        name = f"w-{self._new_id()}"
        log.info("starting worker %s in slot %s", name, slot.id)
        self._fleet.expect(name, slot, begun_here=True)
        await self._launcher.start(name, slot, spec)

    def _connect_new(self, slots: tuple[Slot, ...], launched: tuple[LaunchedWorker, ...]) -> None:
        by_id = {slot.id: slot for slot in slots}
        for one in launched:
            known = self._fleet.workers.get(one.worker)
            if known is None:
                self._fleet.expect(one.worker, by_id.get(one.slot))
            unanswered = known is not None and known.state is None and not known.stopped
            waiting = known is None or (unanswered and known.condition is not Condition.LOST)
            if waiting and one.control_endpoint and one.worker not in self._connecting:
                task = asyncio.create_task(self._connect(one, by_id.get(one.slot)))
                self._connecting[one.worker] = task

    async def _connect(self, launched: LaunchedWorker, slot: Slot | None) -> None:
        try:
            state = await self._fleet.connect(launched, slot)
        finally:
            self._connecting.pop(launched.worker, None)
        if state is None:
            return
        self._failures.pop(launched.slot, None)
        self.problems.pop(launched.slot, None)
        self._on_connected(state)

    # ---- going

    def _died(self, worker: str, why: str) -> None:
        known = self._fleet.workers[worker]
        if known.state is None and known.slot is not None:
            count = self._failures[known.slot.id].count + 1 if known.slot.id in self._failures else 1
            self._failures[known.slot.id] = SlotFailures(count, self._clock())
            self.problems[known.slot.id] = f"a worker did not start in slot {known.slot.id}: {why}"
        self._fleet.lose(worker, why)

    def _misfits(self, wanted: Wanted) -> tuple[str, ...]:
        """Workers of another checkpoint than the one to be served, while nothing is placed yet."""
        if wanted.model is None or wanted.named:
            return ()
        digest = wanted.model.digest
        workers = self._fleet.all()
        return tuple(one.id for one in workers if one.live and one.state is not None and one.state.digest != digest)

    def _forget_slots_but(self, there: set[str]) -> None:
        """What failed in a slot that is gone is nobody's problem any more."""
        for slot in set(self._failures) - there:
            del self._failures[slot]
            self.problems.pop(slot, None)

    async def _end_lost(self, launched: tuple[LaunchedWorker, ...]) -> None:
        """A lost worker whose process still runs (it hangs) is ended, so that its slot is free."""
        lost = [one.worker for one in launched if self._is_lost(one.worker)]
        await asyncio.gather(*(self._launcher.stop(worker) for worker in lost))

    async def _stop_drained(self, workers: tuple[str, ...]) -> None:
        for worker in workers:
            self._fleet.part(worker)
            await self._launcher.stop(worker)
            self._fleet.stopped(worker)

    def _is_lost(self, worker: str) -> bool:
        known = self._fleet.workers.get(worker)
        return known is not None and known.condition is Condition.LOST
