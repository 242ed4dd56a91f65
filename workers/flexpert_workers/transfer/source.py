"""Gives pages of experts to other owners: what a page owner runs, beside lending pages on its own host.

One thread serves all targets, a chunk at a time in turn, and between hosts it sends straight from the page's memory. A
page that a target does not go on with is let go of after a bounded time, also when the target hangs.
"""

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from flexpert_workers import threads
from flexpert_workers.messages import UNREADABLE, transfer
from flexpert_workers.transfer.bucket import TokenBucket
from flexpert_workers.transfer.channel import Channel, ChannelTransport
from flexpert_workers.transfer.checksum import chunk_checksum, page_checksum
from flexpert_workers.transfer.contract import ExpertKey, Identity, PageMemory, ServeLimits
from flexpert_workers.transfer.meetings import Meetings
from flexpert_workers.transfer.places import place_of
from flexpert_workers.transfer.sessions import Session, Sessions
from flexpert_workers.transport.endpoints import IPC, bind

_log = logging.getLogger(__name__)
_decoder: msgspec.msgpack.Decoder[transfer.TransferRequest] = msgspec.msgpack.Decoder(transfer.TransferRequest)
_LIMITS = ServeLimits()
_LOOK_AT_CHANNELS_S = 1.0


class PageServer:
    """Serves the pages of one owner to any number of targets.

    Args:
        read_page: The bytes of a held expert's page, or None. They must stay as they are while the view, or a slice of
            it, is referred to: the server lets go of it when the target has the page, or is gone.
        identity: For whom the pages are; others are refused.
        bind_host: Address to listen on.
        socket_dir: Folder for UNIX sockets on a loopback `bind_host`; empty for TCP.
        bucket: The rate at which this owner gives bytes out; None for as fast as they go.
        channels: Of this owner's device; None for all bytes to go over the host.
        checksum_of: The checksum under which a held page was sealed; when None, or when it answers None, the server
            computes it when the page is first asked for.
        context: ZeroMQ context; a shared one when None.
        clock: Seconds, monotonic.

    Attributes:
        incarnation: Made anew with every server.
        sent_bytes: Page bytes sent so far.
    """

    def __init__(
        self,
        read_page: Callable[[ExpertKey], PageMemory | None],
        identity: Identity,
        bind_host: str,
        socket_dir: str,
        bucket: TokenBucket | None = None,
        *,
        channels: ChannelTransport | None = None,
        checksum_of: Callable[[ExpertKey], int | None] | None = None,
        limits: ServeLimits = _LIMITS,
        context: "zmq.Context[Any] | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.incarnation = secrets.token_hex(8)
        self.sent_bytes = 0
        self._read_page = read_page
        self._identity = Identity(*identity)
        self._bind_host = bind_host
        self._socket_dir = socket_dir
        self._bucket = bucket or TokenBucket(None)
        self._checksum_of = checksum_of or (lambda _: None)
        self._limits = limits
        self._context: zmq.Context[Any] = context or zmq.Context.instance()
        self._clock = clock
        self._checksums: dict[ExpertKey, int] = {}
        self._sessions = Sessions()
        self._meetings = Meetings(channels, limits, clock)
        self._endpoint = ""
        self._thread: threading.Thread | None = None
        self._wake: zmq.Socket[Any] | None = None

    @property
    def endpoint(self) -> str:
        """Where targets fetch from, once started."""
        if not self._endpoint:
            raise RuntimeError("the page server has not been started")
        return self._endpoint

    def start(self) -> None:
        """Bind and serve, in a thread of its own."""
        sock = self._context.socket(zmq.ROUTER)
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a target that is gone is an error here, not bytes thrown away
        sock.setsockopt(zmq.TCP_MAXRT, round(self._limits.gone_s * 1000))
        self._endpoint = bind(sock, self._bind_host, self._socket_dir)
        address = f"inproc://page-server-{self.incarnation}"
        self._wake, theirs = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._wake.bind(address)
        theirs.connect(address)
        self._thread = threading.Thread(target=self._run, args=(sock, theirs), name="page-server", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and let go of all pages; may be called twice."""
        if self._thread is not None and self._wake is not None:
            self._wake.send(b"")
            self._thread.join()
            self._wake.close(linger=0)
            self._thread = self._wake = None

    # ------------------------------------------------------------------ the thread

    def _run(self, sock: "zmq.Socket[Any]", wake: "zmq.Socket[Any]") -> None:
        threads.yield_to_serving()
        poller = zmq.Poller()
        poller.register(sock, zmq.POLLIN)
        poller.register(wake, zmq.POLLIN)
        wait_s = self._limits.idle_s
        try:
            while wake not in (ready := dict(poller.poll(math.ceil(wait_s * 1000)))):
                if sock in ready:
                    self._take_request(sock)
                wait_s = self._send_next(sock)
                self._sessions.expire(self._clock() - self._limits.idle_s)
                self._meetings.tidy()
        finally:
            self._sessions.clear()
            self._meetings.clear()
            sock.close(linger=0)
            wake.close(linger=0)

    def _send_next(self, sock: "zmq.Socket[Any]") -> float:
        """Send one chunk, if one is wanted and the rate allows it; seconds after which to come again."""
        turn = self._sessions.next()
        if turn is None:
            return _LOOK_AT_CHANNELS_S if self._meetings else self._limits.idle_s
        target, session = turn
        wait_s = self._bucket.take(session.asked[0].length)
        if wait_s:
            self._give_signs_of_life(sock)
            return min(wait_s, self._limits.sign_of_life_s)
        began = time.perf_counter()
        self._send_chunk(sock, target, session)
        self._bucket.worked(time.perf_counter() - began)
        return 0.0

    def _send_chunk(self, sock: "zmq.Socket[Any]", target: bytes, session: Session) -> None:
        asked = session.asked.popleft()
        self._sessions.had_turn(target)
        try:
            bytes_of_it = session.page.read(asked.offset, asked.offset + asked.length)
            checksum = chunk_checksum(bytes_of_it, asked.offset)
        except Exception as error:  # noqa: BLE001  a page that cannot be read is one target's misfortune
            self._sessions.close(target)
            self._send(sock, target, _failed(error))
            return
        self.sent_bytes += asked.length
        over_channel = self._post(session, asked)
        header = transfer.Chunk(asked.number, asked.offset, asked.length, checksum, over_channel)
        self._send(sock, target, header, None if over_channel else bytes_of_it)

    def _post(self, session: Session, asked: transfer.AskChunk) -> bool:
        """Begin to send a chunk over the target's channel, if there is one that is whole."""
        page, channel = session.page.device, session.channel
        if page is None or channel is None or channel.broken:
            return False
        channel.post(lambda end: end.send(page.address + asked.offset, asked.length))
        return True

    def _give_signs_of_life(self, sock: "zmq.Socket[Any]") -> None:
        for target, _ in self._sessions.waiting(self._clock() - self._limits.sign_of_life_s):
            self._send(sock, target, transfer.Alive())

    def _send(
        self, sock: "zmq.Socket[Any]", target: bytes, reply: transfer.TransferReply, raw: memoryview | None = None
    ) -> None:
        session = self._sessions.of(target)
        if session is not None:
            session.told_at = self._clock()
        frames: list[Any] = [target, msgspec.msgpack.encode(reply)]
        try:
            sock.send_multipart(frames if raw is None else [*frames, raw], zmq.NOBLOCK, copy=self._copies(raw))
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self._sessions.close(target)  # the target is gone, or takes nothing in
            self._meetings.end(target)

    def _copies(self, raw: memoryview | None) -> bool:
        """Whether ZeroMQ is given a copy of the frames. Of what it was not, it lets go when it is sent or the target is
        cut off; over a UNIX socket nobody cuts a target off that hangs, which must not keep a page here.
        """
        return raw is None or self._endpoint.startswith(IPC)

    # ------------------------------------------------------------------ requests

    def _take_request(self, sock: "zmq.Socket[Any]") -> None:
        target, *frames = sock.recv_multipart()
        reply = self._handle(target, frames[-1] if frames else b"")
        if reply is not None:
            self._send(sock, target, reply)

    def _handle(self, target: bytes, payload: bytes) -> transfer.TransferReply | None:
        try:
            request = _decoder.decode(payload)
        except UNREADABLE as error:
            return transfer.Unavailable("invalid", f"that is not a request this server understands: {error}")
        try:
            if isinstance(request, transfer.AskPage):
                return self._offer(target, request)
            if isinstance(request, transfer.AskChunk):
                return self._queue_chunk(target, request)
            if isinstance(request, transfer.AskChannel):
                return self._meet(target, request)
            self._sessions.close(target)
            return None
        except Exception as error:  # noqa: BLE001  whatever one page does, the server gives the next
            return _failed(error)

    def _offer(self, target: bytes, request: transfer.AskPage) -> transfer.TransferReply:
        if (request.pool, request.digest) != self._identity:
            return self._of_another(request.pool, request.digest)
        channel = self._meetings.of(target) if request.channel else None
        session = self._open(target, (request.layer, request.index), channel)
        if isinstance(session, transfer.Unavailable):
            return session
        over_channel = session.channel is not None
        return transfer.Page(self.incarnation, session.page.nbytes, self._checksum(session), over_channel)

    def _meet(self, target: bytes, request: transfer.AskChannel) -> transfer.TransferReply:
        if (request.pool, request.digest) != self._identity:
            return self._of_another(request.pool, request.digest)
        if not self._meetings.meet(target, request.meeting):
            return transfer.Unavailable("no-channel", "this owner sends all bytes over the host")
        return transfer.Meeting()

    def _of_another(self, pool: str, digest: str) -> transfer.Unavailable:
        ours = f"pool {self._identity.pool} and checkpoint {self._identity.digest}"
        return transfer.Unavailable("other-pool", f"this owner serves {ours}, not {pool} and {digest}")

    def _queue_chunk(self, target: bytes, request: transfer.AskChunk) -> transfer.TransferReply | None:
        if request.incarnation != self.incarnation:
            return transfer.Unavailable("restarted", f"this is {self.incarnation}, not {request.incarnation}")
        session = self._sessions.of(target)
        if session is None or session.key != (request.layer, request.index):
            opened = self._open(target, (request.layer, request.index), None)
            if isinstance(opened, transfer.Unavailable):
                return opened
            session = opened
        if not self._acceptable(session, request):
            return transfer.Unavailable(
                "invalid",
                f"a page has {session.page.nbytes} bytes, a chunk at most {self._limits.chunk_bytes}, and a target "
                f"waits for at most {self._limits.window_bytes} at a time",
            )
        session.asked.append(request)
        session.heard_at = self._clock()
        return None

    def _acceptable(self, session: Session, request: transfer.AskChunk) -> bool:
        inside = request.offset >= 0 and request.offset + request.length <= session.page.nbytes
        short = 0 < request.length <= self._limits.chunk_bytes
        return inside and short and session.asked_bytes + request.length <= self._limits.window_bytes

    def _open(self, target: bytes, key: ExpertKey, channel: Channel | None) -> Session | transfer.Unavailable:
        page = self._read_page(key)
        if page is None:
            self._sessions.close(target)
            return transfer.Unavailable("not-held", f"expert {key} is not held here")
        place = place_of(page)
        return self._sessions.open(target, key, place, channel if place.device else None, self._clock())

    def _checksum(self, session: Session) -> int:
        sealed = self._checksum_of(session.key)
        if sealed is not None:
            return sealed
        if session.key not in self._checksums:
            self._checksums[session.key] = page_checksum(session.page.read(0, session.page.nbytes))
        return self._checksums[session.key]


def _failed(error: Exception) -> transfer.Unavailable:
    _log.warning("a page could not be given", exc_info=error)
    return transfer.Unavailable("internal", f"{type(error).__name__}: {error}")
