"""Keeps every expert served: recovers what was lost, makes way for that, fences earlier controllers.

`controller` asks a `Healer` whenever something changed. What to do about losses is decided by `recovery`, purely.
"""

import secrets
import time
from collections.abc import Callable
from functools import partial

from flexpert_workers.pool.aside import aside
from flexpert_workers.pool.fleet import WorkerFleet
from flexpert_workers.pool.keeper import TableKeeper
from flexpert_workers.pool.operations import Operations
from flexpert_workers.pool.recovery import needs_recovery, plan_recovery
from flexpert_workers.pool.state import Cause, Condition, Expert, ModelFacts, Request, Worker
from flexpert_workers.pool.tables import placement_of
from flexpert_workers.routing import RoutingTable

_RETRY_S = 1.0


class Healer:
    """Begins recoveries.

    Args:
        fleet: The workers.
        keeper: Of the table in force.
        operations: Where recoveries run.
        note: Is told why experts cannot be recovered, or nothing.
        clock: Seconds, monotonic.
        new_id: A part of a name, never the same twice.
    """

    def __init__(
        self,
        fleet: WorkerFleet,
        keeper: TableKeeper,
        operations: Operations,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        new_id: Callable[[], str] = lambda: secrets.token_hex(4),
    ) -> None:
        self._fleet = fleet
        self._keeper = keeper
        self._operations = operations
        self._note = note
        self._clock = clock
        self._new_id = new_id
        self._whole: tuple[RoutingTable, tuple[Worker, ...]] | None = None
        self._attempts: dict[str, tuple[frozenset[str], float]] = {}

    async def tend(self, model: ModelFacts) -> None:
        """Look at the pool as it is, and begin what it needs."""
        table = self._keeper.table
        if self._keeper.term == 0 or table is None or model.digest != table.digest:
            return
        if self._operations.running is not None:
            self._preempt(table)
        elif await self._lacks_replicas(table):
            await self._recover(table, model)
            return
        elif self._keeper.foreign_term and self._may_try("fence"):
            placement = placement_of(table)
            fence = Request(table.operation, Cause.UNSPECIFIED, table.epoch, (), placement, recorded=False)
            await self._begin(fence, table)
        self._note("")

    def _preempt(self, table: RoutingTable) -> None:
        """Recovery goes before a running operation that the death of a worker spoils."""
        running = self._operations.running
        named = {address.worker for address in table.workers}
        dead = [worker.id for worker in self._fleet.all() if worker.condition is Condition.LOST]
        for worker in dead:
            in_force = worker in named and running is not None and running.request.cause is not Cause.FAILURE
            if running is not None and (in_force or worker in running.workers()):
                running.preempt(f"worker {worker} died")

    async def _lacks_replicas(self, table: RoutingTable) -> bool:
        """Whether replicas of the table in force are not there; what was found whole is not looked at again."""
        looked_at = table, self._fleet.all()
        if looked_at == self._whole:
            return False
        placement = placement_of(table)
        lacks = await aside(len(placement), partial(needs_recovery, placement, looked_at[1]))
        self._whole = None if lacks else looked_at
        return lacks

    async def _recover(self, table: RoutingTable, model: ModelFacts) -> None:
        """Give what was lost a new home."""
        size, workers, loads = model.layers * model.experts, self._fleet.all(), self._expert_loads(model)
        recovery = await aside(size, partial(plan_recovery, placement_of(table), workers, model.expert_bytes, loads))
        if recovery.unplaced:
            text = "{} experts have no replica and no worker has room for them; add workers or raise memoryPerWorker"
            self._note(text.format(len(recovery.unplaced)))
        elif self._may_try("recovery"):
            name = f"recovery-{self._new_id()}"
            request = Request(name, Cause.FAILURE, table.epoch, recovery.moves, recovery.target)
            await self._begin(request, table)

    async def _begin(self, request: Request, table: RoutingTable) -> None:
        """Begin what follows from a table, unless something else has begun by the time it is worked out."""
        planned = await aside(len(request.target), self._operations.planning(request))
        if self._operations.running is None and self._keeper.table is table and self._keeper.term:
            self._operations.begin(request, planned)

    def _may_try(self, what: str) -> bool:
        """Whether to begin something now that may fail again: at once with other workers, else after a pause."""
        live, now = self._fleet.live(), self._clock()
        if what in self._attempts and self._attempts[what][0] == live and now < self._attempts[what][1] + _RETRY_S:
            return False
        self._attempts[what] = (live, now)
        return True

    def _expert_loads(self, model: ModelFacts) -> dict[Expert, float]:
        counts = self._fleet.loads.total(model.layers * model.experts)
        return {divmod(position, model.experts): float(count) for position, count in enumerate(counts)}
