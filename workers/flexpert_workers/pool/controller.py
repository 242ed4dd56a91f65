"""The pool controller's core, on asyncio and without Ray: one table in force, every expert with a live replica.

`service` calls its public methods; `controller_actor` runs it inside Ray.

It keeps no journal. A new incarnation finds the workers, adopts the highest table they hold, serves it to engines, and
may change it once the operator has granted a term.
"""

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from flexpert_proto.ledger import FiguresLedger
from flexpert_workers.errors import CheckpointError
from flexpert_workers.messages.control import WorkerState
from flexpert_workers.pool.aside import aside
from flexpert_workers.pool.caretaker import Caretaker, Wanted
from flexpert_workers.pool.changes import Changes
from flexpert_workers.pool.exceptions import InvalidPlan, NotConfigured, NotGranted, UnknownName
from flexpert_workers.pool.fetching import ModelFetches
from flexpert_workers.pool.fleet import LinkFactory, Patience, WorkerFleet
from flexpert_workers.pool.healing import Healer
from flexpert_workers.pool.inspector import Inspector
from flexpert_workers.pool.keeper import TableKeeper
from flexpert_workers.pool.launchers import EngineLauncher, LauncherUnavailable, NodeFetcher, WorkerLauncher
from flexpert_workers.pool.leases import EngineRegistry, LeaseTerms
from flexpert_workers.pool.operations import Ground, Operations, check_base
from flexpert_workers.pool.predict import Planned
from flexpert_workers.pool.reconfigure import Deadlines
from flexpert_workers.pool.recording import Recordings
from flexpert_workers.pool.roles import Roles
from flexpert_workers.pool.rounds import Rounds
from flexpert_workers.pool.state import (
    Expert,
    ModelFacts,
    ModelFiles,
    Operation,
    PoolSpec,
    Prediction,
    Request,
)
from flexpert_workers.pool.tables import placement_of, replicas_gone, without_replicas
from flexpert_workers.pool.watching import SourceWatch
from flexpert_workers.routing import RoutingTable
from flexpert_workers.sources import pinned_source

