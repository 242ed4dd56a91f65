"""Who may come in: bearer tokens from a file, what each may do, and how much of it. `guard.py` asks for every request.

    {"tokens": [
      {"name": "alice", "token": "…", "requestsPerSecond": 10, "burst": 20, "tokensPerMinute": 60000},
      {"name": "dashboard", "sha256": "…", "access": "Read", "expires": "2027-01-01T00:00:00Z"}
    ]}

The file is read again whenever it has changed. Where it cannot be read the tokens of before stay.
"""

import datetime
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec

from flexpert_proto.reloading import Reloaded
from flexpert_workers.errors import FlexpertError, Overloaded

SHORTEST_TOKEN = 16
"""Characters: a token is drawn by a machine, and must not be guessed."""
_LONGEST_PRESENTED = 4096
_SCHEME = "bearer "

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")]
Rate = Annotated[float, msgspec.Meta(gt=0)]


class Unauthenticated(FlexpertError):
    """The request has no token, or one that is not known (any more)."""


class PermissionDenied(FlexpertError):
    """The token is known, and not for this."""


class Access(StrEnum):
    """What a token is for."""

    GENERATE = "Generate"
    READ = "Read"
    """Everything that generates no text: models, metadata, tokenizing, reflection."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """One token of the file.

    Attributes:
        name: What logs and shares of the engines know it by.
        token: The token itself, or
        sha256: its SHA-256 in hexadecimal digits, so that the file gives nothing away.
        access: What it is for.
        expires: When it ends, with a time zone.
        requests_per_second: Requests of any kind; None for no limit.
        burst: Requests that may come at once; as many as come in a second, and one at least, if it is left out.
        tokens_per_minute: Tokens of prompts and outputs together; None for no limit.
    """

    name: Name
    token: str = ""
    sha256: str = ""
    access: Access = Access.GENERATE
    expires: datetime.datetime | None = None
    requests_per_second: Rate | None = None
    burst: Annotated[int, msgspec.Meta(ge=1)] | None = None
    tokens_per_minute: Annotated[int, msgspec.Meta(ge=1)] | None = None


class TokenFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    tokens: list[Entry]


@dataclass(frozen=True)
class Known:
    """An entry and the digest by which its token is found."""

    digest: bytes
    entry: Entry


class Tokens:
    """The tokens of a file, and what has been used of each.

    Args:
        path: The file.
        clock: Seconds, monotonic.
        now: The time of day.

    Raises:
        ValueError: The file cannot be used; the message says why.
    """

    def __init__(self, path: Path, clock: Callable[[], float], now: Callable[[], datetime.datetime]) -> None:
        self._known = Reloaded((path,), lambda: read_tokens(path))
        self._clock = clock
        self._now = now
        self._meters: dict[str, Meter] = {}

    def admit(self, authorization: str | None, *, generates: bool) -> str:
        """The name of the token that a request brings; counts the request.

        Args:
            authorization: The header, if there is one.
            generates: Whether the request asks for text.

        Raises:
            Unauthenticated: There is no token, or it is not known, or has expired.
            PermissionDenied: It is not for this.
            Overloaded: It has been used too much.
        """
        entry = self._find(_presented(authorization))
        if generates and entry.access is not Access.GENERATE:
            raise PermissionDenied(f"token {entry.name!r} is for {entry.access} alone")
        self._meter(entry).count(self._clock())
        return entry.name

    def spend(self, name: str, num_tokens: int) -> None:
        """Count tokens of prompts and outputs."""
        meter = self._meters.get(name)
        if meter is not None:
            meter.spend(num_tokens, self._clock())

    def _find(self, presented: str) -> Entry:
        """The entry of a token. All are compared, each in constant time: how long it takes tells nothing."""
        digest = hashlib.sha256(presented.encode()).digest()
        found: Entry | None = None
        for known in self._known.get():
            if hmac.compare_digest(known.digest, digest):
                found = known.entry
        if found is None:
            raise Unauthenticated("the bearer token is not known here")
        if found.expires is not None and found.expires <= self._now():
            raise Unauthenticated(f"the bearer token {found.name!r} has expired")
        return found

    def _meter(self, entry: Entry) -> "Meter":
        meter = self._meters.get(entry.name)
        if meter is None or meter.entry != entry:
            meter = self._meters[entry.name] = Meter(entry, self._clock())
        return meter


class Meter:
    """What has been used of one token."""

    def __init__(self, entry: Entry, now: float) -> None:
        self.entry = entry
        rate = entry.requests_per_second
        self._requests = Bucket(rate, float(entry.burst or max(1.0, rate or 1.0)), now) if rate else None
        per_minute = entry.tokens_per_minute
        self._tokens = Bucket(per_minute / 60, float(per_minute), now) if per_minute else None

    def count(self, now: float) -> None:
        """Count a request.

        Raises:
            Overloaded: There are too many, or the tokens of the last ones are still to be made up for.
        """
        limit = self.entry
        if self._tokens is not None and (wait_s := self._tokens.wait_s(0.0, now)):
            raise Overloaded(f"token {limit.name!r} may take {limit.tokens_per_minute} tokens a minute", wait_s)
        if self._requests is not None:
            if wait_s := self._requests.wait_s(1.0, now):
                text = f"token {limit.name!r} may make {limit.requests_per_second:g} requests a second"
                raise Overloaded(text, wait_s)
            self._requests.take(1.0, now)

    def spend(self, num_tokens: int, now: float) -> None:
        """Count tokens; more may be taken than there are, and have to be made up for before the next request."""
        if self._tokens is not None:
            self._tokens.take(float(num_tokens), now)


class Bucket:
    """Fills at `rate` a second up to `size`."""

    def __init__(self, rate: float, size: float, now: float) -> None:
        self._rate = rate
        self._size = size
        self._level = size
        self._at = now

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until there is so much; 0 if there is."""
        self._fill(now)
        return max(0.0, amount - self._level) / self._rate

    def take(self, amount: float, now: float) -> None:
        """Take out so much, also what is not there yet."""
        self._fill(now)
        self._level -= amount

    def _fill(self, now: float) -> None:
        self._level = min(self._size, self._level + (now - self._at) * self._rate)
        self._at = now


