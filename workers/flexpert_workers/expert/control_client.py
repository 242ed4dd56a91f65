"""Asks a worker on its control socket; the pool controller uses it."""

import math
import threading
import time
from types import TracebackType
from typing import Any, Self

import msgspec
import zmq

from flexpert_workers.messages import control
from flexpert_workers.transport import ConnectionMonitor, PeerEvent, connect
from flexpert_workers.transport.monitor import NEVER_MS

_decoder: msgspec.msgpack.Decoder[control.ControlReply] = msgspec.msgpack.Decoder(control.ControlReply)


class ControlClient:
    """A connection to one worker's control socket; one request at a time, several threads may share it.

    Args:
        endpoint: The worker's control endpoint.
        context: ZeroMQ context; a shared one when None.
    """

    def __init__(self, endpoint: str, context: "zmq.Context[Any] | None" = None) -> None:
        self.endpoint = endpoint
        self._context: zmq.Context[Any] = context or zmq.Context.instance()
        self._lock = threading.Lock()
        self._connection: tuple[zmq.Socket[Any], ConnectionMonitor] | None = None

    def request(self, message: control.ControlRequest, timeout_s: float) -> control.ControlReply:
        """Ask and return the reply; a refusal is a reply, `control.Refused`.

        Raises:
            TimeoutError: No reply within `timeout_s`.
            ConnectionError: The worker is not there, or went away.
        """
        return self._ask(message, timeout_s)

    def close(self) -> None:
        """Close the connection; a later request opens another."""
        with self._lock:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, message: control.ControlRequest, timeout_s: float) -> control.ControlReply:
        with self._lock:
            try:
                return self._exchange(message, timeout_s)
            except BaseException:
                self._close()  # a late reply must not answer the next request
                raise

    def _exchange(self, message: control.ControlRequest, timeout_s: float) -> control.ControlReply:
        sock, monitor = self._connection or self._connect()
        self._raise_if_gone(monitor)
        sock.send(msgspec.msgpack.encode(message))
        deadline = time.monotonic() + timeout_s
        poller = zmq.Poller()
        poller.register(sock, zmq.POLLIN)
        poller.register(monitor.socket, zmq.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = dict(poller.poll(math.ceil(left * 1000)))
            if sock in ready:
                return _decoder.decode(sock.recv())
            self._raise_if_gone(monitor)
        raise TimeoutError(f"{self.endpoint} did not answer {type(message).__name__} within {timeout_s:g} s")

    def _connect(self) -> "tuple[zmq.Socket[Any], ConnectionMonitor]":
        sock = self._context.socket(zmq.DEALER)
        sock.linger = 0
        sock.reconnect_ivl = NEVER_MS
        self._connection = (sock, ConnectionMonitor(sock))
        connect(sock, self.endpoint)
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            sock, monitor = self._connection
            self._connection = None
            monitor.close()
            sock.close()

    def _raise_if_gone(self, monitor: ConnectionMonitor) -> None:
        if any(event is not PeerEvent.CONNECTED for event in monitor.events()):
            raise ConnectionError(f"no worker answers at {self.endpoint}")
