"""Tells at once when the peer of a connected socket goes away; the dispatch client polls it beside the socket.

A process that dies closes its connections, and the kernel says so within milliseconds: no time-out is needed for it.
ZeroMQ would reconnect silently, so whoever owns the socket closes it when it sees `LOST` and makes a new one.

Where news cannot be delivered ZeroMQ's own thread waits, and with it every socket of the context. So what watches is
never gone before what is watched, and whoever does not read news all the time has no news of reconnecting: `NEVER_MS`.
"""

import enum
import weakref
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from flexpert_workers.transport.sockets import is_readable

NEVER_MS = 24 * 3600 * 1000
"""For `reconnect_ivl` of a socket whose owner makes a new one, if at all."""


class PeerEvent(enum.Enum):
    """What happened to the one peer of a socket."""

    CONNECTED = "connected"
    UNREACHABLE = "unreachable"
    LOST = "lost"


_MEANING = {
    zmq.EVENT_HANDSHAKE_SUCCEEDED: PeerEvent.CONNECTED,
    zmq.EVENT_CONNECT_RETRIED: PeerEvent.UNREACHABLE,
    zmq.EVENT_DISCONNECTED: PeerEvent.LOST,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: PeerEvent.LOST,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: PeerEvent.LOST,
}


class ConnectionMonitor:
    """Events of a socket that connects to one endpoint. Make it before the socket connects; `close` before it closes.

    Attributes:
        socket: Becomes readable when there are events; to be polled.
    """

    def __init__(self, sock: "zmq.Socket[Any]") -> None:
        self.socket: zmq.Socket[Any] = sock.get_monitor_socket(sum(event.value for event in _MEANING))
        self._end = weakref.finalize(self, _end, sock, self.socket)

    def events(self) -> list[PeerEvent]:
        """The events since the last call, in order; does not wait."""
        seen: list[PeerEvent] = []
        while is_readable(self.socket):
            message = recv_monitor_message(self.socket, zmq.NOBLOCK)
            seen.append(_MEANING[zmq.Event(message["event"])])
        return seen

    def close(self) -> None:
        """Stop watching."""
        self._end()


def _end(watched: "zmq.Socket[Any]", news: "zmq.Socket[Any]") -> None:
    """In this order, and also when both are dropped together: see above."""
    if not watched.closed:
        watched.disable_monitor()
    news.close(linger=0)
