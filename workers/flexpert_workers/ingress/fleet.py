"""The engines, as far as this ingress can use them: who is connected, who is least busy, who waits for one.

`engines.py` tells it which engines there are, `link.py` what they say; `balancer.py` asks it for an engine for each
attempt of a stream. All of it runs on one event loop.
"""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flexpert_workers.errors import FlexpertError, Overloaded
from flexpert_workers.ingress.link import EngineLink, LinkListener
from flexpert_workers.messages.generation import (
    Cancel,
    GenerationReply,
    GenerationRequest,
    Rejected,
    Submit,
    TokenOutput,
)

log = logging.getLogger(__name__)

OVERLOAD_PAUSE_S = 0.25
RECONNECT_PAUSE_S = 0.1


class NoEngine(FlexpertError):
    """No engine came within the wait."""


@dataclass(frozen=True)
class EngineFacts:
    """What the pool controller says of an engine.

    Attributes:
        ready: Takes new requests.
        load: Requests it had, of all ingresses, when it last reported.
    """

    id: str
    endpoint: str
    ready: bool
    load: int


@dataclass(frozen=True)
class Lost:
    """The engine of an attempt is gone."""

    reason: str


Event = TokenOutput | Rejected | Lost


class Attempt:
    """One submission of a stream to one engine, and the mailbox of what came of it.

    Attributes:
        number: The ingress's own number for it, never used twice.
    """

    def __init__(self, number: int, engine: str) -> None:
        self.number = number
        self.engine = engine
        self._events: list[Event] = []
        self._arrived = asyncio.Event()

    def put(self, event: Event) -> None:
        """Add an event."""
        self._events.append(event)
        self._arrived.set()

    async def take(self) -> list[Event]:
        """Wait for at least one event; returns all that are there, in order."""
        await self._arrived.wait()
        self._arrived.clear()
        events, self._events = self._events, []
        return events


class Link(Protocol):
    """What the fleet needs of `link.EngineLink`."""

    def send(self, message: GenerationRequest) -> None:
        """Queue a message."""

    def close(self) -> None:
        """End the connection."""


Connect = Callable[[str, str, LinkListener], Link]
"""(engine id, endpoint, listener) → a link that tells the listener what becomes of it."""


@dataclass
class _Engine:
    facts: EngineFacts
    link: Link
    listed: bool = True
    up: bool = False
    draining: bool = False
    overloaded_until: float = 0.0
    attempts: dict[int, Attempt] = field(default_factory=dict)

    def rank(self) -> tuple[bool, int, int]:
        """Smaller is better: listed before forgotten, then our own load, then what it reported."""
        return (not self.listed, len(self.attempts), self.facts.load)


@dataclass(frozen=True, eq=False)
class _Waiter:
    submission: Callable[[int], Submit]
    granted: "asyncio.Future[Attempt]"


