"""Runs reconfigurations one at a time and remembers them; `Ground` is what they act on. Used by `controller`."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from flexpert_proto import logs
from flexpert_workers.errors import StaleEpoch
from flexpert_workers.messages.control import ControlReply, ControlRequest
from flexpert_workers.pool.aside import aside
from flexpert_workers.pool.exceptions import InvalidPlan, OperationRunning, UnknownName
from flexpert_workers.pool.fleet import WorkerFleet
from flexpert_workers.pool.keeper import TableKeeper
from flexpert_workers.pool.leases import EngineRegistry
from flexpert_workers.pool.predict import Planned, plan
from flexpert_workers.pool.reconfigure import Deadlines
from flexpert_workers.pool.state import Cause, ModelFacts, Operation, Phase, Placement, Request
from flexpert_workers.pool.tables import build_table, placement_of, replicas_gone
from flexpert_workers.pool.totals import OperationTotals
from flexpert_workers.pool.waves import Waves
from flexpert_workers.routing import Epoch, RoutingTable

log = logging.getLogger(__name__)

_REMEMBERED = 64
_ASSUMED_BYTES_PER_SECOND = 200e6


class Ground:
    """The workers, the engines and the table in force, as a `Transaction` acts on them."""

    def __init__(
        self,
        pool: str,
        workers: WorkerFleet,
        engines: EngineRegistry,
        keeper: TableKeeper,
        model: Callable[[], ModelFacts | None],
    ) -> None:
        self._pool = pool
        self._workers = workers
        self._engines = engines
        self._keeper = keeper
        self._model = model

    def live(self) -> frozenset[str]:
        """Workers that can be asked."""
        return self._workers.live()

    def copy_endpoints(self, target: str, sources: Iterable[str]) -> tuple[str, ...]:
        """Where `target` can copy an expert from that `sources` hold, in order."""
        return self._workers.copy_endpoints(target, sources)

    def resident_bytes(self) -> Mapping[str, int]:
        """Bytes of experts on each live worker."""
        states = (worker.state for worker in self._workers.all() if worker.live)
        return {state.worker: state.resident_bytes for state in states if state is not None}

    def waited_seconds(self, workers: Iterable[str]) -> float:
        """For how long the newest of `workers` was waited for that the table in force does not name."""
        table, known = self._keeper.table, self._workers.workers
        named = {address.worker for address in table.workers} if table is not None else set()
        return max((known[name].waited_s for name in workers if name in known and name not in named), default=0.0)

    def epoch(self) -> Epoch:
        """Of the table in force."""
        return self._keeper.epoch

    def planning(self, request: Request, bytes_per_second: float) -> Callable[[], Planned]:
        """What works the request out on the pool as it is now; for any thread, and for later."""
        model = self._model()
        assert model is not None, "a plan is made only once the model is known"
        return partial(plan, request, model, self._workers.all(), placement_of(self._keeper.table), bytes_per_second)

    async def ask(self, worker: str, request: ControlRequest, timeout_s: float) -> ControlReply:
        """Ask a worker; raises `WorkerUnreachable`."""
        return await self._workers.ask(worker, request, timeout_s)

    async def refresh(self, workers: Iterable[str]) -> None:
        """Have workers describe themselves anew; raises `WorkerUnreachable`."""
        await self._workers.refresh(workers)

    async def next_table(self, request: Request) -> RoutingTable:
        """The table that `request` leads to, every replica of which is there."""
        if self._keeper.term == 0:
            raise InvalidPlan("this controller has no term; the operator grants one")
        if request.base_epoch != self._keeper.epoch:
            raise InvalidPlan(f"the table in force is {self._keeper.epoch} by now, not {request.base_epoch}")
        return await self._build(request.operation, request.target)

    async def restored_table(self) -> RoutingTable | None:
        """The table in force again, under the next epoch; None when there is none or it lacks replicas."""
        table = self._keeper.table
        if table is None or self._keeper.term == 0:
            return None
        try:
            return await self._build(table.operation, placement_of(table))
        except InvalidPlan:
            return None

    def gone(self, table: RoutingTable) -> tuple[str, ...]:
        """Workers that a table names and that are dead by now."""
        live = self._workers.live()
        return tuple(address.worker for address in table.workers if address.worker not in live)

    async def announce(self, table: RoutingTable) -> str:
        """Put a table in force: the first engine to see it is the commit."""
        self._keeper.adopt(table)
        self._engines.publish(table)
        silent = await self._engines.await_acknowledged(table.epoch)
        return f"engines expelled for their silence: {', '.join(silent)}" if silent else ""

    def fenced(self, reason: str) -> None:
        """A worker knows a higher term."""
        log.warning("this controller gives up its term: %s", reason)
        self._keeper.give_up_term()

    async def _build(self, operation: str, placement: Placement) -> RoutingTable:
        """The next table; raises `InvalidPlan` when a replica of it is not there."""
        model = self._model()
        assert model is not None, "a table is built only once the model is known"
        held = self._workers.held()
        addresses = {worker.id: worker.address for worker in self._workers.all() if worker.live}
        epoch = self._keeper.next_epoch()

        def build() -> RoutingTable:
            for (layer, index), worker in sorted(replicas_gone(placement, held)):
                raise InvalidPlan(f"{worker} does not hold layer {layer} expert {index}, which it was to hold")
            table = build_table(self._pool, model, epoch, operation, placement, addresses)
            table.encode()  # whoever needs the bytes, or the placement, has them at once
            assert table.placement is not None
            return table

        return await aside(len(placement), build)


class Operations:
    """One reconfiguration at a time, each known by its id.

    Attributes:
        running: None while none runs.
        shown: The one that runs or ran last, of those that show as the pool's operations.
        last: How that stands, or one that was adopted since.
        totals: Those that have ended, added up.
        observers: Called with an operation whenever it changes.
        bytes_per_second: How fast one worker has lately brought experts in.
    """

    def __init__(
        self,
        ground: Ground,
        deadlines: Deadlines,
        on_change: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._ground = ground
        self._deadlines = deadlines
        self._on_change = on_change
        self._known: dict[str, Operation] = {}
        self._task: asyncio.Task[None] | None = None
        self.running: Waves | None = None
        self.shown: Waves | None = None
        self.last: Operation | None = None
        self.totals = OperationTotals()
        self.observers: list[Callable[[Operation], None]] = []
        self.bytes_per_second = _ASSUMED_BYTES_PER_SECOND

    def planning(self, request: Request) -> Callable[[], Planned]:
        """See `Ground.planning`."""
        return self._ground.planning(request, self.bytes_per_second)

    def begin(self, request: Request, planned: Planned | None = None) -> Operation:
        """Start a reconfiguration; it goes on in the background.

        Args:
            request: What is asked for.
            planned: How it is carried out; None: it is worked out here.

        Raises:
            OperationRunning: Another one runs.
        """
        if self.running is not None:
            raise OperationRunning(f"operation {self.running.request.operation} is running")
        planned = planned or self.planning(request)()
        self.running = Waves(
            request,
            planned.waves,
            self._ground,
            self._deadlines,
            lambda operation: self._note(operation, request.recorded),
            planned.prediction,
            self._clock,
        )
        self.shown = self.running if request.recorded else self.shown
        self._note(self.running.operation, request.recorded)
        self._task = asyncio.create_task(self._run(self.running))
        return self.running.operation

    def find(self, operation: str) -> Operation | None:
        """An operation of this controller, by its id."""
        return self._known.get(operation)

    def history(self) -> tuple[Operation, ...]:
        """The operations that are remembered, the first begun first."""
        return tuple(self._known.values())

    def get(self, operation: str) -> Operation:
        """An operation of this controller, by its id.

        Raises:
            UnknownName: There is none.
        """
        found = self._known.get(operation)
        if found is None:
            raise UnknownName(f"no operation {operation}")
        return found

    def adopt(self, table: RoutingTable, now: float) -> Operation:
        """The operation of a table that an earlier controller published: it has committed, so it succeeded."""
        operation = Operation(
            table.operation, Cause.UNSPECIFIED, Phase.SUCCEEDED, table.epoch, now, epoch=table.epoch, finished_at=now
        )
        self._known[table.operation] = operation
        return operation

    def cancel(self, operation: str) -> Operation:
        """End an operation before it commits; a finished one stays as it is.

        Raises:
            UnknownName: There is none of that id.
            Committed: It rolls forward.
        """
        found = self.get(operation)
        if self.running is not None and self.running.request.operation == operation and not found.phase.finished:
            self.running.cancel("cancelled by request")
        return found

    async def settled(self) -> None:
        """Wait until no operation runs."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """Abandon what runs, wherever it stands: the next incarnation resumes from what the workers hold."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, waves: Waves) -> None:
        try:
            with logs.saying(operation=waves.request.operation):
                ended = await waves.run()
            if waves.request.recorded:
                self.totals.add(ended)
            if waves.busiest_bytes:
                self.bytes_per_second = waves.busiest_bytes / max(ended.phase_seconds["prepare"], 1e-3)
        finally:
            self.running = None
            self._on_change()

    def _note(self, operation: Operation, recorded: bool) -> None:
        if recorded:
            for observe in self.observers:
                observe(operation)
            _log_phase(self._known.get(operation.id), operation)
            self._known[operation.id] = self.last = operation
            while len(self._known) > _REMEMBERED:
                del self._known[next(iter(self._known))]
        self._on_change()


def _log_phase(before: Operation | None, now: Operation) -> None:
    """A line for every phase, under the operation's id."""
    if before is None or (before.phase, before.wave) != (now.phase, now.wave):
        with logs.saying(operation=now.id):
            wave = f", wave {now.wave}" if now.wave > 1 else ""
            log.info("operation %s (%s): %s%s %s", now.id, now.cause.lower(), now.phase.lower(), wave, now.message)


def check_base(request: Request, keeper: TableKeeper) -> None:
    """Check that a request starts from the table in force.

    Raises:
        StaleEpoch: It does not.
    """
    if request.base_epoch != keeper.epoch:
        raise StaleEpoch(f"the plan starts from table {request.base_epoch}, but {keeper.epoch} is in force; plan again")
