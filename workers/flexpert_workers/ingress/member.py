"""One engine as an ingress sees it, and the attempts at it. Plain state, changed by `fleet.py` alone."""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from flexpert_workers.ingress.prefixes import PrefixIndex, Prompt
from flexpert_workers.messages.generation import GenerationRequest, Rejected, TokenOutput

LEAST_AHEAD, MOST_AHEAD = 4, 64
"""Requests without a first token yet that an engine has from here: so many in any case, and so many at most …"""
TOKENS_AHEAD = 4096
"""… while their prompts have no more tokens than this together."""
STREAM_TOKENS = 64
"""What one more open stream counts against an engine, in prompt tokens that a cached prefix saves."""


@dataclass(frozen=True)
class EngineFacts:
    """What the pool controller says of an engine.

    Attributes:
        ready: Takes new requests.
        load: Requests it had, of all ingresses, when it last reported.
        cache_tokens: Tokens that its KV cache holds; None where that is not known.
    """

    id: str
    endpoint: str
    ready: bool
    load: int
    cache_tokens: int | None = None


@dataclass(frozen=True)
class Lost:
    """The engine of an attempt is gone."""

    reason: str


Event = TokenOutput | Rejected | Lost


class Attempt:
    """One submission of a stream to one engine, and the mailbox of what came of it.

    Attributes:
        number: The ingress's own number for it, never used twice.
        client: Whom its tokens are charged to.
        prompt_tokens: Tokens that the engine was sent.
        started: Whether a token has come.
    """

    def __init__(self, number: int, engine: str, client: str, prompt_tokens: int) -> None:
        self.number = number
        self.engine = engine
        self.client = client
        self.prompt_tokens = prompt_tokens
        self.started = False
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


@dataclass
class Member:
    """An engine that there is a link to, and the attempts at it.

    Attributes:
        num_ahead: Attempts without a first token yet; `tokens_ahead` of their prompts.
    """

    facts: EngineFacts
    link: Link
    listed: bool = True
    up: bool = False
    draining: bool = False
    overloaded_until: float = 0.0
    attempts: dict[int, Attempt] = field(default_factory=dict)
    prefixes: PrefixIndex = field(default_factory=PrefixIndex)
    num_ahead: int = 0
    tokens_ahead: int = 0

    def has_room(self, prompt_tokens: int) -> bool:
        """Whether it may be sent one more: enough to fill its next passes, and the rest waits where it is fair."""
        fits = self.num_ahead < MOST_AHEAD and self.tokens_ahead + prompt_tokens <= TOKENS_AHEAD
        return fits or self.num_ahead < LEAST_AHEAD

    def rank(self, prompt: Prompt) -> tuple[bool, int, int]:
        """Smaller is better: listed before forgotten, then our own load less what its cache saves, then its report.

        So the engine that holds a prompt's beginning is worth it until it has that many more streams or prompt tokens.
        """
        work = self.tokens_ahead + STREAM_TOKENS * len(self.attempts)
        return (not self.listed, work - self.prefixes.match_tokens(prompt), self.facts.load)

    def begin(self, attempt: Attempt) -> None:
        """An attempt is sent."""
        self.attempts[attempt.number] = attempt
        self.num_ahead += 1
        self.tokens_ahead += attempt.prompt_tokens

    def note_start(self, attempt: Attempt) -> None:
        """An attempt's first token came, or it ends: it is no longer ahead of what the engine computes."""
        if not attempt.started:
            attempt.started = True
            self.num_ahead -= 1
            self.tokens_ahead -= attempt.prompt_tokens

    def end(self, number: int) -> Attempt | None:
        """An attempt has ended."""
        attempt = self.attempts.pop(number, None)
        if attempt is not None:
            self.note_start(attempt)
        return attempt
