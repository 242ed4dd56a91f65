"""The workers of a pool as the controller knows them: their links, their own descriptions, whether they live.

`controller` owns one. Facts are frozen values that are replaced; every replacement is told to `on_change`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from flexpert_proto.ledger import FiguresLedger
from flexpert_workers.messages.control import (
    AskLoads,
    ControlReply,
    ControlRequest,
    Describe,
    Loads,
    WorkerState,
)
from flexpert_workers.pool.exceptions import WorkerUnreachable
from flexpert_workers.pool.loads import LayerBalance, LoadLedger
from flexpert_workers.pool.state import Condition, Expert, LaunchedWorker, Slot, Worker

log = logging.getLogger(__name__)

_PROBES = 3
_PROBE_PAUSE_S = 0.02


class WorkerLink(Protocol):
    """A connection to a worker's control socket."""

    async def ask(self, request: ControlRequest, timeout_s: float) -> ControlReply:
        """Ask and wait for the reply; raises `WorkerUnreachable`."""

    def close(self) -> None:
        """Give the connection up."""


LinkFactory = Callable[[str, Callable[[], None]], WorkerLink]
"""(control endpoint, called in the event loop when the connection breaks) → link."""


@dataclass(frozen=True)
class Patience:
    """How long a worker may be silent: `misses` pings in a row, `ping_s` apart, each unanswered for `answer_s`."""

    ping_s: float = 1.0
    answer_s: float = 10.0
    misses: int = 3
    start_s: float = 300.0
    audit_s: float = 5.0


