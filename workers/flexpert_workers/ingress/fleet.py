"""The engines, as far as this ingress can use them: who is connected, which is best for a prompt, who waits for one.

`engines.py` tells it which engines there are, `link.py` what they say; `balancer.py` asks it for an engine for each
attempt of a stream. An engine is sent a few requests ahead of those it computes (`Member.has_room`): the others wait
here, where clients get equal shares (`fairness.py`). All of it runs on one event loop.
"""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flexpert_workers.errors import FlexpertError, Overloaded
from flexpert_workers.ingress.fairness import OUTPUT_COST, PROMPT_COST, FairQueue
from flexpert_workers.ingress.link import EngineLink, LinkListener
from flexpert_workers.ingress.member import Attempt, EngineFacts, Link, Lost, Member
from flexpert_workers.ingress.pace import Pace, bounded
from flexpert_workers.ingress.prefixes import Prompt, prompt_of
from flexpert_workers.messages.generation import (
    Cancel,
    GenerationReply,
    Rejected,
    Submit,
    TokenOutput,
)

log = logging.getLogger(__name__)

OVERLOAD_PAUSE_S = 0.25
RECONNECT_PAUSE_S = 0.1


class NoEngine(FlexpertError):
    """No engine came within the wait."""


Connect = Callable[[str, str, LinkListener], Link]
"""(engine id, endpoint, listener) → a link that tells the listener what becomes of it."""


@dataclass(frozen=True, eq=False)
class _Waiter:
    submission: Callable[[int], Submit]
    client: str
    prompt: Prompt
    granted: "asyncio.Future[Attempt]"


