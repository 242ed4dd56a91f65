"""The life of one page's copy at the target: open, ask, receive, verify, and begin again where the connection broke."""

import time
from collections.abc import Callable

from flexpert_workers.errors import (
    CorruptPage,
    IdentityMismatch,
    PageNotHeld,
    SourceLost,
    TransferCancelled,
    TransferError,
)
from flexpert_workers.messages import transfer
from flexpert_workers.transfer.bucket import TokenBucket
from flexpert_workers.transfer.channel import Channel, ChannelBroken, ChannelTransport
from flexpert_workers.transfer.checksum import RunningChecksum, chunk_checksum
from flexpert_workers.transfer.contract import ExpertKey, FetchLimits, Identity, Received
from flexpert_workers.transfer.link import Link, LinkBroken, LinkRefused
from flexpert_workers.transfer.places import Place
from flexpert_workers.transfer.ranges import Missing

_BEAT_S = 0.1
_PAUSE_S = 0.05
_REFUSALS: dict[str, type[TransferError]] = {"not-held": PageNotHeld, "other-pool": IdentityMismatch}


class Fetch:
    """Copies one page over a link; `run` is called once, by the thread that holds the link's lock."""

    def __init__(
        self,
        link: Link,
        identity: Identity,
        key: ExpertKey,
        into: Place,
        bucket: TokenBucket,
        channels: ChannelTransport | None,
        limits: FetchLimits,
        clock: Callable[[], float],
    ) -> None:
        self._link = link
        self._identity = identity
        self._key = key
        self._into = into
        self._bucket = bucket
        self._channels = channels
        self._limits = limits
        self._clock = clock
        self._missing = Missing([(0, into.nbytes)] if into.nbytes else [])
        self._running = RunningChecksum()
        self._checksum: int | None = None
        self._incarnation = ""
        self._damaged = 0
        self._progress_at = clock()
        self._heard_at = self._progress_at
        self._expecting = True
        self._cancelled: Callable[[], bool] = lambda: False

    def run(self, received: Received | None, cancelled: Callable[[], bool]) -> int:
        """Copy the page and return its checksum; raises as `PageFetcher.fetch` says."""
        self._cancelled = cancelled
        if received is not None:
            self._go_on_from(received)
        try:
            checksum = self._until_complete()
            self._link.send(transfer.Leave())
        except LinkBroken:  # only `Leave` was lost
            self._link.reset()
        except BaseException:
            self._link.reset()
            raise
        return checksum

    def _until_complete(self) -> int:
        while True:
            try:
                self._meet()
                self._open()
                self._receive_all()
                return self._verify()
            except LinkBroken as broken:
                self._link.reset()
                self._missing.all_lost()
                self._pause_or_give_up(broken)

    # ------------------------------------------------------------------ the steps

    def _meet(self) -> None:
        """Make a channel between the devices, where the page is on one; without it the bytes go over the host."""
        link, channels = self._link, self._channels
        if channels is None or self._into.device is None or link.channel is not None or not link.may_meet:
            return
        link.may_meet = False  # until the channel has shown that it works
        self._heard_at = self._clock()
        self._expecting = True
        meeting = channels.new_meeting()
        link.send(transfer.AskChannel(*self._identity, meeting))
        if not isinstance(self._reply(), transfer.Meeting):
            return
        link.channel = Channel(lambda: channels.communicator(meeting, rank=1), self._limits.meeting_s)
        try:
            link.channel.wait_until_warm(self._limits.meeting_s)
        except ChannelBroken as broken:
            raise LinkBroken(str(broken)) from broken
        finally:
            self._progress_at = self._clock()
        link.may_meet = True

    def _open(self) -> None:
        """Ask what the page is; it must be the page of which bytes have arrived already."""
        self._heard_at = self._clock()
        self._expecting = True
        has_channel = self._link.channel is not None and self._into.device is not None
        self._link.send(transfer.AskPage(*self._identity, *self._key, channel=has_channel))
        page = self._reply()
        if not isinstance(page, transfer.Page):
            raise LinkBroken(f"{self._link.endpoint} answers {type(page).__name__} to a question for a page")
        if page.total != self._into.nbytes:
            raise CorruptPage(f"{self._what} has {page.total} bytes there, and there is room for {self._into.nbytes}")
        if self._checksum not in (None, page.checksum):
            raise CorruptPage(f"{self._what} has another checksum than what has arrived of it belongs to")
        self._checksum = page.checksum
        self._incarnation = page.incarnation

    def _receive_all(self) -> None:
        while self._missing.outstanding():
            wait_s = self._ask()
            self._expecting = self._missing.asked_bytes > 0
            before = self._heard_at
            reply = self._reply(wait_s)
            if isinstance(reply, transfer.Chunk):
                began = time.perf_counter()
                self._receive_chunk(reply)
                self._bucket.worked(time.perf_counter() - began)
                self._link.chunk_bytes = self._suitable_length(reply.length, self._heard_at - before)

    def _ask(self) -> float:
        """Ask for chunks until the window is full; seconds after which the bucket lets the next one through."""
        while length := self._missing.next_length(self._link.chunk_bytes):
            if self._missing.asked_bytes and self._missing.asked_bytes + length > self._limits.window_bytes:
                break
            if wait_s := self._bucket.take(length):
                return wait_s
            number, (start, end) = self._missing.ask(length)
            self._link.send(transfer.AskChunk(self._incarnation, number, *self._key, start, end - start))
        return _BEAT_S

    def _receive_chunk(self, chunk: transfer.Chunk) -> None:
        wanted = self._missing.asked(chunk.number)
        if wanted is None or wanted != (chunk.offset, chunk.offset + chunk.length):
            raise LinkBroken(f"{self._link.endpoint} sent a chunk that was not asked for")
        if not self._bring(chunk) or chunk_checksum(self._into.read(*wanted), chunk.offset) != chunk.checksum:
            self._forgive_damage(chunk.number)
            return
        self._missing.arrived(chunk.number)
        self._running.advance(self._into.read, self._missing.arrived_up_to(self._into.nbytes))
        self._progress_at = self._clock()

    def _bring(self, chunk: transfer.Chunk) -> bool:
        """Put a chunk's bytes into their place; whether there were as many as there should be."""
        if not chunk.channel:
            return self._into.fill(chunk.offset, chunk.offset + chunk.length, self._link.receive_into)
        channel, device = self._link.channel, self._into.device
        if channel is None or device is None:
            raise LinkBroken(f"{self._link.endpoint} sent a chunk over a channel that there is not")
        address = device.address + chunk.offset
        try:
            channel.call(lambda end: end.receive(address, chunk.length), self._limits.silence_s)
        except ChannelBroken as broken:
            self._link.may_meet = False
            raise LinkBroken(str(broken)) from broken
        return True

    def _verify(self) -> int:
        if self._running.value() != self._checksum:
            raise CorruptPage(f"{self._what} arrived with a checksum that is not its own")
        return self._checksum

    # ------------------------------------------------------------------ waiting, and what goes wrong

    def _reply(self, longest_s: float | None = None) -> transfer.TransferReply | None:
        """The next reply that says something; None once `longest_s` is over (None: when silence is too long)."""
        until = None if longest_s is None else self._clock() + longest_s
        while True:
            if self._cancelled():
                raise TransferCancelled(f"the copy of {self._what} was cancelled", self._received())
            reply = self._link.receive(_BEAT_S if longest_s is None else min(longest_s, _BEAT_S))
            if reply is None:
                self._raise_if_silent()
            else:
                self._heard_at = self._clock()
                self._link.absent_since = None
            if isinstance(reply, transfer.Unavailable) and reply.kind != "no-channel":
                self._refused(reply)
            if reply is not None and not isinstance(reply, transfer.Alive):
                return reply
            if until is not None and self._clock() >= until:
                return None

    def _refused(self, reply: transfer.Unavailable) -> None:
        if reply.kind == "restarted":
            raise LinkBroken(reply.reason)
        kind = _REFUSALS.get(reply.kind, SourceLost)
        raise kind(f"{self._link.endpoint} does not give {self._what}: {reply.reason}", self._received())

    def _raise_if_silent(self) -> None:
        if not self._expecting:  # it is our own bucket that is waited for
            self._heard_at = self._progress_at = self._clock()
        if self._clock() - self._heard_at > self._limits.silence_s:
            self._link.chunk_bytes = max(self._limits.least_chunk_bytes, self._link.chunk_bytes // 4)
            raise LinkBroken(f"{self._link.endpoint} was silent for {self._limits.silence_s:g} s")
        if self._clock() - self._progress_at > self._limits.patience_s:
            raise LinkBroken(f"{self._link.endpoint} sent no chunk for {self._limits.patience_s:g} s")

    def _suitable_length(self, length: int, took_s: float) -> int:
        """Bytes of the next chunks: several fit into the longest silence that does not yet mean that a source hangs."""
        fitting = length * self._limits.silence_s / 4 / max(took_s, 1e-6)
        longest = min(self._limits.chunk_bytes, 2 * self._link.chunk_bytes)
        return max(self._limits.least_chunk_bytes, min(longest, int(fitting)))

    def _forgive_damage(self, number: int) -> None:
        self._missing.lost(number)
        self._damaged += 1
        if self._damaged > self._limits.retries:
            raise CorruptPage(
                f"{self._damaged} chunks of {self._what} arrived damaged from {self._link.endpoint}", self._received()
            )

    def _pause_or_give_up(self, broken: LinkBroken) -> None:
        late = self._clock() - self._progress_at > self._limits.patience_s
        if late or self._is_absent(broken):
            raise SourceLost(f"{self._what} could not be copied: {broken}", self._received()) from broken
        if self._cancelled():
            raise TransferCancelled(f"the copy of {self._what} was cancelled", self._received()) from broken
        time.sleep(_PAUSE_S)

    def _is_absent(self, broken: LinkBroken) -> bool:
        """Whether nobody has listened for so long that the source does not come back; the next page need not wait."""
        if not isinstance(broken, LinkRefused):
            return False
        now = self._clock()
        self._link.absent_since = now if self._link.absent_since is None else self._link.absent_since
        return now - self._link.absent_since > self._limits.absent_s

    def _go_on_from(self, received: Received) -> None:
        if received.total != self._into.nbytes:
            raise ValueError(f"{received.total} bytes of {self._what} were received into {self._into.nbytes} bytes")
        self._checksum = received.checksum
        self._missing = Missing(received.missing)

    def _received(self) -> Received | None:
        if self._checksum is None:
            return None
        return Received(self._into.nbytes, self._checksum, self._missing.outstanding())

    @property
    def _what(self) -> str:
        return f"the page of expert {self._key}"
