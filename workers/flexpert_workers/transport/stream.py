"""Messages of a few frames over stream sockets, without a thread of its own: what dispatches travel on.

A dispatch takes a few hundred microseconds, and every hand-over between threads takes tens of them. ZeroMQ gives each
message to a thread of its own on either side; here the thread that has a message writes it to the kernel, and the
thread that waits for it reads it from there. A peer that dies shows at once: the kernel closes its connections.
"""

import errno
import os
import select
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flexpert_workers.transport.endpoints import dialled_host, is_loopback, socket_path

_HEADER = struct.Struct("<4sI14I")
"""Magic, number of frames, length of each; as long as the alignment of frames."""
_MAGIC = b"fxm1"
_MOST_FRAMES = 14
_LONGEST_MESSAGE_BYTES = 1 << 30
_PADDING = memoryview(bytes(_HEADER.size))
_BUFFER_BYTES = 4 << 20
_BACKLOG = 512

Frame = bytes | memoryview


class Disconnected(ConnectionError):
    """The peer closed the connection, or speaks another language."""


class Connection:
    """One end of a connection that carries messages; it never waits. Every method may raise `OSError`: it is over then.

    Args:
        sock: A connected stream socket, or one that is being connected.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._unsent: list[memoryview] = []
        self._header = memoryview(bytearray(_HEADER.size))
        self._lengths: list[int] | None = None
        self._target = self._header
        self._received = 0

    def fileno(self) -> int:
        """Descriptor to be polled: for input always, for output while `is_sending`."""
        return self._sock.fileno()

    @property
    def is_sending(self) -> bool:
        """Whether bytes are left that the kernel has not taken yet; `flush` goes on."""
        return bool(self._unsent)

    def send(self, frames: Sequence[Frame]) -> None:
        """Send a message; what does not go at once goes with `flush`, and must not change until then."""
        views = [memoryview(frame).cast("B") for frame in frames]
        lengths = [len(view) for view in views]
        assert len(lengths) <= _MOST_FRAMES, f"a message has at most {_MOST_FRAMES} frames"
        header = _HEADER.pack(_MAGIC, len(lengths), *lengths, *[0] * (_MOST_FRAMES - len(lengths)))
        self._unsent.append(memoryview(header))
        for view, length in zip(views, lengths, strict=True):
            self._unsent += (view, _PADDING[: -length % _HEADER.size])
        self.flush()

    def flush(self) -> None:
        """Hand the kernel as much as it takes."""
        while self._unsent:
            try:
                sent = self._sock.sendmsg(self._unsent)
            except BlockingIOError:
                return
            done = 0
            while done < len(self._unsent) and sent >= len(self._unsent[done]):
                sent -= len(self._unsent[done])
                done += 1
            del self._unsent[:done]
            if sent:
                self._unsent[0] = self._unsent[0][sent:]

    def receive(self) -> list[memoryview] | None:
        """The frames of the next message if all of it has arrived; they are the caller's own.

        Raises:
            Disconnected: The peer closed the connection, or sent what is no message.
        """
        while True:
            if self._received == len(self._target):
                frames = self._next()
                if frames is not None:
                    return frames
                continue
            try:
                count = self._sock.recv_into(self._target[self._received :])
            except BlockingIOError:
                return None
            if not count:
                raise Disconnected("the peer closed the connection")
            self._received += count

    def close(self) -> None:
        """Close the connection; what was not sent is dropped."""
        self._unsent.clear()
        self._sock.close()

    def _next(self) -> list[memoryview] | None:
        """Go from a header to its body, or from a body to the next header; the frames in the latter case."""
        lengths, body = self._lengths, self._target
        self._received = 0
        if lengths is None:
            self._lengths = _parse(self._header)
            total = sum(length + -length % _HEADER.size for length in self._lengths)
            self._target = np.empty(total, dtype=np.uint8).data
            return None
        self._lengths, self._target = None, self._header
        frames, position = [], 0
        for length in lengths:
            frames.append(body[position : position + length])
            position += length + -length % _HEADER.size
        return frames


class Listener:
    """Accepts connections and polls them, together with other descriptors, for one thread.

    Attributes:
        endpoint: Where peers `dial`.
    """

    def __init__(self, bind_host: str, socket_dir: str) -> None:
        """Listen where peers can reach it.

        Args:
            bind_host: Address to listen on. A loopback address means that all peers are on this host.
            socket_dir: Folder for UNIX sockets, made when absent; empty for TCP also on a loopback address.

        Raises:
            ValueError: A socket's path under `socket_dir` would be too long.
        """
        self._path: Path | None = None
        if socket_dir and is_loopback(bind_host):
            self._path = socket_path(socket_dir)
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._sock.bind(str(self._path))
            self.endpoint = f"unix://{self._path}"
        else:
            self._sock = socket.create_server((bind_host, 0))
            self.endpoint = f"tcp://{dialled_host(bind_host)}:{self._sock.getsockname()[1]}"
        self._sock.listen(_BACKLOG)
        self._sock.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._connections: dict[int, Connection] = {}

    def watch(self, descriptor: int) -> None:
        """Have `wait` also return when something can be read from `descriptor`, which stays the caller's."""
        self._poll.register(descriptor, select.POLLIN)

    def wait(self, timeout_s: float | None) -> tuple[list[Connection], set[int]]:
        """Wait until something happens; accepts, and goes on with what is being sent.

        Returns:
            The connections from which something can be read, and the watched descriptors that can be read.
        """
        readable, watched = [], set()
        for descriptor, events in self._poll.poll(None if timeout_s is None else timeout_s * 1000):
            if descriptor == self._sock.fileno():
                self._accept()
            elif (connection := self._connections.get(descriptor)) is None:
                watched.add(descriptor)
            elif connection.is_sending:
                self._go_on(connection, events)
            else:
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
        connection = Connection(sock)
        self._connections[connection.fileno()] = connection
        self._poll.register(connection.fileno(), select.POLLIN)

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
        OSError: Nobody listens there.
    """
    scheme, _, rest = endpoint.partition("://")
    if scheme == "unix":
        sock, address = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), rest
        begun = _begin(sock, address)
    else:
        host, _, port = rest.rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        begun = _begin(sock, (host.strip("[]"), int(port)))
    if begun not in (0, errno.EINPROGRESS):
        sock.close()
        raise OSError(begun, f"{endpoint}: {os.strerror(begun)}")
    return Connection(sock)


def _begin(sock: socket.socket, address: str | tuple[str, int]) -> int:
    sock.setblocking(False)
    return sock.connect_ex(address)


def _parse(header: memoryview) -> list[int]:
    magic, count, *lengths = _HEADER.unpack(header)
    if magic != _MAGIC or count > _MOST_FRAMES or sum(lengths) > _LONGEST_MESSAGE_BYTES:
        raise Disconnected("the peer sent what is no message")
    return list(lengths[:count])
