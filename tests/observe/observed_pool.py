"""A whole pool of real parts in this process: controller behind gRPC, two workers, an engine, an ingress.

Everything but the tests runs on an event loop in a thread, so that tests ask over gRPC and HTTP as anybody would.
"""

import asyncio
import contextlib
import threading
import time
import urllib.request
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import grpc

from flexpert_proto import pool_pb2, pool_pb2_grpc
from flexpert_proto.client import GenerationClient
from flexpert_proto.tracing import Tracing
from flexpert_workers.checkpoint import open_checkpoint
from flexpert_workers.engine import EngineConfig, EngineService
from flexpert_workers.expert import ExpertWorker, WorkerConfig
from flexpert_workers.ingress import Ingress, IngressConfig
from flexpert_workers.pool.controller import PoolController, Settings
from flexpert_workers.pool.leases import LeaseTerms
from flexpert_workers.pool.links import ControlLink
from flexpert_workers.pool.metrics_server import serve_metrics
from flexpert_workers.pool.service import serve
from flexpert_workers.pool.spans import OperationSpans
from flexpert_workers.pool.state import LaunchedWorker, ModelFacts, PoolSpec, Slot

SOURCE = f"file://{Path(__file__).parents[2] / 'examples' / 'models' / 'tiny-moe'}"
POOL, NAME, NAMESPACE = "uid-1", "tiny", "models"
WAIT_S = 120.0
T = TypeVar("T")


class ThreadWorkers:
    """Workers in this process, one a slot."""

    def __init__(self, slots: int) -> None:
        self._slots = tuple(Slot(f"slot-{number}", pod=f"pod-{number}", node="node") for number in range(slots))
        self._running: dict[str, tuple[Slot, ExpertWorker]] = {}

    async def slots(self) -> tuple[Slot, ...]:
        return self._slots

    async def list(self) -> tuple[LaunchedWorker, ...]:
        return tuple(
            LaunchedWorker(name, slot.id, worker.control_endpoint) for name, (slot, worker) in self._running.items()
        )

    async def start(self, worker: str, slot: Slot, spec: PoolSpec) -> None:
        config = WorkerConfig(
            worker, spec.uid, spec.source, spec.dtype, 1 << 28, 1, "127.0.0.1", slot.pod, slot.node, ""
        )
        started = ExpertWorker(config)
        await asyncio.to_thread(started.start)
        self._running[worker] = slot, started

    async def stop(self, worker: str) -> None:
        if worker in self._running:
            await asyncio.to_thread(self._running.pop(worker)[1].stop)

    async def failure(self, worker: str) -> str:
        return ""

    def close(self) -> None:
        for _, worker in self._running.values():
            worker.stop()


class ThreadEngines:
    """One engine in this process."""

    def __init__(self, tracing: Tracing | None) -> None:
        self.pool_control = ""
        self._tracing = tracing
        self._services: list[EngineService] = []

    async def apply(self, spec: PoolSpec) -> None:
        if not self._services:
            config = EngineConfig(
                "e-1",
                spec.uid,
                spec.source,
                "Float32",
                kv_cache_bytes=1 << 26,
                threads=1,
                pool_control=self.pool_control,
            )
            self._services.append(EngineService(config, self._tracing))
            await asyncio.to_thread(self._services[0].start)

    async def problem(self) -> str:
        return ""

    def close(self) -> None:
        for service in self._services:
            service.stop()