log = logging.getLogger(__name__)


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
    """One incarnation of a pool's controller. Everything runs on one event loop.

    Args:
        settings: What it is told.
        workers: Starts workers.
        engines: Starts engines.
        links: Connects to workers.
        inspector: Opens checkpoints.
        clock: Seconds, monotonic.
        new_id: A part of a name, never the same twice.
        fetcher: Fetches remote models to nodes; None where only folders are served.
        watch: Notices that a source is not what is served any more; None for the usual one.
    """

    def __init__(
        self,
        settings: Settings,
        workers: WorkerLauncher,
        engines: EngineLauncher,
        links: LinkFactory,
        inspector: Inspector,
        clock: Callable[[], float] = time.monotonic,
        new_id: Callable[[], str] = lambda: secrets.token_hex(4),
        fetcher: NodeFetcher | None = None,
        watch: SourceWatch | None = None,
    ) -> None:
        self.incarnation = secrets.token_hex(8)
        self.changes = Changes()
        self._worker_changes = Changes()
        self._engine_changes = Changes()
        self.settings = settings
        self.keeper = TableKeeper()
        self.engines = EngineRegistry(settings.leases, self.changes.bump, clock)
        self.recordings = Recordings(self.engines, clock)
        self.figures = FiguresLedger(self.incarnation, time.time(), clock)
        self.fleet = WorkerFleet(settings.pool, links, settings.patience, self.figures, self._workers_changed, clock)
        ground = Ground(settings.pool, self.fleet, self.engines, self.keeper, lambda: self.model)
        self.operations = Operations(ground, settings.deadlines, self.changes.bump, clock)
        self.spec: PoolSpec | None = None
        self.generation = 0
        self.model: ModelFacts | None = None
        self._caretaker = Caretaker(self.fleet, workers, self._found, settings.lost_kept_s, new_id, clock)
        self._engine_launcher = engines
        self._inspector = inspector
        self._inspected: ModelFacts | None = None
        self._fetches = ModelFetches(fetcher, self._files_changed, clock)
        self._watch = watch or SourceWatch(inspector, clock=clock)
        self._newer = ""
        self._roles = Roles(self.fleet, self.keeper, self.operations, clock)
        self._healer = Healer(
            self.fleet, self.keeper, self.operations, partial(self._note_problem, "recovery"), clock, new_id
        )
        self._rounds = Rounds(settings.round_s)
        self._inspecting: tuple[str, str, str] | None = None
        self._problems: dict[str, str] = {}

    # ---- life

    async def start(self) -> None:
        """Find the workers of an earlier incarnation, adopt the highest table, begin to keep the pool."""
        await self._caretaker.discover(self.settings.discovery_s, self.settings.round_s)
        self._rounds.repeat(self._round, self._worker_changes)
        self._rounds.repeat(self._tend, self.changes)
        self._rounds.repeat(self._tend_engines, self._engine_changes)
        self._rounds.repeat(self._tend_files, Changes())

    async def stop(self) -> None:
        """End this incarnation; workers and engines run on."""
        await self._rounds.stop()
        await self.operations.close()
        self._caretaker.close()
        self.engines.close()
        self.fleet.close()

    # ---- what the operator asks

    def configure(self, incarnation: str, term: int, generation: int, spec: PoolSpec, leader: int = 0) -> None:
        """Take the specification and the right to commit.

        Raises:
            StaleLeader: A later leader than `leader` has asked.
            NotGranted: It is meant for another incarnation or pool, or the term is not higher than an earlier one.
        """
        if incarnation != self.incarnation:
            raise NotGranted(f"this is incarnation {self.incarnation}, not {incarnation}; ask GetPool and grant anew")
        if spec.uid != self.settings.pool:
            raise NotGranted(f"this is the controller of pool {self.settings.pool}, not of {spec.uid}")
        self.keeper.follow(leader)
        self.keeper.saw(self.engines.highest_epoch())
        if self.keeper.grant(term):
            log.info("granted term %d", term)
        before, self.spec, self.generation = self.spec, spec, generation
        changed = before is None or _model_of(before) != _model_of(spec) or "model" in self._problems
        if changed and self._inspecting != _model_of(spec):
            self._rounds.spawn(self._inspect(spec))
        self._engine_changes.bump()
        self._workers_changed()

    async def inspect(self, source: str, revision: str, dtype: str, resolved: str = "") -> ModelFacts:
        """Facts of a checkpoint, at what its revision was `resolved` to before; raises `errors.CheckpointError`."""
        for known in (self.model, self._inspected):
            if known is not None and (source, revision, dtype) == _key(known):
                return known
        found = await self._inspector(pinned_source(source, resolved), revision, dtype)
        self._inspected = replace(found, source=source)
        return self._inspected

    def drain(self, workers: tuple[str, ...], undo: bool, leader: int = 0) -> None:
        """Mark workers to be emptied, or take that back.

        Raises:
            StaleLeader: A later leader than `leader` has asked.
            UnknownName: One of them is not known; then none is marked.
        """
        self.keeper.follow(leader)
        unknown = [worker for worker in workers if worker not in self.fleet.workers]
        if unknown:
            raise UnknownName(f"no worker {', '.join(unknown)}")
        for worker in workers:
            self.fleet.drain(worker, undo)

    def predict(self, request: Request) -> Prediction:
        """The dry run of a plan; raises `NotConfigured`."""
        return self._judged(request, self.planning(request)())

    async def predict_aside(self, request: Request) -> Prediction:
        """`predict`, while the event loop goes on."""
        return self._judged(request, await aside(len(request.target), self.planning(request)))

    async def reconfigure_aside(self, request: Request) -> Operation:
        """`reconfigure`, while the event loop goes on."""
        if self._known(request) is None:
            self._check_may_begin(request)
            return self.reconfigure(request, await aside(len(request.target), self.planning(request)))
        return self.reconfigure(request)

    def planning(self, request: Request) -> Callable[[], Planned]:
        """What works a request out on the pool as it is now; raises `NotConfigured`."""
        self._model()
        return self.operations.planning(request)

    def reconfigure(self, request: Request, planned: Planned | None = None) -> Operation:
        """Begin a reconfiguration; the same operation id again returns the same operation.

        Args:
            request: What is asked for.
            planned: How it is carried out; None: it is worked out here.

        Raises:
            StaleLeader, NotGranted, NotConfigured, OperationRunning, InvalidPlan, StaleEpoch: See there.
        """
        known = self._known(request)
        if known is not None:
            return known
        self._check_may_begin(request)
        planned = planned or self.planning(request)()
        if planned.prediction.refusal:
            raise InvalidPlan(planned.prediction.refusal)
        return self.operations.begin(request, planned)

    def _known(self, request: Request) -> Operation | None:
        known, table = self.operations.find(request.operation), self.keeper.table
        if known is None and table is not None and table.operation == request.operation:
            return self.operations.adopt(table, time.time())
        return known

    def _check_may_begin(self, request: Request) -> None:
        if not request.operation:
            raise InvalidPlan("operation_id is empty")
        self.keeper.follow(request.leader)
        if self.keeper.term == 0:
            raise NotGranted("this controller has no term yet; call Configure")
        check_base(request, self.keeper)

    def _judged(self, request: Request, planned: Planned) -> Prediction:
        """What is expected of a plan; one that starts from another table is refused."""
        if request.base_epoch != self.keeper.epoch:
            stale = f"the plan starts from table {request.base_epoch}, but {self.keeper.epoch} is in force"
            return replace(planned.prediction, refusal=stale)
        return planned.prediction

    # ---- what can be seen

    def message(self) -> str:
        """Why the pool cannot serve, in a sentence, or empty."""
        if self.spec is None:
            return "waiting for the operator to configure the pool"
        problems = {**self._problems, **self._caretaker.problems}
        return "; ".join(text for _, text in sorted(problems.items()))

    def files(self) -> ModelFiles:
        """How far the model's files are on the nodes, and whether the source still is what is served."""
        return replace(self._fetches.files(), newer_revision=self._newer)

    def lost_experts(self) -> tuple[Expert, ...]:
        """Experts of the table in force without a live replica."""
        placement = placement_of(self.keeper.table)
        _, lost = without_replicas(placement, replicas_gone(placement, self.fleet.held()))
        return tuple(sorted(lost))

    def layer_imbalance(self) -> tuple[float, ...]:
        """[layers] the busiest worker's tokens over the average, lately; empty while no model is known."""
        serving = [worker.id for worker in self.fleet.all() if worker.placeable]
        return self.fleet.balance.imbalance(serving, self.model.layers) if self.model is not None else ()

    # ---- rounds

    async def _round(self) -> None:
        """Make slots and workers agree, where the model's files are."""
        busy = self.operations.running is not None
        spec = self._startable()
        holds = partial(self._fetches.holds, spec.source if spec is not None else "")
        await self._caretaker.round(Wanted(spec, self.model, self._roles.named(), busy, holds))

    async def _tend_files(self) -> None:
        """Have the model's files on every node, and notice when its source is not what is served any more."""
        spec, model = self._startable(), self.model
        if spec is not None and model is not None:
            await self._fetches.round(spec.source, model.fetched_bytes)
            self._note_problem("files", self._fetches.files().message)
        newer = await self._watch.look(model) if model is not None else ""
        if newer != self._newer:
            self._newer = newer
            self.changes.bump()

    async def _tend(self) -> None:
        """Keep every expert served: expel silent engines, recover what was lost, fence earlier controllers."""
        self.engines.sweep()
        self._settle_roles()
        if self.model is not None:
            await self._healer.tend(self.model)

    # ---- the model and the engines

    async def _inspect(self, spec: PoolSpec) -> None:
        wanted = self._inspecting = _model_of(spec)
        self._note_problem("model", f"inspecting the checkpoint {spec.source}")
        problem = ""
        try:
            facts = await self.inspect(*wanted, spec.resolved)
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
            await self._engine_launcher.apply(self._opening(self.spec, self.model))
            problem = await self._engine_launcher.problem()
        except LauncherUnavailable as away:
            problem = f"engines cannot be started: {away}"
        self._note_problem("engines", problem)

    # ---- small things

    def _startable(self) -> PoolSpec | None:
        """What workers are started with; None while none may be."""
        if self.spec is None or self.model is None or self.keeper.term == 0:
            return None
        return self._opening(self.spec, self.model)

    def _opening(self, spec: PoolSpec, model: ModelFacts) -> PoolSpec:
        """The specification with what is to be opened as its source."""
        return replace(spec, source=model.opened or spec.source)

    def _files_changed(self) -> None:
        self._worker_changes.bump()
        self.changes.bump()

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
        self._roles.settle(self.spec.workers if self.spec is not None else 0)

    def _note_problem(self, about: str, problem: str) -> None:
        if self._problems.get(about, "") == problem:
            return
        if problem:
            self._problems[about] = problem
        else:
            del self._problems[about]
        self.changes.bump()


def _model_of(spec: PoolSpec) -> tuple[str, str, str]:
    return (spec.source, spec.revision, spec.dtype)


def _key(model: ModelFacts) -> tuple[str, str, str]:
    return (model.source, model.revision, model.dtype)