class WorkerFleet:
    """All workers, by id: also lost and drained ones until they are forgotten.

    Attributes:
        loads: Tokens per expert.
        balance: Of each layer, over workers.
        figures: What is measured in the pool; workers tell it here, the others elsewhere.
    """

    def __init__(
        self,
        pool: str,
        links: LinkFactory,
        patience: Patience,
        figures: FiguresLedger,
        on_change: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.loads = LoadLedger(time.time())
        self.balance = LayerBalance(clock)
        self.figures = figures
        self.workers: dict[str, Worker] = {}
        self._pool = pool
        self._links: dict[str, WorkerLink] = {}
        self._make_link = links
        self._patience = patience
        self._on_change = on_change
        self._clock = clock
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}

    # ---- what is known

    def live(self) -> frozenset[str]:
        """Workers that answer and can hold experts."""
        return frozenset(worker.id for worker in self.workers.values() if worker.live)

    def all(self) -> tuple[Worker, ...]:
        """Every worker known, by id."""
        return tuple(self.workers[name] for name in sorted(self.workers))

    def held(self) -> Mapping[str, frozenset[Expert]]:
        """What each live worker holds."""
        return {worker.id: worker.experts for worker in self.workers.values() if worker.live}

    def copy_endpoints(self, target: str, sources: Iterable[str]) -> tuple[str, ...]:
        """Where `target` can copy an expert from that `sources` hold, in order, each once.

        Those of its own domain are left out: what they hold its page owner attaches without being told.
        """
        domain = self._state(target).domain if self._is_live(target) else ""
        states = [self._state(one) for one in sources if one != target and self._is_live(one)]
        others = (state for state in states if not (domain and state.domain == domain))
        return tuple(dict.fromkeys(state.transfer_endpoint or state.control_endpoint for state in others))

    def _is_live(self, worker: str) -> bool:
        return worker in self.workers and self.workers[worker].live

    def _state(self, worker: str) -> WorkerState:
        state = self.workers[worker].state
        assert state is not None, f"worker {worker} has not described itself"
        return state

    def overdue(self) -> tuple[str, ...]:
        """Workers that have been starting for too long, also if they are to be drained."""
        now = self._clock()
        return tuple(
            worker.id
            for worker in self.workers.values()
            if worker.state is None
            and not worker.stopped
            and worker.condition is not Condition.LOST
            and now - worker.began_at > self._patience.start_s
        )

    # ---- asking

    async def ask(self, worker: str, request: ControlRequest, timeout_s: float) -> ControlReply:
        """Ask a worker.

        Raises:
            WorkerUnreachable: It is not connected, or did not answer in time.
        """
        link = self._links.get(worker)
        if link is None:
            raise WorkerUnreachable(f"{worker} is not connected")
        try:
            return await link.ask(request, timeout_s)
        except WorkerUnreachable as silent:
            raise WorkerUnreachable(f"{worker} did not answer {type(request).__name__}: {silent}") from silent

    async def refresh(self, workers: Iterable[str]) -> None:
        """Have workers describe themselves anew.

        Raises:
            WorkerUnreachable: One did not.
        """
        await asyncio.gather(*(self._describe(worker) for worker in workers))

    async def _describe(self, worker: str) -> WorkerState:
        state = await self.ask(worker, Describe(), self._patience.answer_s)
        if not isinstance(state, WorkerState):
            raise WorkerUnreachable(f"{worker} answered Describe with {type(state).__name__}")
        known = self.workers.get(worker)
        if known is None or known.condition is Condition.LOST:
            raise WorkerUnreachable(f"{worker} was given up")
        if known.state is not None and known.state.incarnation != state.incarnation:
            self.lose(worker, "another process answers in its place")
            raise WorkerUnreachable(f"{worker} is another process now")
        condition = Condition.STANDBY if known.condition is Condition.STARTING else known.condition
        ready_at = self._clock() if known.ready_at is None else known.ready_at
        slot = _located(known.slot, state)
        self._replace(replace(known, state=state, condition=condition, slot=slot, ready_at=ready_at))
        return state

    # ---- coming and going

    def expect(self, worker: str, slot: Slot | None, begun_here: bool = False) -> None:
        """A worker is being started in `slot`, by this controller or an earlier one."""
        self._replace(Worker(worker, slot, Condition.STARTING, began_at=self._clock(), begun_here=begun_here))

    async def connect(self, launched: LaunchedWorker, slot: Slot | None) -> WorkerState | None:
        """Link up with a worker that is up; returns its description, or None when it does not answer (yet)."""
        name = launched.worker
        adopted = name not in self.workers
        if adopted:
            self.expect(name, slot)
        if name not in self._links:
            self._links[name] = self._make_link(launched.control_endpoint, lambda: self._on_break(name))
        try:
            state = await self._describe(name)
        except WorkerUnreachable as silent:
            log.info("cannot connect: %s", silent)
            return None
        if state.pool != self._pool:
            self.lose(name, f"it belongs to pool {state.pool}")
            return None
        if name not in self._watchers:
            self._watchers[name] = asyncio.create_task(self._watch(name, adopted))
        return state

    def drain(self, worker: str, undo: bool) -> None:
        """Mark a worker: it gets no new experts. Undone, it stands by, and a stopped one's slot is filled anew."""
        known = self.workers[worker]
        if undo and known.stopped:
            self.forget(worker)
        elif undo and known.condition is Condition.DRAINING:
            self._replace(replace(known, condition=Condition.STANDBY if known.state else Condition.STARTING))
        elif not undo and known.condition in (Condition.READY, Condition.STANDBY, Condition.STARTING):
            self._replace(replace(known, condition=Condition.DRAINING))

    def cast(self, roles: Mapping[str, Condition], waited_s: float) -> None:
        """Have workers serve or stand by, as `reconcile.decide_roles` says; one was missing for `waited_s`."""
        for worker, condition in roles.items():
            log.info("worker %s is %s", worker, condition.lower())
            self._replace(replace(self.workers[worker], condition=condition, waited_s=waited_s))

    def part(self, worker: str) -> None:
        """A drained worker is about to be stopped: that its connection breaks then is not its death."""
        self._disconnect(worker)

    def stopped(self, worker: str) -> None:
        """A drained worker was stopped, or was lost before it could be; its slot stays empty."""
        self._disconnect(worker)
        known = self.workers[worker]
        self._replace(replace(known, condition=Condition.DRAINING, stopped=True, leaving=False, lost_at=None))

    def lose(self, worker: str, why: str) -> None:
        """A worker is dead, or as good as dead."""
        known = self.workers[worker]
        if known.condition is Condition.LOST or known.stopped:
            return
        log.warning("worker %s is lost: %s", worker, why)
        self._disconnect(worker)
        leaving = known.condition is Condition.DRAINING
        self._replace(replace(known, condition=Condition.LOST, lost_at=self._clock(), leaving=leaving))

    def forget(self, worker: str) -> None:
        """A worker matters no more."""
        self._disconnect(worker)
        self.balance.forget(worker)
        del self.workers[worker]
        self._on_change()

    def close(self) -> None:
        """Give up every connection; the workers run on."""
        for worker in list(self.workers):
            self._disconnect(worker)
        for probe in self._probes.values():
            probe.cancel()

    # ---- watching

    async def _watch(self, worker: str, adopted: bool) -> None:
        """Ping a worker for as long as it lives; the ping asks for its loads, now and then for all about it."""
        misses, audit_at = 0, self._clock() + self._patience.audit_s
        while worker in self._links:
            try:
                loads = await self.ask(worker, AskLoads(), self._patience.answer_s)
                if isinstance(loads, Loads):
                    self._note(worker, loads, adopted)
                if self._clock() >= audit_at:
                    await self._describe(worker)
                    audit_at = self._clock() + self._patience.audit_s
                misses = 0
            except WorkerUnreachable as silent:
                misses += 1
                if misses >= self._patience.misses:
                    self.lose(worker, str(silent))
                    return
            await asyncio.sleep(self._patience.ping_s)

    def _note(self, worker: str, told: Loads, adopted: bool) -> None:
        self.loads.note(worker, told.tokens, adopted)
        self.balance.note(worker, told.tokens)
        if told.figures is not None:
            self.figures.note(worker, told.figures)

    def _on_break(self, worker: str) -> None:
        """The connection broke: nearly always because the process died."""
        if worker not in self._probes:
            task = self._probes[worker] = asyncio.create_task(self._probe(worker))
            task.add_done_callback(lambda _: self._probes.pop(worker, None))

    async def _probe(self, worker: str) -> None:
        why = ""
        for _ in range(_PROBES):
            try:
                await self._describe(worker)
            except WorkerUnreachable as silent:
                why = str(silent)
                await asyncio.sleep(_PROBE_PAUSE_S)
            else:
                return
        if worker in self.workers:
            self.lose(worker, f"its connection broke; {why}")

    def _disconnect(self, worker: str) -> None:
        link = self._links.pop(worker, None)
        if link is not None:
            link.close()
        watcher = self._watchers.pop(worker, None)
        if watcher is not None and watcher is not asyncio.current_task():
            watcher.cancel()

    def _replace(self, worker: Worker) -> None:
        if self.workers.get(worker.id) != worker:
            self.workers[worker.id] = worker
            self._on_change()


def _located(slot: Slot | None, state: WorkerState) -> Slot | None:
    """The slot with the pod and node that the worker itself reads from its environment."""
    if slot is None:
        return None
    return replace(slot, pod=slot.pod or state.pod, node=slot.node or state.node)