class Fleet:
    """Keeps a link to each engine and gives each attempt the least busy one, first come, first served."""

    def __init__(
        self, connect: Connect, clock: Callable[[], float], *, max_waiting: int, retry_after_s: Callable[[], float]
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._max_waiting = max_waiting
        self._retry_after_s = retry_after_s
        self._listed: dict[str, EngineFacts] = {}
        self._engines: dict[str, _Engine] = {}
        self._waiting: deque[_Waiter] = deque()
        self._numbers = itertools.count(1)
        self._closed = False

    @property
    def num_up(self) -> int:
        """Engines that are connected."""
        return sum(engine.up for engine in self._engines.values())

    @property
    def num_waiting(self) -> int:
        """Attempts that wait for an engine."""
        return len(self._waiting)

    def update(self, engines: Sequence[EngineFacts]) -> None:
        """Take in the pool controller's newest list.

        An engine that it omits is kept while connected, and used only when no listed one is: a controller that has
        just started may not know it yet.
        """
        self._listed = {facts.id: facts for facts in engines}
        for known in list(self._engines.values()):
            facts = self._listed.get(known.facts.id)
            if facts is None:
                known.listed = False
                if not known.up:
                    self._drop(known, "the pool controller no longer lists it")
            elif facts.endpoint != known.facts.endpoint:
                self._drop(known, "it moved to another address")
            else:
                known.facts, known.listed = facts, True
        for id_ in self._listed:
            self._connect_listed(id_)
        self._grant()

    async def submit(self, submission: Callable[[int], Submit], *, wait_s: float, resumed: bool) -> Attempt:
        """Send a stream to the least busy engine, once there is one.

        Args:
            submission: Makes the message for an attempt's number.
            wait_s: How long to wait for an engine at most.
            resumed: Whether the stream had an engine before: then it goes to the head of the queue, and always fits.

        Raises:
            Overloaded: The queue is full, or every engine stayed overloaded.
            NoEngine: No engine was connected within the wait.
        """
        waiter = _Waiter(submission, asyncio.get_running_loop().create_future())
        if resumed:
            self._waiting.appendleft(waiter)
        else:
            self._waiting.append(waiter)
        self._grant()
        if not resumed and not waiter.granted.done() and len(self._waiting) > self._max_waiting:
            self._waiting.remove(waiter)
            raise Overloaded(f"{self._max_waiting} requests wait for an engine", self._retry_after_s())
        return await self._wait(waiter, wait_s)

    def end(self, attempt: Attempt) -> None:
        """Forget an attempt; if it still runs, its engine is told, so that it frees the request's pages at once."""
        engine = self._engines.get(attempt.engine)
        if engine is not None and engine.attempts.pop(attempt.number, None) is not None:
            engine.link.send(Cancel(attempt.number))
            self._grant()

    def close(self) -> None:
        """End all links."""
        self._closed = True
        for engine in list(self._engines.values()):
            self._drop(engine, "the ingress stops")

    def link_up(self, link: EngineLink) -> None:
        """See `link.LinkListener`."""
        if engine := self._of(link):
            log.info("engine %s connected", link.engine)
            engine.up = True
            self._grant()

    def link_lost(self, link: EngineLink, reason: str) -> None:
        """See `link.LinkListener`."""
        engine = self._of(link)
        if engine is None:
            return
        log.warning("engine %s lost with %d requests: %s", link.engine, len(engine.attempts), reason)
        self._drop(engine, reason)
        asyncio.get_running_loop().call_later(RECONNECT_PAUSE_S, self._connect_listed, link.engine)

    def link_replies(self, link: EngineLink, replies: list[GenerationReply]) -> None:
        """See `link.LinkListener`. Replies to attempts that have ended are dropped."""
        engine = self._of(link)
        if engine is None:
            return
        for reply in replies:
            if isinstance(reply, TokenOutput | Rejected) and (attempt := engine.attempts.get(reply.request)):
                attempt.put(reply)
                self._note(engine, reply)
        self._grant()

    def _note(self, engine: _Engine, reply: TokenOutput | Rejected) -> None:
        """What a reply tells about the engine: an attempt less, or no room for more."""
        if isinstance(reply, TokenOutput) and reply.finish is None:
            return
        del engine.attempts[reply.request]
        engine.overloaded_until = 0.0
        if isinstance(reply, Rejected) and reply.kind == "draining":
            engine.draining = True
        if isinstance(reply, Rejected) and reply.kind == "overloaded":
            engine.overloaded_until = self._clock() + OVERLOAD_PAUSE_S
            asyncio.get_running_loop().call_later(OVERLOAD_PAUSE_S * 1.05, self._grant)

    def _of(self, link: EngineLink) -> _Engine | None:
        engine = self._engines.get(link.engine)
        return engine if engine is not None and engine.link is link else None

    def _connect_listed(self, id_: str) -> None:
        """Make a link to an engine, if it is listed and has none."""
        facts = self._listed.get(id_)
        if facts is not None and id_ not in self._engines and not self._closed:
            self._engines[id_] = _Engine(facts, self._connect(id_, facts.endpoint, self))

    def _drop(self, engine: _Engine, reason: str) -> None:
        engine.link.close()
        del self._engines[engine.facts.id]
        for attempt in engine.attempts.values():
            attempt.put(Lost(reason))

    def _choose(self) -> _Engine | None:
        now = self._clock()
        usable = [
            engine
            for engine in self._engines.values()
            if engine.up and engine.facts.ready and not engine.draining and engine.overloaded_until <= now
        ]
        return min(usable, key=_Engine.rank, default=None)

    def _grant(self) -> None:
        while self._waiting and (engine := self._choose()):
            waiter = self._waiting.popleft()
            attempt = Attempt(next(self._numbers), engine.facts.id)
            engine.attempts[attempt.number] = attempt
            engine.link.send(waiter.submission(attempt.number))
            waiter.granted.set_result(attempt)

    async def _wait(self, waiter: _Waiter, wait_s: float) -> Attempt:
        try:
            async with asyncio.timeout(wait_s):
                return await waiter.granted
        except TimeoutError:
            self._give_up(waiter)
            if self.num_up:
                raise Overloaded(f"no engine had room for {wait_s:.1f} s", self._retry_after_s()) from None
            raise NoEngine(f"no engine came within {wait_s:.1f} s") from None
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise

    def _give_up(self, waiter: _Waiter) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        elif waiter.granted.done() and not waiter.granted.cancelled():
            self.end(waiter.granted.result())
