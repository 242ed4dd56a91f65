"""uvicorn in processes that are more than HTTP servers: the ingress, and the pool controller with page and metrics."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_TIMEOUT_S = 30.0
"""That a client takes from its connection, or its first byte, to the end of a request's headers."""
MAX_HEAD_BYTES = 512 * 1024
"""Of a request's line and headers, with what of the body arrives in the same piece."""


class HttpServer(uvicorn.Server):
    """A server that leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: whoever runs the process decides when it ends."""
        yield


class HttpProtocol(HttpToolsProtocol):
    """A connection that waits a bounded time for a request's head, and takes so much of it, which uvicorn's do not."""

    _late: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._late is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.abort()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        """Its headers are here."""
        self._forget_head()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left, or was dropped."""
        self._forget_head()
        super().connection_lost(exc)

    def abort(self) -> None:
        """Drop the connection, and what is queued on it."""
        self.transport.abort()

    def _await_head(self) -> None:
        if self._late is None:
            self._head_bytes = 0
            self._late = self.loop.call_later(HEAD_TIMEOUT_S, self.abort)

    def _forget_head(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


@dataclass(frozen=True)
class AppServer:
    """An application that is served on this event loop.

    Attributes:
        port: Where.
    """

    port: int
    server: HttpServer
    task: "asyncio.Task[None]"

    async def stop(self) -> None:
        """Take no more requests, and end those that are open within a second."""
        self.server.should_exit = True
        await self.task


def serve_app(app: Any, address: str) -> AppServer:
    """Serve an ASGI application at `host:port` (port 0: any).

    Raises:
        OSError: The address cannot be had.
    """
    host, _, port = address.rpartition(":")
    listener = socket.create_server((host, int(port)))
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
    number: int = listener.getsockname()[1]
    return AppServer(number, server, asyncio.create_task(server.serve(sockets=[listener])))
