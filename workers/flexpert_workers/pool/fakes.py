"""Stand-ins for what the controller reaches: workers that speak the control protocol in this process, launchers that
start nothing. Tests of the controller, and of whoever talks to it, use them.
"""

import asyncio
from collections.abc import Callable, Sequence

from flexpert_workers.messages import control
from flexpert_workers.pool.exceptions import WorkerUnreachable
from flexpert_workers.pool.state import Expert, LaunchedWorker, ModelFacts, PoolSpec, Slot
from flexpert_workers.routing import RoutingTable

Answer = control.ControlReply | None

_END_S = 0.1


class FakeWorker:
    """A worker without a process. Experts come at once, unless `gate` is closed.

    Attributes:
        gate: Preparing finishes while it is set.
        script: Request type → what to answer instead (None: nothing at all); takes effect until removed.
        asked: Every request, in order.
        up: Whether it answers.
        peak: Most experts that it held at once.
        pages: Bytes of each expert that it ever brought in, from a peer that holds it, else as `page_of` has them.
        fetched: Pages that came from peers.
        domain: As it describes itself.
    """

    def __init__(
        self,
        worker: str,
        pool: str,
        model: ModelFacts,
        memory_experts: int = 10_000,
        peer: "Callable[[str], FakeWorker | None]" = lambda _: None,
    ) -> None:
        self.worker = worker
        self.pool = pool
        self.model = model
        self.memory_bytes = memory_experts * model.expert_bytes
        self.experts: set[Expert] = set()
        self.peak = 0
        self.pages: dict[Expert, bytes] = {}
        self.fetched = 0
        self._peer = peer
        self.domain = ""
        self.table = b""
        self.tokens = [0] * (model.layers * model.experts)
        self.up = True
        self.gate = asyncio.Event()
        self.gate.set()
        self.script: dict[type, Callable[[control.ControlRequest], Answer]] = {}
        self.asked: list[control.ControlRequest] = []
        self.on_break: Callable[[], None] | None = None
        self._wanted: dict[str, set[Expert]] = {}
        self._sources: dict[Expert, tuple[str, ...]] = {}
        self._brought: set[str] = set()

    @property
    def endpoint(self) -> str:
        """Of the control socket that is not there."""
        return f"fake://{self.worker}"

    def kill(self) -> None:
        """Die as a process does: the connection breaks, nobody answers."""
        self.up = False
        if self.on_break is not None:
            self.on_break()

    async def ask(self, request: control.ControlRequest, timeout_s: float) -> control.ControlReply:
        """Answer as a worker does."""
        await asyncio.sleep(0)
        if not self.up:
            raise WorkerUnreachable("gone")
        self.asked.append(request)
        scripted = self.script.get(type(request))
        answer = scripted(request) if scripted is not None else self._answer(request)
        if answer is None:
            raise WorkerUnreachable("silent")
        return answer

    def close(self) -> None:
        """The controller gives the connection up."""
        self.on_break = None

    def _answer(self, request: control.ControlRequest) -> Answer:
        match request:
            case control.Describe():
                return self._state()
            case control.AskLoads():
                return control.Loads(tuple(self.tokens))
            case control.Prepare(operation, experts):
                self._sources |= {(layer, index): endpoints for layer, index, endpoints in experts}
                return self._prepare(operation, {(layer, index) for layer, index, _ in experts} - self.experts)
            case control.AskPrepare(operation):
                return self._prepared(operation)
            case control.Rollback(operation):
                return self._free(self._wanted.pop(operation, set()) - self._named())
            case control.StoreTable(table):
                return self._store(table)
            case control.Retire(epoch):
                stored = RoutingTable.decode(self.table) if self.table else None
                if stored is None or stored.epoch != epoch:
                    return control.Refused("stale", "another table")
                return self._free(self.experts - self._named())
        return control.Refused("internal", f"a fake does not answer {type(request).__name__}")

    def _state(self) -> control.WorkerState:
        return control.WorkerState(
            worker=self.worker,
            incarnation=f"i-{self.worker}",
            pool=self.pool,
            digest=self.model.digest,
            endpoint=f"{self.endpoint}/data",
            control_endpoint=self.endpoint,
            pod="",
            node="",
            pid=1,
            memory_bytes=self.memory_bytes,
            resident_bytes=len(self.experts) * self.model.expert_bytes,
            experts=tuple(sorted(self.experts)),
            table=self.table,
            in_flight=0,
            domain=self.domain,
        )

    def _prepare(self, operation: str, wanted: set[Expert]) -> control.ControlReply:
        """As a worker, it refuses what does not fit beside what it has and was promised."""
        promised = self.experts | wanted
        promised |= {one for name, experts in self._wanted.items() if name not in self._brought for one in experts}
        if len(promised) * self.model.expert_bytes > self.memory_bytes:
            return control.Refused("capacity", f"{len(wanted)} experts do not fit")
        self._wanted[operation] = wanted
        return control.Done()

    def _prepared(self, operation: str) -> control.PrepareStatus:
        wanted = self._wanted[operation]
        done = self.gate.is_set()
        if done and operation not in self._brought:
            self._brought.add(operation)
            for expert in wanted:
                self._bring(expert)
            self.experts |= wanted
            self.peak = max(self.peak, len(self.experts))
        count = len(wanted) if done else 0
        return control.PrepareStatus(operation, done, count * self.model.expert_bytes, count, count, "")

    def _bring(self, expert: Expert) -> None:
        peers = [self._peer(endpoint) for endpoint in self._sources[expert]]
        holders = [peer for peer in peers if peer is not None and peer.up and expert in peer.experts]
        self.fetched += bool(holders)
        self.pages[expert] = holders[0].pages[expert] if holders else page_of(expert)

    def _store(self, table: bytes) -> control.ControlReply:
        new, old = RoutingTable.decode(table), RoutingTable.decode(self.table) if self.table else None
        if old is not None and new.epoch < old.epoch:
            return control.Refused("stale", f"{new.epoch} is older than {old.epoch}")
        self.table = table
        return control.Done()

    def _free(self, experts: set[Expert]) -> control.Done:
        freed = experts & self.experts
        self.experts -= freed
        return control.Done(len(freed) * self.model.expert_bytes)

    def _named(self) -> frozenset[Expert]:
        return RoutingTable.decode(self.table).experts_of(self.worker) if self.table else frozenset()


