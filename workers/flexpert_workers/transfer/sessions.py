"""Whose turn it is: what each target has asked a page server for. Pure; the server's thread alone uses it."""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from flexpert_workers.messages.transfer import AskChunk
from flexpert_workers.transfer.channel import Channel
from flexpert_workers.transfer.contract import ExpertKey
from flexpert_workers.transfer.places import Place


@dataclass
class Session:
    """One target's copy of one page.

    Attributes:
        page: Kept here while the target asks for it, so that it stays valid.
        channel: Over which its chunks go; None for frames.
        asked: Chunks to send, in order.
        heard_at: When the target last asked (seconds of the server's clock).
        told_at: When the server last said something to it.
    """

    key: ExpertKey
    page: Place
    channel: Channel | None
    heard_at: float
    told_at: float
    asked: deque[AskChunk] = field(default_factory=deque)

    @property
    def asked_bytes(self) -> int:
        """Bytes that the target waits for."""
        return sum(chunk.length for chunk in self.asked)


class Sessions:
    """The sessions of a server, one a target, which take turns chunk by chunk."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()

    def open(self, target: bytes, key: ExpertKey, page: Place, channel: Channel | None, now: float) -> Session:
        """Begin a session; what the target had asked for before is forgotten."""
        self._sessions[target] = Session(key, page, channel, heard_at=now, told_at=now)
        return self._sessions[target]

    def of(self, target: bytes) -> Session | None:
        """The session of a target."""
        return self._sessions.get(target)

    def close(self, target: bytes) -> None:
        """End a target's session, if it has one."""
        self._sessions.pop(target, None)

    def next(self) -> tuple[bytes, Session] | None:
        """The target whose turn it is to be sent a chunk."""
        return next(((target, each) for target, each in self._sessions.items() if each.asked), None)

    def had_turn(self, target: bytes) -> None:
        """A target is sent a chunk: it comes last now."""
        self._sessions.move_to_end(target)

    def waiting(self, told_before: float) -> list[tuple[bytes, Session]]:
        """Targets that wait for chunks and have not heard anything since `told_before`."""
        return [(target, each) for target, each in self._sessions.items() if each.asked and each.told_at < told_before]

    def expire(self, heard_before: float) -> None:
        """End the sessions of targets that wait for nothing and have not asked since `heard_before`."""
        silent = [key for key, each in self._sessions.items() if not each.asked and each.heard_at < heard_before]
        for target in silent:
            del self._sessions[target]

    def clear(self) -> None:
        """End all sessions."""
        self._sessions.clear()
