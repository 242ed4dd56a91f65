"""The socket that ingresses connect to: a ROUTER in a thread of its own, between them and the engine's loop.

Requests go into a queue that the loop takes from; its batches come back over an in-process socket, so that the thread
sleeps in one poll. The loop is told at once of an ingress that disconnects: the monitor names the connection's file
descriptor, and every message tells which identity came over which descriptor.
"""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from flexpert_workers.engine.recorder import RoutingRecorder
from flexpert_workers.messages import UNREADABLE
from flexpert_workers.messages.generation import Cancel, GenerationReply, GenerationRequest, Ping, Pong, Submit
from flexpert_workers.transport import bind

logger = logging.getLogger(__name__)

_POLL_MS = 500
_HEARTBEAT_MS = 2000
_HEARTBEAT_TIMEOUT_MS = 10_000


class Gone(NamedTuple):
    """A source's connection ended: nobody waits for its requests any more."""

    source: bytes


class Record(NamedTuple):
    """The pool controller wants passes recorded from now on, or (`on` is False) no longer by this recorder."""

    recorder: RoutingRecorder
    on: bool


class Received(NamedTuple):
    """What a source sent."""

    source: bytes
    message: Submit | Cancel


Event = Gone | Record | Received | None
"""What the loop takes from the queue; None only wakes it up."""


class Frontend:
    """Binds at once; `start` begins to serve.

    Attributes:
        endpoint: What ingresses connect to.
        events: What the loop has to act on.
    """

    def __init__(self, bind_host: str, socket_dir: str, pong: Callable[[], Pong | None]) -> None:
        """`pong` gives the answer to a ping, or None while the loop does not run; called from this thread."""
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._pong = pong
        self._context: zmq.Context[Any] = zmq.Context()
        self._router: zmq.Socket[Any] = self._context.socket(zmq.ROUTER)
        for option, value in _ROUTER_OPTIONS.items():
            self._router.setsockopt(option, value)
        self._monitor: zmq.Socket[Any] = self._router.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.endpoint = bind(self._router, bind_host, socket_dir)
        self._outgoing: zmq.Socket[Any] = self._context.socket(zmq.PULL)
        self._outgoing.setsockopt(zmq.RCVHWM, 0)
        self._outgoing.bind("inproc://outgoing")
        self._decoder = msgspec.msgpack.Decoder(list[GenerationRequest])
        self._sources: dict[int, bytes] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="frontend", daemon=True)

    def start(self) -> None:
        """Serve until `stop`."""
        self._thread.start()

    def sender(self) -> "Sender":
        """A handle by which one other thread sends batches; made in that thread."""
        return Sender(self._context)

    def stop(self) -> None:
        """Close the socket, which ends every connection. Senders have to be closed before."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        else:
            self._close()

    def _run(self) -> None:
        poller = zmq.Poller()
        for sock in (self._monitor, self._router, self._outgoing):
            poller.register(sock, zmq.POLLIN)
        try:
            while not self._stopped.is_set():
                ready = dict(poller.poll(_POLL_MS))
                if self._outgoing in ready:
                    self._forward()
                if self._monitor in ready or self._router in ready:
                    self._receive()
        finally:
            self._close()

    def _close(self) -> None:
        self._router.disable_monitor()
        for sock in (self._monitor, self._router, self._outgoing):
            sock.close(linger=0)
        self._context.term()

    def _forward(self) -> None:
        for _ in range(64):
            try:
                source, batch = self._outgoing.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._send(source, batch)

    def _send(self, source: bytes, batch: bytes) -> None:
        try:
            self._router.send_multipart([source, batch], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.events.put(Gone(source))

    def _receive(self) -> None:
        for _ in range(64):
            # Before each message: a descriptor may have been closed and given to the next connection.
            self._note_disconnects()
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._sources[frames[-1].get(zmq.SRCFD)] = frames[0].bytes
            self._accept(frames[0].bytes, frames[-1].bytes)

    def _note_disconnects(self) -> None:
        while True:
            try:
                event = recv_monitor_message(self._monitor, zmq.NOBLOCK)
            except zmq.Again:
                return
            source = self._sources.pop(int(event["value"]), None)
            if source is not None:
                self.events.put(Gone(source))

    def _accept(self, source: bytes, payload: bytes) -> None:
        try:
            messages = self._decoder.decode(payload)
        except UNREADABLE as error:
            logger.warning("an ingress sent what is not a batch of requests: %s", error)
            return
        for message in messages:
            if not isinstance(message, Ping):
                self.events.put(Received(source, message))
            elif (pong := self._pong()) is not None:
                self._send(source, encode([pong]))


class Sender:
    """The loop's end of the in-process socket."""

    def __init__(self, context: "zmq.Context[Any]") -> None:
        self._socket: zmq.Socket[Any] = context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.connect("inproc://outgoing")

    def send(self, source: bytes, replies: list[GenerationReply]) -> None:
        """Send a batch to a source; never waits."""
        self._socket.send_multipart([source, encode(replies)])

    def close(self) -> None:
        """Nothing more will be sent."""
        self._socket.close(linger=0)


def encode(replies: list[GenerationReply]) -> bytes:
    """A batch as it travels."""
    return msgspec.msgpack.encode(replies)


_ROUTER_OPTIONS: dict[int, int] = {
    zmq.LINGER: 0,
    zmq.ROUTER_MANDATORY: 1,
    zmq.SNDHWM: 0,
    zmq.RCVHWM: 0,
    zmq.HEARTBEAT_IVL: _HEARTBEAT_MS,
    zmq.HEARTBEAT_TIMEOUT: _HEARTBEAT_TIMEOUT_MS,
}
