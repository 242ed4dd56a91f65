"""A wave of a reconfiguration as a transaction: prepare → commit → retire (DESIGN §6). `waves` runs one at a time.

Before commit any failure, cancellation or pre-emption rolls back and the old table stands; the first engine to see the
new table is the commit, after which it only rolls forward. All that it acts on comes through a `Fleet`.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Protocol

from flexpert_workers.messages.control import (
    AskPrepare,
    ControlReply,
    ControlRequest,
    Done,
    Prepare,
    PrepareStatus,
    Refused,
    Retire,
    Rollback,
    StoreTable,
)
from flexpert_workers.pool.exceptions import InvalidPlan, WorkerUnreachable
from flexpert_workers.pool.state import Move, Operation, Phase, Request
from flexpert_workers.routing import Epoch, RoutingTable


class Fleet(Protocol):
    """What a transaction acts on: the workers, the engines, and the table to be."""

    def live(self) -> frozenset[str]:
        """Workers that can be asked."""

    def copy_endpoints(self, target: str, sources: Iterable[str]) -> tuple[str, ...]:
        """Where `target` can copy an expert from that `sources` hold, in order."""

    def resident_bytes(self) -> Mapping[str, int]:
        """Bytes of experts on each live worker, as it last described itself."""

    def waited_seconds(self, workers: Iterable[str]) -> float:
        """For how long the newest of `workers` was waited for that the table in force does not name."""

    async def ask(self, worker: str, request: ControlRequest, timeout_s: float) -> ControlReply:
        """Ask a worker; raises `WorkerUnreachable`."""

    async def refresh(self, workers: Iterable[str]) -> None:
        """Have workers describe themselves anew; raises `WorkerUnreachable` when one does not."""

    def epoch(self) -> Epoch:
        """Of the table in force."""

    async def next_table(self, request: Request) -> RoutingTable:
        """The table that `request` leads to, under the next epoch; raises `InvalidPlan` if it cannot be published."""

    async def restored_table(self) -> RoutingTable | None:
        """The table in force under the next epoch; None when there is none or it lacks replicas."""

    def gone(self, table: RoutingTable) -> tuple[str, ...]:
        """Workers that a table names and that are dead by now."""

    async def announce(self, table: RoutingTable) -> str:
        """Put a table in force: give it to the engines; returns a remark about those that kept silent."""

    def fenced(self, reason: str) -> None:
        """A worker knows a higher term: this controller may commit no more."""


@dataclass(frozen=True)
class Deadlines:
    """Of each phase, and of a single request to a worker, in seconds."""

    prepare_s: float = 600.0
    store_s: float = 10.0
    retire_s: float = 30.0
    rollback_s: float = 10.0
    ask_s: float = 10.0
    poll_s: float = 0.02
    longest_poll_s: float = 0.25


class _Abort(Exception):
    """The operation ends before commit, in `phase`."""

    def __init__(self, phase: Phase, reason: str) -> None:
        super().__init__(reason)
        self.phase = phase


class Transaction:
    """One wave of a reconfiguration. `operation` is how it stands; `on_change` is called whenever that changes.

    Attributes:
        busiest_bytes: Most that a single worker has copied so far.
        prepared: What each target said last of its part.
        interruption: The phase and reason with which it is to end, or was to end before it committed; None: as planned.
    """

    def __init__(
        self,
        request: Request,
        fleet: Fleet,
        deadlines: Deadlines,
        on_change: Callable[[Operation], None],
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.request = request
        self.operation = Operation(request.operation, request.cause, Phase.PENDING, request.base_epoch, wall())
        self.committed = False
        self.busiest_bytes = 0
        self.prepared: Mapping[str, PrepareStatus] = {}
        self._fleet = fleet
        self._deadlines = deadlines
        self._on_change = on_change
        self._wall = wall
        self._monotonic = monotonic
        self._phase_began = monotonic()
        self._abort: _Abort | None = None
        self._interrupted = asyncio.Event()
        self._stored: set[str] = set()

    async def run(self) -> Operation:
        """Carry it out; returns how it ended."""
        try:
            await self._prepare()
            table = await self._store()
        except _Abort as abort:
            await self._roll_back(abort)
        else:
            remarks = [await self._commit(table), await self._retire(table)]
            self._enter(Phase.SUCCEEDED, message="; ".join(filter(None, remarks)))
        return self.operation

    @property
    def interruption(self) -> tuple[Phase, str] | None:
        """See the class."""
        return (self._abort.phase, str(self._abort)) if self._abort is not None else None

    def interrupt(self, phase: Phase, reason: str) -> None:
        """Before commit: roll back, and end in `phase`. After it: no longer wait for workers to retire."""
        self._abort = self._abort or _Abort(phase, reason)
        self._interrupted.set()

    # ---- prepare

    async def _prepare(self) -> None:
        self._enter(Phase.PREPARE)
        waited = {"start": self._fleet.waited_seconds(self.request.workers())}
        self._change(replace(self.operation, step_seconds=waited))
        by_target: dict[str, list[Move]] = defaultdict(list)
        for move in self.request.moves:
            by_target[move.target].append(move)
        deadline = self._monotonic() + self._deadlines.prepare_s
        with _rolling_back():
            await asyncio.gather(*(self._begin(target, moves) for target, moves in by_target.items()))
            await self._await_prepared(by_target, deadline)
            await self._fleet.refresh(sorted(self.request.workers()))
        self._change(replace(self.operation, peak_bytes=self._fleet.resident_bytes()))
        self._check_interrupted()

    async def _begin(self, target: str, moves: list[Move]) -> None:
        experts = tuple((*move.expert, self._fleet.copy_endpoints(target, move.sources)) for move in moves)
        prepare = Prepare(self.request.operation, experts)
        _expect(target, await self._fleet.ask(target, prepare, self._deadlines.ask_s), PrepareStatus, Done)

    async def _await_prepared(self, targets: Iterable[str], deadline: float) -> None:
        statuses: dict[str, PrepareStatus] = {}
        pending, pause = set(targets), self._deadlines.poll_s
        while pending:
            for status in await asyncio.gather(*(self._status(target) for target in sorted(pending))):
                statuses[status[0]] = status[1]
            self.prepared = dict(statuses)
            self._note_moved(statuses.values())
            pending = {target for target in pending if not statuses[target].done}
            if pending and self._monotonic() > deadline:
                raise _Abort(Phase.ROLLED_BACK, f"{', '.join(sorted(pending))} did not prepare in time")
            if pending:
                await self._pause(pause)
                pause = min(pause * 1.5, self._deadlines.longest_poll_s)

    async def _status(self, target: str) -> tuple[str, PrepareStatus]:
        reply = await self._fleet.ask(target, AskPrepare(self.request.operation), self._deadlines.ask_s)
        _expect(target, reply, PrepareStatus)
        assert isinstance(reply, PrepareStatus)
        if reply.error:
            raise _Abort(Phase.ROLLED_BACK, f"{target} could not prepare: {reply.error}")
        return target, reply

    def _note_moved(self, statuses: Iterable[PrepareStatus]) -> None:
        told = list(statuses)
        steps = dict(self.operation.step_seconds)
        for status in told:
            for step, seconds in status.step_seconds.items():
                steps[step] = max(seconds, steps.get(step, 0.0))
        self.busiest_bytes = max((status.copied_bytes for status in told), default=0)
        moved = replace(
            self.operation,
            moved_bytes=sum(status.copied_bytes for status in told),
            moved_experts=sum(status.copied_experts for status in told),
            attached_experts=sum(status.attached_experts for status in told),
            step_seconds=steps,
        )
        if moved != self.operation:
            self._change(moved)

    # ---- commit

    async def _store(self) -> RoutingTable:
        self._enter(Phase.COMMIT)
        try:
            table = await self._fleet.next_table(self.request)
        except InvalidPlan as wrong:
            raise _Abort(Phase.ROLLED_BACK, str(wrong)) from wrong
        named = [address.worker for address in table.workers]
        replies = await asyncio.gather(*(self._store_on(worker, table) for worker in named))
        for worker, problem in zip(named, replies, strict=True):
            if problem is not None:
                raise _Abort(Phase.ROLLED_BACK, f"{worker} did not store the table: {problem}")
        self._check_interrupted()
        if gone := self._fleet.gone(table):
            raise _Abort(Phase.ROLLED_BACK, f"{', '.join(gone)} died before the commit")
        return table

    async def _store_on(self, worker: str, table: RoutingTable) -> str | None:
        """Store a table on a worker; None when it did, else why not."""
        try:
            reply = await self._fleet.ask(worker, StoreTable(table.encode()), self._deadlines.store_s)
        except WorkerUnreachable as unreachable:
            self._stored.add(worker)  # it may have stored it all the same
            return str(unreachable)
        if isinstance(reply, Refused):
            if reply.kind == "stale":
                self._fleet.fenced(f"{worker} knows a newer table: {reply.reason}")
            return reply.reason
        self._stored.add(worker)
        return None

    async def _commit(self, table: RoutingTable) -> str:
        self.committed = True
        self._change(replace(self.operation, epoch=table.epoch))
        return await self._fleet.announce(table)

    # ---- retire

    async def _retire(self, table: RoutingTable) -> str:
        self._enter(Phase.RETIRE)
        deadline = self._monotonic() + self._deadlines.retire_s
        problems = await self._until(deadline, self._fleet.live(), lambda worker: self._retire_on(worker, table))
        try:
            await self._fleet.refresh(sorted(self._fleet.live()))
        except WorkerUnreachable as unreachable:
            problems.append(str(unreachable))
        return "; ".join(problems)

    async def _until(
        self, deadline: float, workers: frozenset[str], act: Callable[[str], Awaitable[str | None]]
    ) -> list[str]:
        """Do `act` on each of `workers` that lives until it works or the deadline passes; returns what went wrong."""
        pending = workers
        while True:
            asked = sorted(pending & self._fleet.live())
            answers = await asyncio.gather(*(act(worker) for worker in asked))
            problems = {worker: answer for worker, answer in zip(asked, answers, strict=True) if answer}
            pending = frozenset(problems)
            if not pending or (self.committed and self._interrupted.is_set()) or self._monotonic() > deadline:
                return [f"{worker}: {answer}" for worker, answer in problems.items()]
            await self._sleep(self._deadlines.longest_poll_s)

    async def _retire_on(self, worker: str, table: RoutingTable) -> str | None:
        """Have a worker free what `table` does not give it; None when it did, else why not."""
        if worker not in self._stored:
            problem = await self._store_on(worker, table)
            if problem is not None:
                return problem
        try:
            reply = await self._fleet.ask(worker, Retire(table.epoch), self._deadlines.ask_s)
        except WorkerUnreachable as unreachable:
            return str(unreachable)
        return reply.reason if isinstance(reply, Refused) else None

    # ---- roll back

    async def _roll_back(self, abort: _Abort) -> None:
        restored = await self._fleet.restored_table() if self._stored else None
        if restored is not None:
            await asyncio.gather(*(self._store_on(worker, restored) for worker in sorted(self._fleet.live())))
            if not self._fleet.gone(restored):  # else the recovery that follows publishes
                await self._fleet.announce(restored)
        targets = frozenset(move.target for move in self.request.moves)
        deadline = self._monotonic() + self._deadlines.rollback_s
        silent = await self._until(deadline, targets, self._roll_back_on)
        try:
            await self._fleet.refresh(sorted(targets & self._fleet.live()))
        except WorkerUnreachable as unreachable:
            silent.append(str(unreachable))
        self._enter(abort.phase, message="; ".join(dict.fromkeys([str(abort), *silent])))

    async def _roll_back_on(self, worker: str) -> str | None:
        """Have a worker undo what it prepared; None when it did, else why not."""
        try:
            reply = await self._fleet.ask(worker, Rollback(self.request.operation), self._deadlines.ask_s)
        except WorkerUnreachable as unreachable:
            return str(unreachable)
        return reply.reason if isinstance(reply, Refused) else None

    # ---- progress

    def _enter(self, phase: Phase, message: str = "") -> None:
        now = self._monotonic()
        seconds = dict(self.operation.phase_seconds)
        steps = dict(self.operation.step_seconds)
        if self.operation.phase is not Phase.PENDING:
            seconds[self.operation.phase.lower()] = now - self._phase_began
        if self.operation.phase is Phase.COMMIT:
            steps["commit"] = now - self._phase_began
        self._phase_began = now
        finished = self._wall() if phase.finished else None
        entered = replace(self.operation, phase=phase, phase_seconds=seconds, step_seconds=steps)
        self._change(replace(entered, finished_at=finished, message=message))

    def _change(self, operation: Operation) -> None:
        self.operation = operation
        self._on_change(operation)

    def _check_interrupted(self) -> None:
        if self._abort is not None:
            raise self._abort

    async def _pause(self, seconds: float) -> None:
        await self._sleep(seconds)
        self._check_interrupted()

    async def _sleep(self, seconds: float) -> None:
        """Sleep, less long when an interruption comes."""
        if self._interrupted.is_set():
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._interrupted.wait()


@contextmanager
def _rolling_back() -> Iterator[None]:
    """Turns an unreachable worker into an abort that rolls back."""
    try:
        yield
    except WorkerUnreachable as unreachable:
        raise _Abort(Phase.ROLLED_BACK, str(unreachable)) from unreachable


def _expect(worker: str, reply: ControlReply, *kinds: type) -> None:
    if isinstance(reply, Refused):
        raise _Abort(Phase.ROLLED_BACK, f"{worker} refused: {reply.reason}")
    if not isinstance(reply, kinds):
        raise _Abort(Phase.ROLLED_BACK, f"{worker} answered with {type(reply).__name__}")
