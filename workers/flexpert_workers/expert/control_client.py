"""Asks a worker on its control socket. The pool controller uses it, and a worker that copies an expert from a peer."""

import math
import threading
import time
import zlib
from types import TracebackType
from typing import Any, Self

import msgspec
import zmq

from flexpert_workers.errors import FlexpertError
from flexpert_workers.messages import control
from flexpert_workers.transport import ConnectionMonitor, PeerEvent

_decoder: msgspec.msgpack.Decoder[control.ControlReply] = msgspec.msgpack.Decoder(control.ControlReply)
_CHUNK_BYTES = 1 << 20


class CopyFailed(FlexpertError):
    """A peer could not give an expert, or its bytes did not arrive as they left."""


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
        return self._ask(message, timeout_s)[0]

    def fetch(self, layer: int, index: int, timeout_s: float = 10.0) -> bytearray:
        """Copy a resident expert's page in chunks, each checked against its CRC-32.

        Args:
            layer: 0-based among MoE layers.
            index: Of the expert in its layer.
            timeout_s: For each chunk.

        Raises:
            CopyFailed: The worker does not hold the expert, or bytes arrived damaged.
            TimeoutError: A chunk did not come in time.
            ConnectionError: The worker is not there, or went away.
        """
        page = bytearray()
        total = 1
        while len(page) < total:
            request = control.FetchExpert(layer, index, offset=len(page), length=_CHUNK_BYTES)
            reply, raw = self._ask(request, timeout_s)
            if not isinstance(reply, control.ExpertChunk):
                raise CopyFailed(f"{self.endpoint} does not give expert ({layer}, {index}): {reply}")
            if not raw or zlib.crc32(raw) != reply.checksum:
                raise CopyFailed(f"bytes of expert ({layer}, {index}) from {self.endpoint} arrived damaged")
            page += raw
            total = reply.total
        return page

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

    def _ask(self, message: control.ControlRequest, timeout_s: float) -> tuple[control.ControlReply, bytes]:
        with self._lock:
            try:
                return self._exchange(message, timeout_s)
            except BaseException:
                self._close()  # a late reply must not answer the next request
                raise

    def _exchange(self, message: control.ControlRequest, timeout_s: float) -> tuple[control.ControlReply, bytes]:
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
                payload, *raw = sock.recv_multipart()
                return _decoder.decode(payload), b"".join(raw)
            self._raise_if_gone(monitor)
        raise TimeoutError(f"{self.endpoint} did not answer {type(message).__name__} within {timeout_s:g} s")

    def _connect(self) -> "tuple[zmq.Socket[Any], ConnectionMonitor]":
        sock = self._context.socket(zmq.DEALER)
        sock.linger = 0
        self._connection = (sock, ConnectionMonitor(sock))
        sock.connect(self.endpoint)
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
