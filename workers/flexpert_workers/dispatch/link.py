"""The engine's connection to one worker, and what is known of its health. The dispatch client owns one per worker."""

from collections.abc import Mapping, Sequence
from typing import Any

import zmq

from flexpert_workers.routing import WorkerAddress
from flexpert_workers.transport import ConnectionMonitor, PeerEvent

_FIRST_BACK_OFF_S = 0.02
_LONGEST_BACK_OFF_S = 1.0


class WorkerLink:
    """One incarnation of one worker. A connection that broke is closed; the next send makes another.

    Attributes:
        usable_at: Monotonic time before which the worker is not tried again.
    """

    def __init__(self, context: "zmq.Context[Any]", poller: zmq.Poller, address: WorkerAddress) -> None:
        self.address = address
        self.usable_at = 0.0
        self._back_off_s = _FIRST_BACK_OFF_S
        self._context = context
        self._poller = poller
        self._sock: zmq.Socket[Any] | None = None
        self._monitor: ConnectionMonitor | None = None

    def send(self, frames: Sequence[bytes | memoryview]) -> None:
        """Send a message; it never waits."""
        sock = self._sock or self._open()
        sock.send_multipart(frames, copy=False)

    def receive(self, ready: Mapping[Any, int]) -> list[zmq.Frame] | None:
        """A message that has arrived, None when there is none; `ready` is what the poller found."""
        if self._sock is None or self._sock not in ready:
            return None
        return self._sock.recv_multipart(copy=False)

    def is_gone(self, ready: Mapping[Any, int]) -> bool:
        """Whether the connection broke, or could not be made; `ready` is what the poller found."""
        if self._monitor is None or self._monitor.socket not in ready:
            return False
        return any(event is not PeerEvent.CONNECTED for event in self._monitor.events())

    def failed(self, now: float) -> None:
        """The worker could not be used: close the connection and leave it alone for a while, longer each time."""
        self.close()
        self.usable_at = now + self._back_off_s
        self._back_off_s = min(2 * self._back_off_s, _LONGEST_BACK_OFF_S)

    def succeeded(self) -> None:
        """The worker answered."""
        self._back_off_s = _FIRST_BACK_OFF_S

    def close(self) -> None:
        """Close the connection; what it had not sent or received yet is dropped."""
        if self._sock is None or self._monitor is None:
            return
        self._poller.unregister(self._sock)
        self._poller.unregister(self._monitor.socket)
        self._monitor.close()
        self._sock.close(linger=0)
        self._sock = self._monitor = None

    def _open(self) -> "zmq.Socket[Any]":
        sock: zmq.Socket[Any] = self._context.socket(zmq.DEALER)
        self._monitor = ConnectionMonitor(sock)
        sock.connect(self.address.endpoint)
        self._poller.register(sock, zmq.POLLIN)
        self._poller.register(self._monitor.socket, zmq.POLLIN)
        self._sock = sock
        return sock
