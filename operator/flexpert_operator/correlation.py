"""Which Events are told, and which are counted in one that was told already. Pure; `events` acts on it.

What client-go's correlator does: the same Event about the same object within a window raises a count; many Events that
differ in their message alone are told as one; an object that has a great deal to say is heard at a limited rate.
"""

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from flexpert_operator.decide.observation import Event

WINDOW_S = 600.0
"""Time since an Event was told last in which the same one is counted in it; the API server keeps Events for an hour."""

MOST_ALIKE = 10
"""Messages of one reason and object in a window, beyond which they are told as one."""

BURST = 50
REFILL_PER_S = 0.1
"""Events of an object that are told at once, and how many a second come on top."""

MOST_KNOWN = 4096
"""Of Events, of reasons and of objects each; those that were not heard of for longest are forgotten."""

COMBINED = "(combined from similar events): "
MAX_MESSAGE = 1024


K = TypeVar("K")
V = TypeVar("V")


class Reference(NamedTuple):
    """The object that an Event is about."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


class Subject(NamedTuple):
    """What makes two Events be alike."""

    about: Reference
    warning: bool
    reason: str


@dataclass(frozen=True)
class Told:
    """An Event as it should stand in the API.

    Attributes:
        name: Of the Event object.
        count: How often it was told; with 1 it is to be made, else it is there already.
        first_at: Seconds since the Unix epoch.
        last_at: The same.
    """

    about: Reference
    name: str
    reason: str
    message: str
    warning: bool
    count: int
    first_at: float
    last_at: float


@dataclass(frozen=True)
class Tokens:
    """What an object may still say; `at` is when that was worked out."""

    left: float
    at: float


@dataclass
class Correlator:
    """What was told lately. Not safe to use from several threads."""

    told: OrderedDict[tuple[Subject, str], Told] = field(default_factory=OrderedDict)
    alike: OrderedDict[Subject, dict[str, float]] = field(default_factory=OrderedDict)
    tokens: OrderedDict[Reference, Tokens] = field(default_factory=OrderedDict)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def note(self, about: Reference, event: Event, now: float) -> Told | None:
        """What is to be done for an Event; None where its object has said too much."""
        if not self._may_speak(about, now):
            return None
        subject = Subject(about, event.warning, event.reason)
        message = self._message(subject, event.message, now)
        key = (subject, message)
        before = self.told.get(key)
        if before is not None and now - before.last_at < WINDOW_S:
            text = f"{COMBINED}{event.message}"[:MAX_MESSAGE] if message == COMBINED else before.message
            told = replace(before, message=text, count=before.count + 1, last_at=now)
        else:
            text = f"{message if message == COMBINED else ''}{event.message}"[:MAX_MESSAGE]
            name = f"{about.name}.{round(now * 1e6):x}.{next(self.numbers):x}"
            told = Told(about, name, event.reason, text, event.warning, 1, now, now)
        keep(self.told, key, told)
        return told

    def _may_speak(self, about: Reference, now: float) -> bool:
        before = self.tokens.get(about, Tokens(BURST, now))
        left = min(before.left + (now - before.at) * REFILL_PER_S, BURST)
        keep(self.tokens, about, Tokens(left - 1 if left >= 1 else left, now))
        return left >= 1

    def _message(self, subject: Subject, message: str, now: float) -> str:
        """The message, or that it is one of many."""
        known = {text: at for text, at in self.alike.get(subject, {}).items() if now - at < WINDOW_S}
        if message not in known and len(known) >= MOST_ALIKE:
            keep(self.alike, subject, known)
            return COMBINED
        keep(self.alike, subject, known | {message: now})
        return message


def keep(known: OrderedDict[K, V], key: K, value: V) -> None:
    """Put a value in as the newest, and let the oldest go where there are too many."""
    known[key] = value
    known.move_to_end(key)
    if len(known) > MOST_KNOWN:
        known.popitem(last=False)
