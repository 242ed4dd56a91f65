"""An ingress as a whole: gRPC and HTTP servers, the watch on the engines, and the links to them. Run by `__main__`.

ingress = Ingress(config)
await ingress.start()       # ports are known from here on
await ingress.stop()        # takes no more requests, lets open streams end within the grace
"""

import asyncio
import contextlib
import datetime
import logging
import math
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import uvicorn
import zmq
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from prometheus_client.core import Metric

from flexpert_proto import pool_pb2
from flexpert_proto.channels import rpc_server_credentials
from flexpert_proto.credentials import server_context
from flexpert_proto.measuring import Figures
from flexpert_proto.metrics import INGRESS
from flexpert_proto.tracing import Tracing
from flexpert_workers.exposition import Values, counters, families_of
from flexpert_workers.http_server import HttpServer
from flexpert_workers.ingress import open_inference, openai, service
from flexpert_workers.ingress.admission import Admission
from flexpert_workers.ingress.balancer import Balancer
from flexpert_workers.ingress.config import IngressConfig
from flexpert_workers.ingress.connection import ClientConnection
from flexpert_workers.ingress.engines import engine_facts, watch_engines
from flexpert_workers.ingress.fleet import Fleet
from flexpert_workers.ingress.guard import RpcGuard, guarded
from flexpert_workers.ingress.http import make_app
from flexpert_workers.ingress.intake import Intake
from flexpert_workers.ingress.link import EngineLink, LinkListener
from flexpert_workers.ingress.meter import IngressMeter
from flexpert_workers.ingress.methods import add_service
from flexpert_workers.ingress.model import ModelHolder
from flexpert_workers.ingress.reports import report_figures
from flexpert_workers.ingress.stalls import Stalls
from flexpert_workers.ingress.tokens import Tokens

log = logging.getLogger(__name__)

MODEL_RETRY_S = 5.0
HEALTH_PERIOD_S = 0.2
SERVICES = (service.DESCRIPTOR, open_inference.DESCRIPTOR)