def page_of(expert: Expert) -> bytes:
    """What the checkpoint of the fakes holds for an expert."""
    return b"%d.%d" % expert


class FakeWorkers:
    """A `WorkerLauncher` of `FakeWorker`s, and the links to them.

    Attributes:
        workers: Every worker ever started, by id.
        broken: Workers that are started die at once while it is set.
        slow: Workers do not come up while it is set.
    """

    def __init__(self, model: ModelFacts, slots: Sequence[Slot], memory_experts: int = 10_000) -> None:
        self.model = model
        self.workers: dict[str, FakeWorker] = {}
        self.broken = False
        self.slow = False
        self._memory_experts = memory_experts
        self._slots = {slot.id: slot for slot in slots}
        self._where: dict[str, str] = {}
        self._late: set[str] = set()

    def link(self, endpoint: str, on_break: Callable[[], None]) -> FakeWorker:
        """The link to a worker: the worker itself."""
        worker = self.workers[endpoint.removeprefix("fake://")]
        worker.on_break = on_break
        return worker

    def add_slot(self, slot: Slot) -> None:
        """A pod came."""
        self._slots[slot.id] = slot

    def remove_slot(self, slot: str) -> None:
        """A pod went, and the worker in it."""
        del self._slots[slot]
        for worker in [worker for worker, where in self._where.items() if where == slot]:
            self.workers[worker].kill()

    def up(self) -> list[FakeWorker]:
        """Workers whose process runs."""
        return [worker for worker in self.workers.values() if worker.up]

    async def slots(self) -> tuple[Slot, ...]:
        """Every slot there is."""
        return tuple(self._slots.values())

    async def list(self) -> tuple[LaunchedWorker, ...]:
        """Every worker whose process runs."""
        endpoints = {one.worker: "" if one.worker in self._late else one.endpoint for one in self.up()}
        return tuple(LaunchedWorker(name, self._where[name], endpoint) for name, endpoint in endpoints.items())

    async def start(self, worker: str, slot: Slot, spec: PoolSpec) -> None:
        """Start a worker."""
        self.workers[worker] = FakeWorker(worker, spec.uid, self.model, self._memory_experts, self._peer)
        self.workers[worker].up = not self.broken
        self._where[worker] = slot.id
        if self.slow:
            self._late.add(worker)

    def _peer(self, endpoint: str) -> FakeWorker | None:
        return self.workers.get(endpoint.removeprefix("fake://"))

    async def stop(self, worker: str) -> None:
        """End a worker; its connection breaks before its process is gone."""
        self.workers[worker].kill()
        await asyncio.sleep(_END_S)

    async def failure(self, worker: str) -> str:
        """Why a worker ended."""
        return "it was built broken" if self.broken else ""


class FakeEngines:
    """An `EngineLauncher` that notes what it was asked."""

    def __init__(self) -> None:
        self.applied: list[PoolSpec] = []

    async def apply(self, spec: PoolSpec) -> None:
        """Note a specification."""
        if not self.applied or self.applied[-1] != spec:
            self.applied.append(spec)

    async def problem(self) -> str:
        """Never any."""
        return ""
