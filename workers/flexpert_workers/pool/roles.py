"""Has workers serve or stand by, as `reconcile.decide_roles` says; `controller` calls it whenever one changes."""

from collections.abc import Callable

from flexpert_workers.pool.fleet import WorkerFleet
from flexpert_workers.pool.keeper import TableKeeper
from flexpert_workers.pool.operations import Operations
from flexpert_workers.pool.reconcile import decide_roles
from flexpert_workers.pool.state import Condition


class Roles:
    """Who serves, and since when fewer do than should.

    Args:
        fleet: The workers.
        keeper: The table in force.
        operations: What a reconfiguration that runs names.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, fleet: WorkerFleet, keeper: TableKeeper, operations: Operations, clock: Callable[[], float]
    ) -> None:
        self._fleet = fleet
        self._keeper = keeper
        self._operations = operations
        self._clock = clock
        self._missing_since: float | None = None

    def settle(self, wanted: int | None) -> None:
        """Promote standbys at once where workers are missing, and let those that are too many stand by."""
        running = self._operations.running
        in_force = self.named()
        named = in_force | running.workers() if running is not None else in_force
        roles = decide_roles(self._fleet.all(), named, wanted, self._orphaned_domains(named))
        now, missing_since = self._clock(), self._missing_since
        self._fleet.cast(roles, now - missing_since if missing_since is not None else 0.0)
        ready = sum(one.condition is Condition.READY for one in self._fleet.all())
        self._missing_since = (missing_since or now) if wanted is not None and ready < wanted else None

    def named(self) -> frozenset[str]:
        """Workers of the table in force."""
        table = self._keeper.table
        return frozenset(address.worker for address in table.workers) if table is not None else frozenset()

    def _orphaned_domains(self, named: frozenset[str]) -> frozenset[str]:
        """Page owners of workers that are lost and held experts of the table in force."""
        lost = (one for one in self._fleet.all() if one.condition is Condition.LOST and one.id in named)
        return frozenset(one.state.domain for one in lost if one.state is not None and one.state.domain)
