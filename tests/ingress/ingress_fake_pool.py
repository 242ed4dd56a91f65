"""A pool controller that lists the engines it is told to, or that attach, and gives those one routing table."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc.aio

from flexpert_proto import pool_pb2, pool_pb2_grpc


class FakePool(pool_pb2_grpc.PoolMembershipServicer):
    """Serves PoolMembership.WatchEngines; `set_engines` reaches every watcher."""

    def __init__(self, source: str, context_length: int) -> None:
        self._list = pool_pb2.EngineList(
            pool="tiny",
            model=pool_pb2.Model(source=source),
            info=pool_pb2.ModelInfo(context_length=context_length),
        )
        self._changed = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self._attached: dict[str, pool_pb2.Engine] = {}
        self.routing_table = b""
        self.reports: asyncio.Queue[pool_pb2.IngressReport] = asyncio.Queue()
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = grpc.aio.server()
        pool_pb2_grpc.add_PoolMembershipServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        assert self._server is not None
        await self._server.stop(None)

    def set_engines(self, engines: Mapping[str, str], state: int = pool_pb2.Engine.READY) -> None:
        """`engines`: id → endpoint."""
        del self._list.engines[:]
        self._list.engines.extend(pool_pb2.Engine(id=id_, endpoint=at, state=state) for id_, at in engines.items())
        self._announce()

    def let_idle(self) -> None:
        """From now on no engine is to be there."""
        self._list.wanted_engines = 0
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def WatchEngines(self, request: Any, context: Any) -> AsyncIterator[pool_pb2.EngineList]:  # noqa: N802
        while True:
            changed = self._changed
            yield self._list
            await changed.wait()

    async def ReportIngress(self, request: Any, context: Any) -> pool_pb2.IngressReportResponse:  # noqa: N802
        self.reports.put_nowait(request)
        return pool_pb2.IngressReportResponse()

    async def Attach(self, requests: Any, context: Any) -> AsyncIterator[pool_pb2.EngineDirective]:  # noqa: N802
        yield pool_pb2.EngineDirective(routing_table=self.routing_table, lease_seconds=10)
        id_ = ""
        try:
            async for report in requests:
                id_ = report.engine.id
                self._attached[id_] = report.engine
                self._list_attached()
        finally:
            self._attached.pop(id_, None)
            self._list_attached()

    def _list_attached(self) -> None:
        del self._list.engines[:]
        self._list.engines.extend(self._attached.values())
        self._announce()