class ObservedPool:
    """The pool; `start` returns when it generates, `close` ends all of it.

    Args: where spans go, of each part; None: nowhere.

    Attributes:
        num_generated: Requests that `generate` has made.
    """

    def __init__(
        self, ingress: Tracing | None = None, engine: Tracing | None = None, controller: Tracing | None = None
    ) -> None:
        self._tracing, self._controller_tracing = ingress, controller
        self.num_generated = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="observed pool")
        self._workers, self._engines = ThreadWorkers(2), ThreadEngines(engine)
        self._ends: list[Callable[[], Coroutine[Any, Any, Any]]] = []

    def start(self) -> None:
        self._thread.start()
        self.run(self._begin())
        self._channel = grpc.insecure_channel(f"127.0.0.1:{self.control_port}")
        self.control: Any = pool_pb2_grpc.PoolControlStub(self._channel)
        self.membership: Any = pool_pb2_grpc.PoolMembershipStub(self._channel)
        self.eventually(lambda: len(self._ready()) == 2)
        self.move("initial", 1, pool_pb2.INITIAL)
        self.eventually(lambda: self.ingress.ready)

    def close(self) -> None:
        with contextlib.suppress(AttributeError):
            self._channel.close()
        for end in reversed(self._ends):
            self.run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
        self._engines.close()
        self._workers.close()

    # ---- what tests do

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def eventually(self, true: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not true():
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.02)

    def pool(self, **asked: bool) -> pool_pb2.Pool:
        return self.control.GetPool(pool_pb2.GetPoolRequest(**asked))

    def move(self, name: str, first: int, cause: int = pool_pb2.REBALANCE) -> pool_pb2.Operation:
        """Every expert on one of both workers in turn, beginning with the `first`; returns when that is done."""
        pool = self.pool(with_placement=True)
        workers = sorted(self._ready(), key=lambda worker: worker.id)
        request = pool_pb2.ReconfigureRequest(operation_id=name, base_epoch=pool.epoch, cause=cause)
        for number in range(pool.model.layers * pool.model.experts):
            expert = pool_pb2.Expert(layer=number // pool.model.experts, index=number % pool.model.experts)
            target = workers[(number + first) % len(workers)]
            request.plan.target.add(expert=expert, worker=target.id, share=1.0)
            if number not in target.experts:
                request.plan.moves.add(expert=expert, target=target.id, sources=[""])
        self.control.Reconfigure(request)
        watched = self.control.WatchOperation(pool_pb2.WatchOperationRequest(operation_id=name), timeout=WAIT_S)
        operation = list(watched)[-1]
        assert operation.phase == pool_pb2.SUCCEEDED, operation.message
        return operation

    def generate(self, prompt: str, max_tokens: int) -> str:
        with GenerationClient(f"127.0.0.1:{self.ingress.grpc_port}") as client:
            text = client.generate(prompt, max_tokens=max_tokens, temperature=0.0, ignore_eos=True).text
        self.num_generated += 1
        return text

    def http(self, port: int, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=WAIT_S) as response:
            return str(response.read().decode())

    def _ready(self) -> list[pool_pb2.Worker]:
        return [one for one in self.pool(with_placement=True).workers if one.state == pool_pb2.Worker.READY]

    async def _begin(self) -> None:
        facts = await asyncio.to_thread(facts_of, SOURCE)

        async def inspect(source: str, revision: str, dtype: str) -> ModelFacts:
            return facts

        settings = Settings(POOL, round_s=0.05, leases=LeaseTerms(lease_s=60.0))
        self.controller = PoolController(settings, self._workers, self._engines, ControlLink, inspect)
        if self._controller_tracing is not None:
            self.controller.operations.observers.append(OperationSpans(self._controller_tracing).note)
        await self.controller.start()
        self._ends.append(self.controller.stop)
        server, self.control_port = await serve(self.controller, "127.0.0.1:0")
        self._ends.append(lambda: server.stop(None))
        metrics = await serve_metrics(self.controller, "127.0.0.1:0")
        self.metrics_port = metrics.port
        self._ends.append(metrics.stop)
        self._engines.pool_control = f"127.0.0.1:{self.control_port}"
        spec = PoolSpec(POOL, NAME, NAMESPACE, SOURCE, dtype="Float32", workers=2)
        self.controller.configure(self.controller.incarnation, 1, 1, spec)
        config = IngressConfig(
            pool_control=self._engines.pool_control, model_name=NAME, namespace=NAMESPACE, drain_grace_s=1.0
        )
        self.ingress = Ingress(config, self._tracing)
        await self.ingress.start()
        self._ends.append(self.ingress.stop)


def facts_of(source: str) -> ModelFacts:
    checkpoint = open_checkpoint(source, "Float32")
    shape = (checkpoint.num_layers, checkpoint.num_experts, checkpoint.experts_per_token)
    page_bytes = checkpoint.layout.page_bytes
    return ModelFacts(
        source, "", "Float32", checkpoint.digest, checkpoint.architecture, *shape, page_bytes, context_length=1024
    )
