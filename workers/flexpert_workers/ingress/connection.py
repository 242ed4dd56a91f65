"""A connection of an ingress over HTTP, as its application knows it. `server.py` hands the class to uvicorn."""

import ssl
from collections.abc import Callable

from flexpert_proto.credentials import peer_is_known
from flexpert_workers.http_server import HttpProtocol
from flexpert_workers.ingress.openai.exchange import CONNECTION


class ClientConnection(HttpProtocol):
    """A connection that tells the application when its client leaves, and that the application can drop.

    `openai/exchange.py` says what for: asking ASGI whether the client left takes a task for each request, and what a
    client that stalls left unread would stay queued.
    """

    on_lost: Callable[[], None] | None = None

    @property
    def peer_is_known(self) -> bool:
        """Whether the client showed a certificate of the authorities."""
        connection = self.transport.get_extra_info("ssl_object")
        return isinstance(connection, ssl.SSLObject | ssl.SSLSocket) and peer_is_known(connection)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.scope[CONNECTION] = self  # type: ignore[literal-required]

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left, or was dropped."""
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()
