"""A `stream.Connection` whose messages are encrypted, between peers that show each other certificates.

TLS is spoken into memory, and the socket is written and read beside it in large pieces: as on a plain connection
nothing here waits, and no thread is needed.
"""

import socket
import ssl

from flexpert_workers.transport.stream import Connection, Disconnected

_PIECE_BYTES = 1 << 20
_NOTHING = memoryview(b"")


class SecureConnection(Connection):
    """One end of an encrypted connection.

    Args:
        sock: See `Connection`.
        context: A client's or a server's.
        expected: For a client, the name that the server's certificate must have; None for a server.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, expected: str | None = None) -> None:
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=expected is None, server_hostname=expected
        )
        self._has_shaken_hands = False
        self._sealed = _NOTHING

    @property
    def is_sending(self) -> bool:
        """See `Connection`; what waits for the peer's part of the handshake goes when that has come."""
        return bool(self._sealed) or self._outgoing.pending > 0

    @property
    def has_more(self) -> bool:
        """See `Connection`."""
        return self._incoming.pending > 0 or self._tls.pending() > 0

    def flush(self) -> None:
        """Hand the kernel as much as it takes."""
        self._shake_hands()
        while self._push() and self._has_shaken_hands and self._unsent:
            self._seal()

    def close(self) -> None:
        """See `Connection`."""
        self._sealed = _NOTHING
        super().close()

    def _read(self, target: memoryview) -> int | None:
        while True:
            self._shake_hands()
            if self._has_shaken_hands:
                try:
                    count = self._tls.read(len(target), target)
                except ssl.SSLWantReadError:
                    pass
                else:
                    if not count:
                        raise Disconnected("the peer closed the connection")
                    return int(count)
            self.flush()
            if not self._pull():
                return None

    def _shake_hands(self) -> None:
        if self._has_shaken_hands:
            return
        try:
            self._tls.do_handshake()
            self._has_shaken_hands = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self._push()  # why, for the peer
            raise

    def _pull(self) -> bool:
        """Take what the kernel has; whether it had anything."""
        try:
            data = self._sock.recv(_PIECE_BYTES)
        except BlockingIOError:
            return False
        if not data:
            raise Disconnected("the peer closed the connection")
        self._incoming.write(data)
        return True

    def _seal(self) -> None:
        """Encrypt the next piece of what is unsent."""
        view = self._unsent[0]
        if not view:
            del self._unsent[0]
            return
        done = self._tls.write(view[:_PIECE_BYTES])
        if done == len(view):
            del self._unsent[0]
        else:
            self._unsent[0] = view[done:]

    def _push(self) -> bool:
        """Hand the kernel what is encrypted; whether it took all of it."""
        while self.is_sending:
            if not self._sealed:
                self._sealed = memoryview(self._outgoing.read())
            try:
                sent = self._sock.send(self._sealed)
            except BlockingIOError:
                return False
            self._sealed = self._sealed[sent:]
        return True