class Fleet:
    """Keeps a link to each engine and gives each attempt the best one, each client its share."""

    def __init__(self, connect: Connect, clock: Callable[[], float], *, max_waiting: int) -> None:
        self._connect = connect
        self._clock = clock
        self._max_waiting = max_waiting
        self._pace = Pace(clock)
        self._listed: dict[str, EngineFacts] = {}
        self._engines: dict[str, Member] = {}
        self._resumed: deque[_Waiter] = deque()
        self._waiting: FairQueue[_Waiter] = FairQueue()
        self._numbers = itertools.count(1)
        self._closed = False

    @property
    def num_up(self) -> int:
        """Engines that are connected."""
        return sum(engine.up for engine in self._engines.values())

    @property
    def num_waiting(self) -> int:
        """Attempts that wait for an engine."""
        return len(self._resumed) + len(self._waiting)

    @property
    def waiting_tokens(self) -> int:
        """What engines will have to compute for these."""
        return sum(waiter.prompt.num_tokens for waiter in itertools.chain(self._resumed, self._waiting))

    def wait_s(self) -> float | None:
        """Seconds that a request that comes now is predicted to wait; None where nothing is known."""
        return self._pace.wait_s(self.num_waiting)

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

    async def submit(
        self,
        submission: Callable[[int], Submit],
        *,
        wait_s: float,
        resumed: bool,
        client: str = "",
        tokens: Sequence[int] = (),
    ) -> Attempt:
        """Send a stream to the best engine, once there is one with room and the client's turn has come.

        Args:
            submission: Makes the message for an attempt's number.
            wait_s: How long to wait for an engine at most.
            resumed: Whether the stream had an engine before: then it goes to the head of the queue, and always fits.
            client: Whose share of the engines it uses.
            tokens: What the engine has to compute: the prompt, and the tokens so far.

        Raises:
            Overloaded: The queue is full, or it is predicted to take longer than `wait_s`, or it took longer.
            NoEngine: No engine was connected within the wait.
        """
        waiter = _Waiter(submission, client, prompt_of(tokens), asyncio.get_running_loop().create_future())
        if resumed:
            self._resumed.appendleft(waiter)
        else:
            self._waiting.push(client, waiter)
        self._grant()
        if not resumed and not waiter.granted.done():
            self._check_wait(waiter, wait_s)
        return await self._wait(waiter, wait_s)

    def _check_wait(self, waiter: _Waiter, wait_s: float) -> None:
        """Refuse at once what would be refused later."""
        predicted_s = self._pace.wait_s(self.num_waiting - 1)
        problem = None
        if self.num_waiting > self._max_waiting:
            problem = f"{self._max_waiting} requests wait for an engine"
        elif self.num_up and predicted_s is not None and predicted_s > wait_s:
            problem = f"an engine is expected to have room in {predicted_s:.1f} s, the request may wait {wait_s:.1f} s"
        if problem is not None:
            self._waiting.discard(waiter.client, waiter)
            raise Overloaded(problem, bounded(predicted_s))

    def end(self, attempt: Attempt) -> None:
        """Forget an attempt; if it still runs, its engine is told, so that it frees the request's pages at once."""
        engine = self._engines.get(attempt.engine)
        if engine is not None and engine.end(attempt.number) is not None:
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

    def _note(self, engine: Member, reply: TokenOutput | Rejected) -> None:
        """What a reply tells: tokens to charge, an attempt less, or no room for more."""
        if isinstance(reply, TokenOutput):
            self._charge(engine, engine.attempts[reply.request], reply)
            if reply.finish is None:
                return
        engine.end(reply.request)
        engine.overloaded_until = 0.0
        if isinstance(reply, Rejected) and reply.kind == "draining":
            engine.draining = True
        if isinstance(reply, Rejected) and reply.kind == "overloaded":
            engine.overloaded_until = self._clock() + OVERLOAD_PAUSE_S
            asyncio.get_running_loop().call_later(OVERLOAD_PAUSE_S * 1.05, self._grant)

    def _charge(self, engine: Member, attempt: Attempt, output: TokenOutput) -> None:
        cost = OUTPUT_COST * len(output.token_ids)
        if not attempt.started:
            engine.note_start(attempt)
            cost -= PROMPT_COST * output.cached_tokens
        self._waiting.charge(attempt.client, cost)

    def _of(self, link: EngineLink) -> Member | None:
        engine = self._engines.get(link.engine)
        return engine if engine is not None and engine.link is link else None

    def _connect_listed(self, id_: str) -> None:
        """Make a link to an engine, if it is listed and has none."""
        facts = self._listed.get(id_)
        if facts is not None and id_ not in self._engines and not self._closed:
            self._engines[id_] = Member(facts, self._connect(id_, facts.endpoint, self))

    def _drop(self, engine: Member, reason: str) -> None:
        engine.link.close()
        del self._engines[engine.facts.id]
        for attempt in engine.attempts.values():
            attempt.put(Lost(reason))

    def _choose(self, prompt: Prompt) -> Member | None:
        now = self._clock()
        usable = [
            engine
            for engine in self._engines.values()
            if engine.up and engine.facts.ready and not engine.draining and engine.overloaded_until <= now
            if engine.has_room(prompt.num_tokens)
        ]
        return min(usable, key=lambda engine: engine.rank(prompt), default=None)

    def _grant(self) -> None:
        while self._resumed or self._waiting:
            waiter = self._resumed[0] if self._resumed else self._waiting.head()
            engine = self._choose(waiter.prompt)
            if engine is None:
                return
            if self._resumed:
                self._resumed.popleft()
            else:
                self._waiting.pop()
            self._pace.granted(self.num_waiting)
            self._send(engine, waiter)

    def _send(self, engine: Member, waiter: _Waiter) -> None:
        attempt = Attempt(next(self._numbers), engine.facts.id, waiter.client, waiter.prompt.num_tokens)
        engine.begin(attempt)
        engine.prefixes.note(waiter.prompt, engine.facts.cache_tokens)
        self._waiting.charge(waiter.client, PROMPT_COST * waiter.prompt.num_tokens)
        engine.link.send(waiter.submission(attempt.number))
        waiter.granted.set_result(attempt)

    async def _wait(self, waiter: _Waiter, wait_s: float) -> Attempt:
        if waiter.granted.done():
            return waiter.granted.result()
        try:
            async with asyncio.timeout(wait_s):
                return await waiter.granted
        except TimeoutError:
            self._give_up(waiter)
            if self.num_up:
                raise Overloaded(f"no engine had room for {wait_s:.1f} s", bounded(self.wait_s())) from None
            raise NoEngine(f"no engine came within {wait_s:.1f} s") from None
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise

    def _give_up(self, waiter: _Waiter) -> None:
        if waiter in self._resumed:
            self._resumed.remove(waiter)
        elif self._waiting.discard(waiter.client, waiter):
            self._grant()
        elif waiter.granted.done() and not waiter.granted.cancelled():
            self.end(waiter.granted.result())
