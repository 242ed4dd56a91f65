"""Traces of routing: engines are ordered over their leases to record, and what they send is handed to who asked.

`service` begins a recording for `RecordTrace`, brings it the chunks of `SendTrace`, and ends it. Nothing is kept beyond
a few chunks: an engine that sends faster than they are taken waits, and leaves tokens out rather than slow down.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable

from flexpert_proto.pool_pb2 import TraceChunk
from flexpert_workers.pool.exceptions import InvalidRecording, RecordingRunning, UnknownName
from flexpert_workers.pool.leases import EngineRegistry, RecordingOrder

MOST_TOKENS = 50_000_000
MOST_SECONDS = 24 * 3600.0
_MOST_CHUNKS = 8


class Recording:
    """One recording: engines' chunks in, and out in the order of their coming."""

    def __init__(self, order: RecordingOrder, deadline: float, clock: Callable[[], float]) -> None:
        self.order = order
        self._deadline = deadline
        self._clock = clock
        self._chunks: asyncio.Queue[TraceChunk] = asyncio.Queue(_MOST_CHUNKS)
        self.ended = asyncio.Event()

    async def put(self, chunk: TraceChunk) -> None:
        """Hand a chunk over, or find that the recording has ended meanwhile."""
        putting = asyncio.ensure_future(self._chunks.put(chunk))
        ending = asyncio.ensure_future(self.ended.wait())
        try:
            await asyncio.wait((putting, ending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            putting.cancel()
            ending.cancel()

    async def chunks(self) -> AsyncIterator[TraceChunk]:
        """What engines send, until there are as many tokens as were asked for, or the time is up."""
        missing = self.order.tokens
        while missing > 0 and (left_s := self._deadline - self._clock()) > 0:
            try:
                chunk = await asyncio.wait_for(self._chunks.get(), left_s)
            except TimeoutError:
                return
            missing -= sum(chunk.lengths)
            yield chunk


class Recordings:
    """At most one recording at a time, of all engines together."""

    def __init__(self, engines: EngineRegistry, clock: Callable[[], float]) -> None:
        self._engines = engines
        self._clock = clock
        self._current: Recording | None = None

    def begin(self, tokens: int, seconds: float) -> Recording:
        """Order every engine to record, those too that attach later.

        Raises:
            InvalidRecording: So many tokens or seconds cannot be asked for.
            RecordingRunning: Somebody else records.
        """
        if not 0 < tokens <= MOST_TOKENS or not 0 < seconds <= MOST_SECONDS:
            raise InvalidRecording(
                f"a recording has 1 to {MOST_TOKENS} tokens and takes up to {MOST_SECONDS:.0f} seconds"
            )
        if self._current is not None:
            raise RecordingRunning("somebody else records this pool: try again when they have ended")
        order = RecordingOrder(secrets.token_hex(8), tokens, seconds)
        self._current = Recording(order, self._clock() + seconds, self._clock)
        self._engines.record(order)
        return self._current

    def end(self, recording: Recording) -> None:
        """Have engines record no more."""
        recording.ended.set()
        if self._current is recording:
            self._current = None
            self._engines.record(None)

    async def take(self, chunk: TraceChunk) -> None:
        """Hand an engine's chunk to who asked; waits while they have enough.

        Raises:
            UnknownName: Its recording has ended.
        """
        if self._current is None or self._current.order.id != chunk.recording:
            raise UnknownName(f"recording {chunk.recording} has ended")
        await self._current.put(chunk)
