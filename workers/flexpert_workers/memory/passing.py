"""Messages with file descriptors over a UNIX socket. The page owner's server and client use one `Link` a connection."""

import array
import os
import select
import socket
import struct
import threading
from collections.abc import Sequence

MOST_DESCRIPTORS = 250
"""In one message; Linux allows 253."""
_LENGTH = struct.Struct("<I")
_LONGEST_MESSAGE_BYTES = 64 << 20
_ANCILLARY_BYTES = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)


class Link:
    """A connected UNIX stream socket that carries whole messages. One thread at a time receives; any may send."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._sending = threading.Lock()

    def send(self, payload: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message; the descriptors stay the caller's own too.

        Raises:
            OSError: The peer is gone.
        """
        assert len(descriptors) <= MOST_DESCRIPTORS, "too many descriptors for one message"
        data = _LENGTH.pack(len(payload)) + payload
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        with self._sending:
            sent = self.socket.sendmsg([data], rights, socket.MSG_NOSIGNAL)
            self.socket.sendall(memoryview(data)[sent:], socket.MSG_NOSIGNAL)

    def readable(self, timeout_s: float = 0.0) -> bool:
        """Whether a message has come, or the peer is gone; waits for it."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def receive(self) -> tuple[bytes, list[int]]:
        """Wait for a message and return it with its descriptors, which belong to the caller (closed on exec).

        Raises:
            ConnectionError: The peer is gone, or says what is no message.
        """
        descriptors: list[int] = []
        try:
            (length,) = _LENGTH.unpack(self._read(_LENGTH.size, descriptors))
            if length > _LONGEST_MESSAGE_BYTES:
                raise ConnectionError(f"a message of {length} bytes is announced: that is no page owner's")
            return self._read(length, descriptors), descriptors
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def _read(self, nbytes: int, descriptors: list[int]) -> bytes:
        read = bytearray()
        while len(read) < nbytes:
            flags = socket.MSG_CMSG_CLOEXEC
            data, ancillary, told, _ = self.socket.recvmsg(nbytes - len(read), _ANCILLARY_BYTES, flags)
            for level, kind, rights in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    received = array.array("i")
                    received.frombytes(rights[: len(rights) - len(rights) % received.itemsize])
                    descriptors.extend(received)
            if told & socket.MSG_CTRUNC:
                raise ConnectionError("descriptors were lost on the way: this process has too many open files")
            if not data:
                raise ConnectionError("the other end of a page owner's connection is gone")
            read += data
        return bytes(read)
