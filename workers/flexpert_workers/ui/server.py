"""The HTTP server of the page, on the pool controller's event loop. Started by `controller_actor`, stopped by tests."""

import asyncio
import logging
import socket
from dataclasses import dataclass

import uvicorn

from flexpert_workers.http_server import HttpProtocol, HttpServer
from flexpert_workers.pool.controller import PoolController
from flexpert_workers.ui.app import make_app
from flexpert_workers.ui.feed import Feed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UiServer:
    """A page that is served.

    Attributes:
        port: Where.
        feed: What its watchers are told.
    """

    port: int
    feed: Feed
    server: HttpServer
    task: "asyncio.Task[None]"

    async def stop(self) -> None:
        """Take no more requests, and end the streams."""
        self.feed.close()
        self.server.should_exit = True
        await self.task


async def serve_ui(controller: PoolController, address: str) -> UiServer:
    """Serve the page of `controller` at `host:port` (port 0: any).

    Raises:
        OSError: The address cannot be had.
    """
    host, _, port = address.rpartition(":")
    listener = socket.create_server((host, int(port)))
    feed = Feed(controller)
    config = uvicorn.Config(
        make_app(controller, feed),
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
    log.info("the pool's page is at http://%s:%d/ui", host, number)
    return UiServer(number, feed, server, task)
