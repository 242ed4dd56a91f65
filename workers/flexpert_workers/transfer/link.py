"""One connection of a fetcher to a page server. The only module of the target that calls ZeroMQ."""

import math
import threading
from typing import Any

import msgspec
import zmq

from flexpert_proto.credentials import CredentialsError
from flexpert_workers.messages import UNREADABLE, transfer
from flexpert_workers.transfer.channel import Channel
from flexpert_workers.transport.endpoints import connect
from flexpert_workers.transport.monitor import NEVER_MS, ConnectionMonitor, PeerEvent
from flexpert_workers.transport.sockets import is_readable

_decoder: msgspec.msgpack.Decoder[transfer.TransferReply] = msgspec.msgpack.Decoder(transfer.TransferReply)


class LinkBroken(Exception):
    """The connection is of no use any more; its owner makes it anew or gives up."""


class LinkRefused(LinkBroken):
    """Nobody listens at the endpoint."""


class Link:
    """A connection that is made when it is first used, and again after `reset`. One thread at a time uses it.

    Attributes:
        lock: Held by whoever fetches a page over the link: one heavy stream between two owners.
        chunk_bytes: How much to ask for at a time, which a fetch fits to how fast the link is.
        channel: Between this owner's device and the source's, once both ends have met.
        may_meet: Whether it is worth trying to make a channel; not when that has failed.
        absent_since: Since when nobody listens at the endpoint, in the fetch's clock; None while somebody does.
    """

    def __init__(self, endpoint: str, context: "zmq.Context[Any]", chunk_bytes: int) -> None:
        self.endpoint = endpoint
        self.chunk_bytes = chunk_bytes
        self.lock = threading.Lock()
        self.channel: Channel | None = None
        self.may_meet = True
        self.absent_since: float | None = None
        self._context = context
        self._connection: tuple[zmq.Socket[Any], ConnectionMonitor] | None = None
        self._gone = False
        self._refused = False

    def send(self, message: transfer.TransferRequest) -> None:
        """Send a request without waiting. That the source went away is told by `receive`, after what it had sent.

        Raises:
            LinkBroken: The source takes nothing.
        """
        sock, monitor = self._connection or self._connect()
        if self._has_gone(monitor):
            return
        try:
            sock.send(msgspec.msgpack.encode(message), zmq.NOBLOCK)
        except zmq.Again as error:
            raise LinkBroken(f"{self.endpoint} takes no requests") from error

    def receive(self, timeout_s: float) -> transfer.TransferReply | None:
        """The next reply, or None when none came in time; what follows a `Chunk` is then taken by `receive_into`.

        Raises:
            LinkBroken: The source went away and all it had sent was received, or it answers what nobody understands.
            LinkRefused: It was not there in the first place.
        """
        sock, monitor = self._connection or self._connect()
        poller = zmq.Poller()
        poller.register(sock, zmq.POLLIN)
        poller.register(monitor.socket, zmq.POLLIN)
        poller.poll(0 if self._gone else math.ceil(timeout_s * 1000))
        gone = self._has_gone(monitor)
        if not is_readable(sock):
            if gone:
                kind = LinkRefused if self._refused else LinkBroken
                raise kind(f"no page server answers at {self.endpoint}")
            return None
        try:
            return _decoder.decode(sock.recv())
        except UNREADABLE as error:
            raise LinkBroken(f"{self.endpoint} is not a page server of this version: {error}") from error

    def receive_into(self, target: memoryview) -> bool:
        """Receive the bytes of a chunk straight into their place; whether they are as many as the place has.

        Raises:
            LinkBroken: No bytes follow the header.
        """
        assert self._connection is not None, "a chunk's header comes first"
        sock, _ = self._connection
        if not sock.getsockopt(zmq.RCVMORE):
            raise LinkBroken(f"{self.endpoint} sent a chunk without its bytes")
        num_bytes = sock.recv_into(target)
        return num_bytes == target.nbytes and not sock.getsockopt(zmq.RCVMORE)

    def reset(self) -> None:
        """Close the connection: nothing that was asked for over it can arrive later, nor over its channel."""
        if self.channel is not None:
            self.channel.abort()
            self.channel = None
        if self._connection is not None:
            sock, monitor = self._connection
            self._connection = None
            monitor.close()
            sock.close(linger=0)

    def _connect(self) -> "tuple[zmq.Socket[Any], ConnectionMonitor]":
        sock = self._context.socket(zmq.DEALER)
        sock.linger = 0
        sock.reconnect_ivl = NEVER_MS
        self._connection = (sock, ConnectionMonitor(sock))
        self._gone = False
        try:
            connect(sock, self.endpoint)
        except (zmq.ZMQError, CredentialsError) as error:
            raise LinkBroken(f"{self.endpoint} cannot be dialled: {error}") from error
        return self._connection

    def _has_gone(self, monitor: ConnectionMonitor) -> bool:
        """Whether the source went away since the connection was made: ZeroMQ would connect again without a word."""
        events = monitor.events()
        self._refused = self._refused or (not self._gone and events[:1] == [PeerEvent.UNREACHABLE])
        self._gone = self._gone or any(event is not PeerEvent.CONNECTED for event in events)
        return self._gone
