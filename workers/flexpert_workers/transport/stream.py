"""Messages of a few frames over stream sockets, without a thread of its own: what dispatches travel on.

A dispatch takes a few hundred microseconds, and every hand-over between threads takes tens of them. ZeroMQ gives each
message to a thread of its own on either side; here the thread that has a message writes it to the kernel, and the
thread that waits for it reads it from there. A peer that dies shows at once: the kernel closes its connections.
"""

import socket
import struct
from collections.abc import Sequence

import numpy as np

_HEADER = struct.Struct("<4sI14I")
"""Magic, number of frames, length of each; as long as the alignment of frames."""
_MAGIC = b"fxm1"
_MOST_FRAMES = 14
_LONGEST_MESSAGE_BYTES = 1 << 30
_PADDING = memoryview(bytes(_HEADER.size))
_BUFFER_BYTES = 4 << 20

Frame = bytes | memoryview


class Disconnected(ConnectionError):
    """The peer closed the connection, or speaks another language."""


class Connection:
    """One end of a connection that carries messages; it never waits. Every method may raise `OSError`: it is over then.

    Args:
        sock: A connected stream socket, or one that is being connected.

    Attributes:
        has_spoken: Whether a whole message has come from the peer.
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
        self.has_spoken = False

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
            count = self._read(self._target[self._received :])
            if count is None:
                return None
            self._received += count

    @property
    def has_more(self) -> bool:
        """Whether there is more to `receive` that polling does not tell of."""
        return False

    def close(self) -> None:
        """Close the connection; what was not sent is dropped."""
        self._unsent.clear()
        self._sock.close()

    def _read(self, target: memoryview) -> int | None:
        """Read as many bytes as there are into `target`; None when there are none yet."""
        try:
            count = self._sock.recv_into(target)
        except BlockingIOError:
            return None
        if not count:
            raise Disconnected("the peer closed the connection")
        return count

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
        self.has_spoken = True
        frames, position = [], 0
        for length in lengths:
            frames.append(body[position : position + length])
            position += length + -length % _HEADER.size
        return frames


def _parse(header: memoryview) -> list[int]:
    magic, count, *lengths = _HEADER.unpack(header)
    if magic != _MAGIC or count > _MOST_FRAMES or sum(lengths) > _LONGEST_MESSAGE_BYTES:
        raise Disconnected("the peer sent what is no message")
    return list(lengths[:count])
