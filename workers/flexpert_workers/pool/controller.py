"""The pool controller's core, on asyncio and without Ray: one table in force, every expert with a live replica.

`service` calls its public methods; `controller_actor` runs it inside Ray.

It keeps no journal. A new incarnation finds the workers, adopts the highest table they hold, serves it to engines, and
may change it once the operator has granted a term.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace

from flexpert_workers.errors import CheckpointError
from flexpert_workers.messages.control import WorkerState
from flexpert_workers.pool.caretaker import Caretaker, Wanted
from flexpert_workers.pool.changes import Changes
from flexpert_workers.pool.exceptions import InvalidPlan, NotConfigured, NotGranted, UnknownName
from flexpert_workers.pool.fleet import LinkFactory, Patience, WorkerFleet
from flexpert_workers.pool.inspector import Inspector
from flexpert_workers.pool.keeper import TableKeeper
from flexpert_workers.pool.launchers import EngineLauncher, LauncherUnavailable, WorkerLauncher
from flexpert_workers.pool.leases import EngineRegistry, LeaseTerms
from flexpert_workers.pool.operations import Ground, Operations, check_base
from flexpert_workers.pool.predict import check_request, predict
from flexpert_workers.pool.reconcile import decide_roles
from flexpert_workers.pool.reconfigure import Deadlines
from flexpert_workers.pool.recovery import needs_recovery, plan_recovery
from flexpert_workers.pool.state import (
    Cause,
    Condition,
    Expert,
    ModelFacts,
    Operation,
    PoolSpec,
    Prediction,
    Request,
)
from flexpert_workers.pool.tables import placement_of, replicas_gone, without_replicas
from flexpert_workers.routing import RoutingTable

log = logging.getLogger(__name__)

_RETRY_S = 1.0


@dataclass(frozen=True)
class Settings:
    """What a controller is told when it is made.

    Attributes:
        pool: uid of the MoEDeployment.
        round_s: How often workers and slots are looked at, when nothing happens in between.
        discovery_s: How long a new incarnation waits for the workers that it finds.
        lost_kept_s: For how long a lost worker stays listed.
    """

    pool: str
    round_s: float = 0.25
    discovery_s: float = 30.0
    lost_kept_s: float = 60.0
    patience: Patience = field(default_factory=Patience)
    leases: LeaseTerms = field(default_factory=LeaseTerms)
    deadlines: Deadlines = field(default_factory=Deadlines)


class PoolController:
    """One incarnation of a pool's controller. Everything runs on one event loop."""

    def __init__(
        self,
        settings: Settings,
        workers: WorkerLauncher,
        engines: EngineLauncher,
        links: LinkFactory,
        inspector: Inspector,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.incarnation = secrets.token_hex(8)
        self.changes = Changes()
        self._worker_changes = Changes()
        self._engine_changes = Changes()
        self.settings = settings
        self.keeper = TableKeeper()
        self.engines = EngineRegistry(settings.leases, self.changes.bump, clock)
        self.fleet = WorkerFleet(settings.pool, links, settings.patience, self._workers_changed, clock)
        ground = Ground(settings.pool, self.fleet, self.engines, self.keeper, lambda: self.model)
        self.operations = Operations(ground, settings.deadlines, self.changes.bump, clock)
        self.spec: PoolSpec | None = None
        self.generation = 0
        self.model: ModelFacts | None = None
        self._caretaker = Caretaker(self.fleet, workers, self._found, settings.lost_kept_s, clock)
        self._engine_launcher = engines
        self._inspector = inspector
        self._inspected: ModelFacts | None = None
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._inspecting: tuple[str, str, str] | None = None
        self._problems: dict[str, str] = {}
        self._missing_since: float | None = None
        self._attempts: dict[str, tuple[frozenset[str], float]] = {}

    # ---- life

    async def start(self) -> None:
        """Find the workers of an earlier incarnation, adopt the highest table, begin to keep the pool."""
        await self._caretaker.discover(self.settings.discovery_s, self.settings.round_s)
        self._spawn(self._forever(self._round, self._worker_changes))
        self._spawn(self._forever(self._tend, self.changes))
        self._spawn(self._forever(self._tend_engines, self._engine_changes))

    async def stop(self) -> None:
        """End this incarnation; workers and engines run on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.operations.close()
        self._caretaker.close()
        self.engines.close()
        self.fleet.close()

    # ---- what the operator asks

    def configure(self, incarnation: str, term: int, generation: int, spec: PoolSpec) -> None:
        """Take the specification and the right to commit.

        Raises:
            NotGranted: It is meant for another incarnation or pool, or the term is not higher than an earlier one.
        """
        if incarnation != self.incarnation:
            raise NotGranted(f"this is incarnation {self.incarnation}, not {incarnation}; ask GetPool and grant anew")
        if spec.uid != self.settings.pool:
            raise NotGranted(f"this is the controller of pool {self.settings.pool}, not of {spec.uid}")
        self.keeper.saw(self.engines.highest_epoch())
        if self.keeper.grant(term):
            log.info("granted term %d", term)
        before, self.spec, self.generation = self.spec, spec, generation
        changed = before is None or _model_of(before) != _model_of(spec) or "model" in self._problems
        if changed and self._inspecting != _model_of(spec):
            self._spawn(self._inspect(spec))
        self._engine_changes.bump()
        self._workers_changed()

    async def inspect(self, source: str, revision: str, dtype: str) -> ModelFacts:
        """Facts of a checkpoint; raises `errors.CheckpointError`."""
        for known in (self.model, self._inspected):
            if known is not None and (source, revision, dtype) == _key(known):
                return known
        self._inspected = await self._inspector(source, revision, dtype)
        return self._inspected

    def drain(self, workers: tuple[str, ...], undo: bool) -> None:
        """Mark workers to be emptied, or take that back.

        Raises:
            UnknownName: One of them is not known; then none is marked.
        """
        unknown = [worker for worker in workers if worker not in self.fleet.workers]
        if unknown:
            raise UnknownName(f"no worker {', '.join(unknown)}")
        for worker in workers:
            self.fleet.drain(worker, undo)

    def predict(self, request: Request) -> Prediction:
        """The dry run of a plan; raises `NotConfigured`."""
        base, rate = placement_of(self.keeper.table), self.operations.bytes_per_second
        prediction = predict(request, self._model(), self.fleet.all(), base, rate)
        if request.base_epoch != self.keeper.epoch:
            stale = f"the plan starts from table {request.base_epoch}, but {self.keeper.epoch} is in force"
            return replace(prediction, refusal=stale)
        return prediction

    def reconfigure(self, request: Request) -> Operation:
        """Begin a reconfiguration; the same operation id again returns the same operation.

        Raises:
            NotGranted, NotConfigured, OperationRunning, InvalidPlan, StaleEpoch: See there.
        """
        known = self.operations.find(request.operation)
        if known is not None:
            return known
        table = self.keeper.table
        if table is not None and table.operation == request.operation:
            return self.operations.adopt(table, time.time())
        if not request.operation:
            raise InvalidPlan("operation_id is empty")
        if self.keeper.term == 0:
            raise NotGranted("this controller has no term yet; call Configure")
        check_base(request, self.keeper)
        check_request(request, self._model(), self.fleet.all(), placement_of(self.keeper.table))
        return self.operations.begin(request)

    # ---- what can be seen

    def message(self) -> str:
        """Why the pool cannot serve, in a sentence, or empty."""
        if self.spec is None:
            return "waiting for the operator to configure the pool"
        problems = {**self._problems, **self._caretaker.problems}
        return "; ".join(text for _, text in sorted(problems.items()))

    def lost_experts(self) -> tuple[Expert, ...]:
        """Experts of the table in force without a live replica."""
        placement = placement_of(self.keeper.table)
        _, lost = without_replicas(placement, replicas_gone(placement, self.fleet.held()))
        return tuple(sorted(lost))

    # ---- rounds

    async def _forever(self, act: Callable[[], Coroutine[None, None, None]], changes: Changes) -> None:
        """Call `act` whenever something changed, and every `round_s`. A failed round does not end the controller."""
        while True:
            seen = changes.count
            try:
                await act()
            except LauncherUnavailable as away:
                log.info("the launcher is away: %s", away)
            except Exception:
                log.exception("a round of the pool controller failed")
                seen = changes.count
            await changes.wait(seen, self.settings.round_s)

    async def _round(self) -> None:
        """Make slots and workers agree."""
        may_start = self.keeper.term > 0 and self.model is not None
        placement = placement_of(self.keeper.table)
        busy = self.operations.running is not None
        await self._caretaker.round(Wanted(self.spec if may_start else None, self.model, placement, busy))

    async def _tend(self) -> None:
        """Keep every expert served: expel silent engines, recover what was lost, fence earlier controllers."""
        self.engines.sweep()
        self._settle_roles()
        table, model = self.keeper.table, self.model
        if self.keeper.term == 0 or table is None or model is None or model.digest != table.digest:
            return
        if self.operations.running is not None:
            self._preempt(table)
        elif needs_recovery(placement_of(table), self.fleet.all()):
            self._recover(table, model)
            return
        elif self.keeper.foreign_term and self._may_try("fence"):
            placement = placement_of(table)
            fence = Request(table.operation, Cause.UNSPECIFIED, table.epoch, (), placement, recorded=False)
            self.operations.begin(fence)
        self._note_problem("recovery", "")

    # ---- recovery

    def _preempt(self, table: RoutingTable) -> None:
        """Recovery goes before a running operation that the death of a worker spoils."""
        running = self.operations.running
        named = {address.worker for address in table.workers}
        dead = [worker.id for worker in self.fleet.all() if worker.condition is Condition.LOST]
        for worker in dead:
            in_force = worker in named and running is not None and not _is_recovery(running.request)
            if running is not None and (in_force or worker in running.workers()):
                running.preempt(f"worker {worker} died")

    def _recover(self, table: RoutingTable, model: ModelFacts) -> None:
        recovery = plan_recovery(placement_of(table), self.fleet.all(), model.expert_bytes, self._expert_loads(model))
        if recovery.unplaced:
            text = "{} experts have no replica and no worker has room for them; add workers or raise memoryPerWorker"
            self._note_problem("recovery", text.format(len(recovery.unplaced)))
            return
        if not self._may_try("recovery"):
            return
        name = f"recovery-{secrets.token_hex(4)}"
        self.operations.begin(Request(name, Cause.FAILURE, table.epoch, recovery.moves, recovery.target))

    def _may_try(self, what: str) -> bool:
        """Whether to begin something now that may fail again: at once with other workers, else after a pause."""
        live, now = self.fleet.live(), self._clock()
        if what in self._attempts and self._attempts[what][0] == live and now < self._attempts[what][1] + _RETRY_S:
            return False
        self._attempts[what] = (live, now)
        return True

    def _expert_loads(self, model: ModelFacts) -> dict[Expert, float]:
        counts = self.fleet.loads.total(model.layers * model.experts)
        return {divmod(position, model.experts): float(count) for position, count in enumerate(counts)}

    # ---- the model and the engines

    async def _inspect(self, spec: PoolSpec) -> None:
        wanted = self._inspecting = _model_of(spec)
        self._note_problem("model", f"inspecting the checkpoint {spec.source}")
        problem = ""
        try:
            facts = await self.inspect(*wanted)
        except CheckpointError as unusable:
            problem = str(unusable)
        else:
            problem = self._take_model(facts) if self._inspecting == wanted else ""
        if self._inspecting == wanted:
            self._inspecting = None
            self._note_problem("model", problem)

    def _take_model(self, facts: ModelFacts) -> str:
        """Serve this checkpoint from now on; returns why not, or nothing."""
        table = self.keeper.table
        if table is not None and table.digest != facts.digest:
            return (
                f"{facts.source} is another checkpoint than the one being served; "
                "make a new MoEDeployment for it, or set model.source back"
            )
        self.model = facts
        self._worker_changes.bump()
        self._engine_changes.bump()
        return ""

    async def _tend_engines(self) -> None:
        """Have the engines be as the specification says, once the model is known to be good."""
        if self.spec is None or self.model is None:
            return
        try:
            await self._engine_launcher.apply(self.spec)
            problem = await self._engine_launcher.problem()
        except LauncherUnavailable as away:
            problem = f"engines cannot be started: {away}"
        self._note_problem("engines", problem)

    # ---- small things

    def _model(self) -> ModelFacts:
        if self.model is None:
            raise NotConfigured(self.message() or "no model is known yet")
        return self.model

    def _found(self, state: WorkerState) -> None:
        """A worker is up; the table that it knows may be the newest."""
        if state.table and self.keeper.adopt(RoutingTable.decode(state.table)) and self.keeper.table is not None:
            log.info("adopted table %s from worker %s", self.keeper.epoch, state.worker)
            self.engines.publish(self.keeper.table)
        self._settle_roles()
        self.changes.bump()

    def _workers_changed(self) -> None:
        self._worker_changes.bump()
        self._settle_roles()
        self.changes.bump()

    def _settle_roles(self) -> None:
        """Promote standbys at once where workers are missing, and let those that are too many stand by."""
        running = self.operations.running
        named = {address.worker for address in self.keeper.table.workers} if self.keeper.table is not None else set()
        named |= running.workers() if running is not None else frozenset()
        wanted = self.spec.workers if self.spec is not None else 0
        roles = decide_roles(self.fleet.all(), named, wanted, self._orphaned_domains(named))
        now, missing_since = self._clock(), self._missing_since
        self.fleet.cast(roles, now - missing_since if missing_since is not None else 0.0)
        ready = sum(one.condition is Condition.READY for one in self.fleet.all())
        self._missing_since = (missing_since or now) if wanted is not None and ready < wanted else None

    def _orphaned_domains(self, named: set[str]) -> frozenset[str]:
        """Page owners of workers that are lost and held experts of the table in force."""
        lost = (one for one in self.fleet.all() if one.condition is Condition.LOST and one.id in named)
        return frozenset(one.state.domain for one in lost if one.state is not None and one.state.domain)

    def _note_problem(self, about: str, problem: str) -> None:
        if self._problems.get(about, "") == problem:
            return
        if problem:
            self._problems[about] = problem
        else:
            del self._problems[about]
        self.changes.bump()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_log_failure)


def _log_failure(task: asyncio.Task[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        failure = task.exception()
        if failure is not None:
            log.error("a task of the pool controller failed", exc_info=failure)


def _model_of(spec: PoolSpec) -> tuple[str, str, str]:
    return (spec.source, spec.revision, spec.dtype)


def _key(model: ModelFacts) -> tuple[str, str, str]:
    return (model.source, model.revision, model.dtype)


def _is_recovery(request: Request) -> bool:
    return request.cause is Cause.FAILURE
