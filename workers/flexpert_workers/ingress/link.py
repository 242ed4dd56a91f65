"""One connection to one engine: a ZeroMQ DEALER with its monitor. The only module of the ingress that calls ZeroMQ.

`fleet.py` makes a link for each engine that the pool controller lists. ZeroMQ would reconnect silently, to whatever
process listens at the address by then, and would not say what it lost: so a link ends with its first disconnect, and
the fleet makes another.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from flexpert_workers.messages import UNREADABLE
from flexpert_workers.messages.generation import GenerationReply, GenerationRequest, Ping
from flexpert_workers.transport import connect

log = logging.getLogger(__name__)

RECONNECT_MS = 50
HEARTBEAT_MS = 2000
HEARTBEAT_TIMEOUT_MS = 10_000

MAX_BATCHES_AT_ONCE = 64

_decoder = msgspec.msgpack.Decoder(list[GenerationReply])
_encoder = msgspec.msgpack.Encoder()


class LinkListener(Protocol):
    """What is told about a link; `fleet.Fleet` is one."""

    def link_up(self, link: "EngineLink") -> None:
        """The engine answered the connection."""

    def link_lost(self, link: "EngineLink", reason: str) -> None:
        """The connection ended; nothing more comes from this link. Not called after `close`."""

    def link_replies(self, link: "EngineLink", replies: list[GenerationReply]) -> None:
        """The engine sent a batch."""


class EngineLink:
    """A connection from its making to its first disconnect.

    Messages sent within one turn of the event loop travel as one batch. ZeroMQ's descriptors say once that something
    happened: so everything that is there is read then, and after each sending.

    Attributes:
        engine: Id of the engine.
    """

    def __init__(
        self,
        context: "zmq.Context[Any]",
        engine: str,
        endpoint: str,
        listener: LinkListener,
        *,
        hang_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.engine = engine
        self._listener = listener
        self._hang_timeout_s = hang_timeout_s
        self._clock = clock
        self._heard_at = clock()
        self._outbox: list[GenerationRequest] = []
        self._closed = False
        self._silence: asyncio.Task[None] | None = None
        self._socket: zmq.Socket[Any] = context.socket(zmq.DEALER)
        for option, value in _SOCKET_OPTIONS.items():
            self._socket.setsockopt(option, value)
        self._monitor: zmq.Socket[Any] = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_MONITOR_STOPPED
        )
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(_descriptor(self._socket), self._read_replies)
        self._loop.add_reader(_descriptor(self._monitor), self._read_connection)
        connect(self._socket, endpoint)
        self._loop.call_soon(self._read_connection)

    def send(self, message: GenerationRequest) -> None:
        """Queue a message; the batch leaves at the end of this turn of the event loop."""
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(message)

    def close(self) -> None:
        """Send what is queued, then end the connection without telling the listener."""
        if self._closed:
            return
        self._flush()
        self._closed = True
        if self._silence is not None:
            self._silence.cancel()
        self._loop.remove_reader(_descriptor(self._socket))
        self._loop.remove_reader(_descriptor(self._monitor))
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=_LINGER_MS)

    def _flush(self) -> None:
        batch, self._outbox = self._outbox, []
        if not batch or self._closed:
            return
        try:
            self._socket.send(_encoder.encode(batch), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            self._lose(f"sending failed: {error}")
        else:
            self._read_replies()

    def _lose(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._listener.link_lost(self, reason)

    def _read_connection(self) -> None:
        while not self._closed and _readable(self._monitor):
            event = recv_monitor_message(self._monitor, zmq.NOBLOCK)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._heard_at = self._clock()
                self._silence = self._loop.create_task(self._watch_silence())
                self._listener.link_up(self)
            else:
                self._lose("the connection ended")

    def _read_replies(self) -> None:
        for _ in range(MAX_BATCHES_AT_ONCE):
            if self._closed or not _readable(self._socket):
                return
            payload = self._socket.recv(zmq.NOBLOCK)
            self._heard_at = self._clock()
            try:
                replies = _decoder.decode(payload)
            except UNREADABLE as error:
                self._lose(f"it does not speak the protocol: {error}")
                return
            self._listener.link_replies(self, replies)
        self._loop.call_soon(self._read_replies)

    async def _watch_silence(self) -> None:
        """Ask for a sign of life several times per time-out; lose the link when none comes within it."""
        while True:
            self.send(Ping())
            await asyncio.sleep(self._hang_timeout_s / 4)
            silence_s = self._clock() - self._heard_at
            if silence_s > self._hang_timeout_s:
                self._lose(f"nothing heard for {silence_s:.0f} s")
                return


_LINGER_MS = 200
_SOCKET_OPTIONS: dict[int, int] = {
    zmq.LINGER: _LINGER_MS,
    zmq.SNDHWM: 0,
    zmq.RCVHWM: 0,
    zmq.RECONNECT_IVL: RECONNECT_MS,
    zmq.HEARTBEAT_IVL: HEARTBEAT_MS,
    zmq.HEARTBEAT_TIMEOUT: HEARTBEAT_TIMEOUT_MS,
}


def _descriptor(socket: "zmq.Socket[Any]") -> int:
    return int(socket.getsockopt(zmq.FD))


def _readable(socket: "zmq.Socket[Any]") -> bool:
    return bool(int(socket.getsockopt(_EVENTS)) & _POLLIN)


_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)