def read_tokens(path: Path) -> list[Known]:
    """The tokens of a file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not of the form above; the message names the token, never what it is.
    """
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=TokenFile).tokens
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} is no file of tokens: {error}") from error
    known = [Known(_digest(entry), entry) for entry in entries]
    for what, values in (("name", [one.entry.name for one in known]), ("token", [one.digest for one in known])):
        if len(set(values)) < len(values):
            raise ValueError(f"{path} has two tokens with the same {what}")
    return known


def _digest(entry: Entry) -> bytes:
    if bool(entry.token) == bool(entry.sha256):
        raise ValueError(f"token {entry.name!r} needs one of 'token' and 'sha256'")
    if entry.expires is not None and entry.expires.tzinfo is None:
        raise ValueError(f"token {entry.name!r}: 'expires' has no time zone")
    if entry.token:
        if len(entry.token) < SHORTEST_TOKEN:
            raise ValueError(f"token {entry.name!r} is shorter than {SHORTEST_TOKEN} characters")
        return hashlib.sha256(entry.token.encode()).digest()
    try:
        digest = bytes.fromhex(entry.sha256)
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise ValueError(f"token {entry.name!r}: 'sha256' must have 64 hexadecimal digits")
    return digest


def _presented(authorization: str | None) -> str:
    if authorization is None:
        raise Unauthenticated("this server wants a bearer token: send the header 'authorization: Bearer TOKEN'")
    if not authorization[: len(_SCHEME)].lower() == _SCHEME or len(authorization) > _LONGEST_PRESENTED:
        raise Unauthenticated("the header 'authorization' must be 'Bearer TOKEN'")
    return authorization[len(_SCHEME) :].strip()
