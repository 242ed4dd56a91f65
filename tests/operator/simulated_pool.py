"""A pool controller for tests: it serves PoolControl as the real one does, over workers that exist only on paper.

A test changes its attributes to script it; everything is guarded by one lock.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from flexpert_proto import names
from flexpert_proto import pool_pb2 as pb
from flexpert_proto.pool_pb2_grpc import PoolControlServicer, add_PoolControlServicer_to_server

LAYERS, EXPERTS, EXPERT_BYTES = 2, 4, 2**20
WATCH_S, LOADS_EVERY = 0.02, 10
"""How often it looks for something to tell, and at every which look for loads."""

OPTIONS = (("grpc.http2.min_ping_interval_without_data_ms", 5_000), ("grpc.keepalive_permit_without_calls", 1))
"""As the real one's: a watcher pings now and then."""

RUNNING = (pb.PENDING, pb.PREPARE, pb.COMMIT, pb.RETIRE)

Pair = tuple[int, int]


class SimulatedPool(PoolControlServicer):
    """One pool controller.

    Attributes:
        files: How far the model's files are.
        refusal: Status code and message with which a checkpoint is refused, or None.
        held_pods: Pods whose workers do not become ready.
        hold: While set, reconfigurations stop in prepare.
        fail_next: Reconfigurations to roll back.
        requests: Every Reconfigure that was accepted, in order.
        leaders: Numbers of the leaders that were heard of, one after the other; begins with 0.
        seen_terms: Every term that was granted, by incarnation.
        figures: (engines, workers that serve) → what is measured now; None: nothing.
        seconds_per_move: What the dry run says that each copy takes.
        most_pods: Expert pods that ran at the same time.
        fewest_holders: Workers that the placement named, from the first one on.
        killed_holders: Workers that went with experts on them.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.held_pods: set[str] = set()
        self.hold = False
        self.fail_next = 0
        self.requests: list[pb.ReconfigureRequest] = []
        self.seen_terms: list[tuple[str, int]] = []
        self.leaders = [0]
        self.specs: list[pb.PoolSpec] = []
        self.engine_requests = 0
        self.files = pb.ModelFiles()
        self.figures: Callable[[int, int], pb.Figures] | None = None
        self.seconds_per_move = 0.01
        self.most_pods = 0
        self.fewest_holders = 10**6
        self.killed_holders: list[str] = []
        self._rates = [0.0] * (LAYERS * EXPERTS)
        self._counted = [0.0] * (LAYERS * EXPERTS)
        self._counted_at = self._started_at = time.time()
        self._incarnation = secrets.token_hex(4)
        self._term = 0
        self._generation = 0
        self._epoch = (0, 0)
        self._workers: dict[str, pb.Worker] = {}
        self._engine_pods: tuple[str, ...] = ()
        self._placement: dict[Pair, dict[str, float]] = {}
        self._operations: dict[str, pb.Operation] = {}
        self._last: str | None = None
        self._pending: pb.ReconfigureRequest | None = None
        self._numbers = iter(range(10**6))
        self._server = grpc.server(ThreadPoolExecutor(8), options=OPTIONS)
        add_PoolControlServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def stop(self) -> None:
        """No longer answer."""
        self._server.stop(None)

    # ---- what a test does to it

    def restart(self) -> None:
        """A new incarnation, which finds workers and table and has no term."""
        with self.lock:
            self._incarnation, self._term, self._generation = secrets.token_hex(4), 0, 0

    def compute(self, rates: list[float]) -> None:
        """From now on so many tokens a second come to each expert."""
        with self.lock:
            self._counted = [float(tokens) for tokens in self._loads()]
            self._counted_at, self._rates = time.time(), rates

    def compute_skewed(self, hot: float = 1000.0, cold: float = 10.0) -> None:
        """From now on the experts of one worker get most of the tokens."""
        with self.lock:
            first = min(self.holders())
            replicas = list(self._replicas())
            mine = {one.expert.layer * EXPERTS + one.expert.index for one in replicas if one.worker == first}
            self.compute([hot if position in mine else cold for position in range(LAYERS * EXPERTS)])

    def lose(self, worker: str) -> None:
        """Kill a worker: its experts go to the others at once, and its pod gets a new one."""
        with self.lock:
            lost = self._workers[worker]
            lost.state = pb.Worker.LOST
            self._cast()
            others = [one.id for one in self._workers.values() if one.state == pb.Worker.READY]
            for row in self._placement.values():
                if row.pop(worker, None) is not None and not row:
                    row[others[0]] = 1.0
            self._normalise()
            self._advance(f"recovery-{next(self._numbers)}", pb.FAILURE)
            self._start(lost.pod)

    def release(self) -> None:
        """Let the held reconfiguration go on."""
        with self.lock:
            self.hold = False
            if self._pending is not None:
                self._finish(self._pending)

    def set_pods(self, experts: tuple[str, ...], engines: tuple[str, ...]) -> None:
        """The pods that run now."""
        with self.lock:
            self._engine_pods = engines
            self.most_pods = max(self.most_pods, len(experts))
            for worker in list(self._workers.values()):
                if worker.pod not in experts:
                    self._forget(worker.id)
            known = {worker.pod for worker in self._workers.values()}
            for pod in experts:
                if pod not in known and self._term > 0:
                    self._start(pod)
            for worker in self._workers.values():
                if worker.state == pb.Worker.STARTING and worker.pod not in self.held_pods:
                    worker.state = pb.Worker.STANDBY
            self._cast()

    def holders(self) -> set[str]:
        """Workers that the placement names."""
        with self.lock:
            return {worker for row in self._placement.values() for worker in row}

    # ---- what the operator asks

    def Configure(self, request: pb.ConfigureRequest, context: Any) -> pb.ConfigureResponse:  # noqa: N802
        with self.lock:
            self._follow(request.leader, context)
            if request.incarnation != self._incarnation:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another incarnation")
            if self._term == 0 and request.term <= self._epoch[0]:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, "an older term")
            if request.term != self._term:
                self.seen_terms.append((request.incarnation, request.term))
            self._term, self._generation = request.term, request.generation
            self.specs.append(request.spec)
            for worker in self._workers.values():
                worker.memory_bytes = request.spec.experts.memory_per_worker_bytes
            self._cast()
        return pb.ConfigureResponse()

    def InspectModel(self, request: pb.InspectModelRequest, context: Any) -> pb.ModelInfo:  # noqa: N802
        if self.refusal is not None:
            context.abort(*self.refusal)
        return self._info()

    def GetPool(self, request: pb.GetPoolRequest, context: Any) -> pb.Pool:  # noqa: N802
        with self.lock:
            engines = (self._engine_pods if self.specs else ())[: self.specs[-1].engines.replicas if self.specs else 0]
            figures = self.figures(len(engines), len(self.holders())) if self.figures and request.with_figures else None
            return pb.Pool(
                figures=figures,
                incarnation=self._incarnation,
                term=self._term,
                epoch=pb.Epoch(term=self._epoch[0], sequence=self._epoch[1]),
                workers=[self._described(worker) for worker in self._workers.values()],
                engines=[
                    pb.Engine(id=f"engine-{pod}", pod=pod, state=pb.Engine.READY, running=self.engine_requests)
                    for pod in engines
                ],
                placement=list(self._replicas()),
                model=self._info() if self.specs else None,
                model_files=self.files,
                loads=self._loads(),
                loads_since=self._started_at,
                operation=self._operations[self._last] if self._last else None,
                generation=self._generation,
                wanted_workers=self.specs[-1].experts.workers if self.specs else None,
                wanted_standby_workers=self.specs[-1].experts.standby_workers if self.specs else 0,
                lost=[
                    pb.Expert(layer=layer, index=index) for (layer, index), row in self._placement.items() if not row
                ],
            )

    def WatchPool(self, request: pb.GetPoolRequest, context: Any) -> Iterator[pb.Pool]:  # noqa: N802
        """As the real one: at every change, and what creeps now and then; here it is looked for again and again."""
        told, looks, gone = None, 0, threading.Event()
        context.add_callback(gone.set)
        while not gone.wait(WATCH_S):
            pool, looks = self.GetPool(request, context), looks + 1
            if told is not None and looks % LOADS_EVERY:
                pool.ClearField("loads")
                pool.loads.extend(told.loads)
                pool.ClearField("figures")
                if told.HasField("figures"):
                    pool.figures.CopyFrom(told.figures)
            if pool != told:
                told = pool
                yield pool

    def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainResponse:  # noqa: N802
        with self.lock:
            self._follow(request.leader, context)
            for worker in request.workers:
                self._workers[worker].state = pb.Worker.STANDBY if request.undo else pb.Worker.DRAINING
            self._cast()
        return pb.DrainResponse()

    def Reconfigure(self, request: pb.ReconfigureRequest, context: Any) -> pb.Operation:  # noqa: N802
        with self.lock:
            if request.operation_id in self._operations:
                return self._operations[request.operation_id]
            self._follow(request.leader, context)
            if (request.base_epoch.term, request.base_epoch.sequence) != self._epoch:
                context.abort(grpc.StatusCode.ABORTED, "stale base epoch")
            named = {replica.worker for replica in request.plan.target}
            ready = {worker.id for worker in self._workers.values() if worker.state == pb.Worker.READY}
            if not named <= ready:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not ready: {named - ready}")
            self.requests.append(request)
            operation = pb.Operation(
                id=request.operation_id,
                cause=request.cause,
                phase=pb.PREPARE,
                base_epoch=request.base_epoch,
                started_at=1000.0,
                moved_experts=len(request.plan.moves),
                moved_bytes=len(request.plan.moves) * EXPERT_BYTES,
            )
            self._operations[operation.id], self._last = operation, operation.id
            self._pending = request
            if not self.hold:
                self._finish(request)
            return self._operations[request.operation_id]

    def Plan(self, request: pb.ReconfigureRequest, context: Any) -> pb.PlanPrediction:  # noqa: N802
        moves = len(request.plan.moves)
        seconds = 0.05 + self.seconds_per_move * moves
        return pb.PlanPrediction(moved_bytes=moves * EXPERT_BYTES, moved_experts=moves, seconds=seconds, waves=1)

    # ---- inside

    def _follow(self, leader: int, context: Any) -> None:
        if 0 < leader < self.leaders[-1]:
            newest = ((names.LEADER_METADATA, str(self.leaders[-1])),)
            context.set_trailing_metadata(newest)
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "a later leader was heard of")
        if leader > self.leaders[-1]:
            self.leaders.append(leader)

    def _loads(self) -> list[int]:
        seconds = time.time() - self._counted_at
        return [int(count + rate * seconds) for count, rate in zip(self._counted, self._rates, strict=True)]

    def _finish(self, request: pb.ReconfigureRequest) -> None:
        operation = self._operations[request.operation_id]
        self._pending = None
        operation.finished_at = 1000.5
        if self.fail_next > 0:
            self.fail_next -= 1
            operation.phase, operation.message = pb.ROLLED_BACK, "a worker did not answer"
            return
        self._placement = {}
        for replica in request.plan.target:
            pair = (replica.expert.layer, replica.expert.index)
            self._placement.setdefault(pair, {})[replica.worker] = replica.share
        self._epoch = (self._term, self._epoch[1] + 1)
        operation.phase = pb.SUCCEEDED
        self.fewest_holders = min(self.fewest_holders, len(self.holders()))

    def _advance(self, identity: str, cause: pb.Cause.ValueType) -> None:
        base = pb.Epoch(term=self._epoch[0], sequence=self._epoch[1])
        self._epoch = (self._term, self._epoch[1] + 1)
        self._operations[identity] = pb.Operation(
            id=identity, cause=cause, phase=pb.SUCCEEDED, base_epoch=base, started_at=1.0, finished_at=1.5
        )
        self._last = identity

    def _cast(self) -> None:
        """As the real controller: as many workers serve as are wanted, those that hold experts in any case."""
        wanted = self.specs[-1].experts.workers if self.specs else 0
        able = [one for one in self._workers.values() if one.state in (pb.Worker.READY, pb.Worker.STANDBY)]
        holders = self.holders()
        able.sort(key=lambda one: (one.id not in holders, one.state == pb.Worker.STANDBY, one.id))
        for number, worker in enumerate(able):
            serves = worker.id in holders or number < wanted
            worker.state = pb.Worker.READY if serves else pb.Worker.STANDBY

    def _start(self, pod: str) -> None:
        name = f"w{next(self._numbers)}-{pod}"
        memory = self.specs[-1].experts.memory_per_worker_bytes
        self._workers[name] = pb.Worker(id=name, pod=pod, state=pb.Worker.STARTING, memory_bytes=memory)

    def _forget(self, worker: str) -> None:
        if worker in self.holders():
            self.killed_holders.append(worker)
        del self._workers[worker]
        for row in self._placement.values():
            row.pop(worker, None)
        self._normalise()

    def _normalise(self) -> None:
        for row in self._placement.values():
            for worker in row:
                row[worker] = 1.0 / len(row)

    def _described(self, worker: pb.Worker) -> pb.Worker:
        found = pb.Worker()
        found.CopyFrom(worker)
        held = [layer * EXPERTS + index for (layer, index), row in self._placement.items() if worker.id in row]
        found.experts.extend(sorted(held))
        found.resident_bytes = len(held) * EXPERT_BYTES
        return found

    def _replicas(self) -> Iterator[pb.Replica]:
        for (layer, index), row in sorted(self._placement.items()):
            for worker, share in row.items():
                yield pb.Replica(expert=pb.Expert(layer=layer, index=index), worker=worker, share=share)

    def _info(self) -> pb.ModelInfo:
        return pb.ModelInfo(
            architecture="MixtralForCausalLM",
            digest="d",
            layers=LAYERS,
            experts=EXPERTS,
            experts_per_token=2,
            expert_bytes=EXPERT_BYTES,
        )
