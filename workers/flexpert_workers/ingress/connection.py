"""A connection of the HTTP server of an ingress: bounded in size and time, and known to the application. `server.py`
hands the class to uvicorn.
"""

import asyncio
import ssl
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from flexpert_proto.credentials import peer_is_known
from flexpert_workers.ingress.openai.exchange import CONNECTION

HEADERS_TIMEOUT_S = 30.0
"""That a client takes from its connection, or its first byte, to the end of a request's headers."""
MAX_HEAD_BYTES = 512 * 1024
"""Of a request's line and headers, with what of the body arrives in the same piece."""


class HttpProtocol(HttpToolsProtocol):
    """A connection that tells the application when its client leaves, and that the application can drop.

    `openai/exchange.py` says what for: asking ASGI whether the client left takes a task for each request, and what a
    client that stalls left unread would stay queued.
    """

    on_lost: Callable[[], None] | None = None
    _late: asyncio.TimerHandle | None = None
    _head_bytes = 0

    @property
    def peer_is_known(self) -> bool:
        """Whether the client showed a certificate of the authorities."""
        connection = self.transport.get_extra_info("ssl_object")
        return isinstance(connection, ssl.SSLObject | ssl.SSLSocket) and peer_is_known(connection)

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
        self.scope[CONNECTION] = self  # type: ignore[literal-required]
        self._await_head()

    def on_headers_complete(self) -> None:
        """Its headers are here."""
        self._forget_head()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left, or was dropped."""
        self._forget_head()
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def abort(self) -> None:
        """Drop the connection, and what is queued on it."""
        self.transport.abort()

    def _await_head(self) -> None:
        if self._late is None:
            self._head_bytes = 0
            self._late = self.loop.call_later(HEADERS_TIMEOUT_S, self.abort)

    def _forget_head(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