class Ingress:
    """One ingress; started and stopped within one event loop.

    Args:
        config: What it is told.
        tracing: Where spans of its requests go; None: nowhere.

    Attributes:
        grpc_port: Where it serves gRPC, after `start`.
        http_port: Where it serves HTTP, after `start`.
        counts: What came of requests.
    """

    def __init__(self, config: IngressConfig, tracing: Tracing | None = None) -> None:
        self._config = config
        self._tracing = tracing
        self._context: zmq.Context[Any] = zmq.Context()
        self._models = ModelHolder()
        self._admission = Admission(config.max_streams, time.monotonic)
        self._fleet = Fleet(self._connect, time.monotonic, max_waiting=config.max_waiting)
        self._meter = IngressMeter(time.monotonic, tracing)
        self._balancer = Balancer(self._fleet, self._meter, time.monotonic, engine_wait_s=config.engine_wait_s)
        self._tokens = _tokens(config)
        self._intake = Intake(
            self._models,
            self._balancer,
            self._admission,
            self._meter,
            engine_wait_s=config.engine_wait_s,
            spend=self._tokens.spend if self._tokens else None,
        )
        self.counts = self._intake.counts
        self._stalls = Stalls(time.monotonic, config.stall_timeout_s)
        self._health = health_aio.HealthServicer()
        guards = [RpcGuard(self._tokens)] if self._tokens else []
        self._grpc = grpc.aio.server(options=_server_options(config), interceptors=guards)
        self._http = HttpServer(self._http_config())
        self._http_task: asyncio.Task[None] | None = None
        self._watches: list[asyncio.Task[None]] = []
        self._lists: asyncio.Queue[pool_pb2.EngineList] = asyncio.Queue()
        self._pool = ""
        self._seen_engine = self._idles = False
        self._draining = False
        self.grpc_port = 0
        self.http_port = 0

    @property
    def ready(self) -> bool:
        """Whether new requests may come: not before the first engine did, and not while draining.

        The loss of the engines does not change it: requests wait for the next one. Where a pool idles and no engine is
        to be there, it takes a request to bring one.
        """
        self._seen_engine = self._seen_engine or self._fleet.num_up > 0 or self._idles
        return self._models.known and self._seen_engine and not self._draining

    async def start(self) -> None:
        """Listen, and begin to look for engines.

        Raises:
            OSError: A port cannot be had.
        """
        await self._start_grpc()
        await self._start_http()
        self._watches = [
            asyncio.create_task(watch_engines(self._config.pool_control, self._lists.put_nowait)),
            asyncio.create_task(self._report()),
            asyncio.create_task(self._follow_lists()),
            asyncio.create_task(self._follow_health()),
            asyncio.create_task(self._stalls.watch()),
        ]

    async def stop(self) -> None:
        """Take no more requests, let open streams end within the grace, then end everything."""
        self._draining = True
        await self._health.enter_graceful_shutdown()
        self._http.should_exit = True
        await asyncio.gather(self._grpc.stop(self._config.drain_grace_s), *filter(None, (self._http_task,)))
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        self._fleet.close()
        self._context.term()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def figures(self) -> Figures:
        """What was measured so far."""
        counters = {
            "ingress_requests": self.counts.requests,
            "ingress_tokens": self._balancer.num_tokens,
            "ingress_resubmissions": self._balancer.num_resubmissions,
            "ingress_stalled": self._stalls.num_cut,
        }
        gauges = {
            "ingress_streams": self._admission.num_open,
            "ingress_waiting": self._fleet.num_waiting,
            "ingress_waiting_tokens": self._fleet.waiting_tokens,
            "ingress_predicted_wait_seconds": self._fleet.wait_s() or 0.0,
            "ingress_engines": self._fleet.num_up,
        }
        return self._meter.read(gauges, counters)

    def families(self) -> Iterator[Metric]:
        """What was measured, for Prometheus."""
        named = {"namespace": self._config.namespace, "name": self._config.model_name}
        labels = {label: value for label, value in named.items() if value}
        yield from families_of(self.figures(), INGRESS, labels)
        ended: Values = {(how,): count for how, count in self.counts.ended.items()}
        yield counters("flexpert_ingress_ended", "Requests that ended, by how they did", labels, ("how",), ended)

    def _connect(self, engine: str, endpoint: str, listener: LinkListener) -> EngineLink:
        timeout_s = self._config.hang_timeout_s
        return EngineLink(self._context, engine, endpoint, listener, hang_timeout_s=timeout_s, clock=time.monotonic)

    def _http_config(self) -> uvicorn.Config:
        config = self._config
        v1 = openai.routes(self._intake, self._stalls, max_request_bytes=config.max_request_bytes)
        identity = config.identity
        app = make_app(lambda: self.ready, self.families, v1)
        if self._tokens or (identity and identity.authorities):
            app = guarded(app, self._tokens, wants_certificate=bool(identity and identity.authorities))
        return uvicorn.Config(
            app,
            http=ClientConnection,
            ssl_context_factory=(lambda *_: server_context(identity)) if identity else None,
            ws="none",
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=math.ceil(config.drain_grace_s),
        )

    async def _start_grpc(self) -> None:
        generation = service.GenerationService(self._intake, self._stalls)
        add_service(service.DESCRIPTOR, generation, self._grpc)
        oip = open_inference.OpenInferenceService(self._intake, lambda: self.ready)
        add_service(open_inference.DESCRIPTOR, oip, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        described = (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"])
        names = (*(one.full_name for one in described), reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._grpc)
        address = f"{self._config.bind_host}:{self._config.grpc_port}"
        self.grpc_port = self._listen(address)
        await self._set_health(serving=False)
        await self._grpc.start()

    def _listen(self, address: str) -> int:
        if self._config.identity is None:
            return self._grpc.add_insecure_port(address)
        return self._grpc.add_secure_port(address, rpc_server_credentials(self._config.identity))

    async def _start_http(self) -> None:
        listener = socket.create_server((self._config.bind_host, self._config.http_port))
        self.http_port = listener.getsockname()[1]
        self._http_task = asyncio.create_task(self._http.serve(sockets=[listener]))

    async def _report(self) -> None:
        config = self._config
        ingress = config.pod or f"{socket.gethostname()}-{self.grpc_port}"
        await report_figures(config.pool_control, ingress, lambda: self._pool, self.figures)

    async def _follow_lists(self) -> None:
        while True:
            engines = await self._lists.get()
            self._pool = engines.pool
            self._idles = engines.HasField("wanted_engines") and engines.wanted_engines == 0
            self._fleet.update(engine_facts(engines))
            if engines.model.source:
                await self._follow_model(engines)

    async def _follow_model(self, engines: pool_pb2.EngineList) -> None:
        """Know the model that the engines serve; what cannot be fetched is tried again."""
        called = frozenset(filter(None, (self._config.model_name or engines.pool,)))
        info = engines.info
        followed = await self._models.follow(engines.model.source, called, info.context_length, info.digest)
        if followed:
            return
        await asyncio.sleep(MODEL_RETRY_S)
        if self._lists.empty():
            self._lists.put_nowait(engines)

    async def _follow_health(self) -> None:
        while True:
            await self._set_health(serving=self.ready)
            await asyncio.sleep(HEALTH_PERIOD_S)

    async def _set_health(self, *, serving: bool) -> None:
        response = health_pb2.HealthCheckResponse
        status = response.SERVING if serving else response.NOT_SERVING
        for name in ("", *(described.full_name for described in SERVICES)):
            await self._health.set(name, status)


def _tokens(config: IngressConfig) -> Tokens | None:
    if not config.tokens_file:
        return None
    return Tokens(Path(config.tokens_file), time.monotonic, lambda: datetime.datetime.now(datetime.UTC))


def _server_options(config: IngressConfig) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.so_reuseport", 0),  # a port that is taken is an error, not shared
        ("grpc.max_receive_message_length", config.max_request_bytes),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.keepalive_time_ms", 60_000),  # a client whose host vanished holds its streams no longer
        ("grpc.keepalive_timeout_ms", 20_000),
    )


@contextlib.asynccontextmanager
async def running(config: IngressConfig, tracing: Tracing | None = None) -> AsyncIterator[Ingress]:
    """A started ingress, stopped at the end."""
    ingress = Ingress(config, tracing)
    await ingress.start()
    try:
        yield ingress
    finally:
        await ingress.stop()
