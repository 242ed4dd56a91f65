"""Who listens for `stream.Connection`s, and who dials: UNIX sockets, or TCP; with TLS where there are certificates."""

import errno
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from flexpert_proto.credentials import CredentialsError, pool_client_context, pool_server_context
from flexpert_workers.transport.endpoints import dialled_host, is_loopback, socket_path
from flexpert_workers.transport.secure import SecureConnection
from flexpert_workers.transport.stream import Connection, Disconnected, Frame

_BACKLOG = 512
FIRST_MESSAGE_S = 10.0
"""After which a connection is dropped over which no whole message has come."""


class Listener:
    """Accepts connections and polls them, together with other descriptors, for one thread.

    Attributes:
        endpoint: Where peers `dial`.
    """

    def __init__(self, bind_host: str, socket_dir: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Listen where peers can reach it.

        Args:
            bind_host: Address to listen on. A loopback address means that all peers are on this host.
            socket_dir: Folder for UNIX sockets, made when absent; empty for TCP also on a loopback address.
            clock: Seconds, monotonic.

        Raises:
            ValueError: A socket's path under `socket_dir` would be too long, or the pool's certificates cannot be used.
        """
        self._clock = clock
        self._tls: ssl.SSLContext | None = None
        self._path: Path | None = None
        if socket_dir and is_loopback(bind_host):
            self._path = socket_path(socket_dir)
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._sock.bind(str(self._path))
            self.endpoint = f"unix://{self._path}"
        else:
            self._tls = pool_server_context()
            self._sock = socket.create_server((bind_host, 0))
            self.endpoint = f"tcp://{dialled_host(bind_host)}:{self._sock.getsockname()[1]}"
        self._sock.listen(_BACKLOG)
        self._sock.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._connections: dict[int, Connection] = {}
        self._silent: dict[int, tuple[Connection, float]] = {}

    def watch(self, descriptor: int) -> None:
        """Have `wait` also return when something can be read from `descriptor`, which stays the caller's."""
        self._poll.register(descriptor, select.POLLIN)

    def wait(self, timeout_s: float | None) -> tuple[list[Connection], set[int]]:
        """Wait until something happens; accepts, and goes on with what is being sent.

        Returns:
            The connections from which something can be read, and the watched descriptors that can be read.
        """
        readable, watched = [], set()
        if self._tls is not None:
            readable = [one for one in self._connections.values() if one.has_more and not one.is_sending]
            timeout_s = 0 if readable else timeout_s
        if self._silent:
            timeout_s = self._drop_the_silent(timeout_s)
        for descriptor, events in self._poll.poll(None if timeout_s is None else timeout_s * 1000):
            if descriptor == self._sock.fileno():
                self._accept()
            elif (connection := self._connections.get(descriptor)) is None:
                watched.add(descriptor)
            elif connection.is_sending:
                self._go_on(connection, events)
            elif connection not in readable:
                readable.append(connection)
        return readable, watched

    def send(self, connection: Connection, frames: Sequence[Frame]) -> None:
        """Send a message; nothing is read from a peer that has not taken all of it yet."""
        try:
            connection.send(frames)
        except OSError:
            self.drop(connection)
            return
        if connection.is_sending:
            self._poll.modify(connection.fileno(), select.POLLOUT)

    def drop(self, connection: Connection) -> None:
        """Close a connection."""
        self._silent.pop(connection.fileno(), None)
        if self._connections.pop(connection.fileno(), None) is not None:
            self._poll.unregister(connection.fileno())
        connection.close()

    def close(self) -> None:
        """Close everything."""
        for connection in list(self._connections.values()):
            self.drop(connection)
        self._sock.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError:  # the peer has gone already
            return
        connection = Connection(sock) if self._tls is None else SecureConnection(sock, self._tls)
        self._connections[connection.fileno()] = connection
        self._silent[connection.fileno()] = connection, self._clock() + FIRST_MESSAGE_S
        self._poll.register(connection.fileno(), select.POLLIN)

    def _drop_the_silent(self, timeout_s: float | None) -> float | None:
        """Drop connections whose first message has not come in time; how long to wait for the next one to be late."""
        now, late_at = self._clock(), None
        for descriptor, (connection, until) in list(self._silent.items()):
            if connection.has_spoken:
                del self._silent[descriptor]
            elif until <= now:
                self.drop(connection)
            elif late_at is None:
                late_at = until
        if late_at is None:
            return timeout_s
        return late_at - now if timeout_s is None else min(timeout_s, late_at - now)

    def _go_on(self, connection: Connection, events: int) -> None:
        try:
            if events & (select.POLLHUP | select.POLLERR):
                raise Disconnected("the peer closed the connection")
            connection.flush()
        except OSError:
            self.drop(connection)
            return
        if not connection.is_sending:
            self._poll.modify(connection.fileno(), select.POLLIN)


def dial(endpoint: str) -> Connection:
    """Begin to connect to a `Listener.endpoint`; polling tells how that ends.

    Raises:
        OSError: Nobody listens there, or the pool's certificates cannot be used.
    """
    tls: tuple[ssl.SSLContext, str] | None = None
    scheme, _, rest = endpoint.partition("://")
    if scheme == "unix":
        sock, address = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), rest
        begun = _begin(sock, address)
    else:
        tls = _client_context()
        host, _, port = rest.rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        begun = _begin(sock, (host.strip("[]"), int(port)))
    if begun not in (0, errno.EINPROGRESS):
        sock.close()
        raise OSError(begun, f"{endpoint}: {os.strerror(begun)}")
    return Connection(sock) if tls is None else SecureConnection(sock, *tls)


def _client_context() -> tuple[ssl.SSLContext, str] | None:
    try:
        return pool_client_context()
    except CredentialsError as error:
        raise ConnectionError(str(error)) from error


def _begin(sock: socket.socket, address: str | tuple[str, int]) -> int:
    sock.setblocking(False)
    return sock.connect_ex(address)
