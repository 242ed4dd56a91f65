"""`/metrics` of a pool controller, on its event loop, begun by `controller_actor`. One scrape is of the whole pool."""

import asyncio
import logging
import socket
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flexpert_workers.exposition import render
from flexpert_workers.http_server import HttpProtocol, HttpServer
from flexpert_workers.pool.controller import PoolController
from flexpert_workers.pool.exposition import families

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MetricsServer:
    """Metrics that are served.

    Attributes:
        port: Where.
    """

    port: int
    server: HttpServer
    task: "asyncio.Task[None]"

    async def stop(self) -> None:
        """Serve no more."""
        self.server.should_exit = True
        await self.task


async def serve_metrics(controller: PoolController, address: str) -> MetricsServer:
    """Serve the metrics of `controller` at `host:port` (port 0: any).

    Raises:
        OSError: The address cannot be had.
    """

    async def metrics(request: Request) -> Response:
        text, content_type = render(families(controller), request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    host, _, port = address.rpartition(":")
    listener = socket.create_server((host, int(port)))
    app = Starlette(routes=[Route("/metrics", metrics)])
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = HttpServer(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    number: int = listener.getsockname()[1]
    log.info("metrics of the pool are at http://%s:%d/metrics", host, number)
    return MetricsServer(number, server, task)
