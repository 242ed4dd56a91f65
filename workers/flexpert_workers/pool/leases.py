"""Engines and their leases. An engine's Attach stream is its lease; tables, orders and acknowledgements travel on it.

`service` opens a `Lease` per stream; `controller` publishes tables here and awaits acknowledgements, a bounded time.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from flexpert_workers.pool.state import Condition, Engine
from flexpert_workers.routing import NO_EPOCH, Epoch, RoutingTable


@dataclass(frozen=True)
class LeaseTerms:
    """How long an engine may keep silent, a commit waits for acknowledgements, and a lost engine stays listed."""

    lease_s: float = 15.0
    acknowledge_s: float = 5.0
    lost_kept_s: float = 30.0


@dataclass(frozen=True)
class RecordingOrder:
    """What engines are to record: up to `tokens` each, for no longer than `seconds`."""

    id: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class News:
    """What an engine has not been told yet.

    Attributes:
        table: The encoded table; empty when it has the newest.
        recording: An order to record; one of no tokens ends what it records. None when nothing changed.
    """

    table: bytes = b""
    recording: RecordingOrder | None = None


NO_RECORDING = RecordingOrder("", 0, 0.0)


class Lease:
    """One engine's stream."""

    def __init__(self, engine: Engine, now: float) -> None:
        self.engine = engine
        self.renewed_at = now
        self.sent = NO_EPOCH
        self.told = NO_RECORDING
        self.ended = asyncio.Event()
        self._news = asyncio.Event()

    def wake(self) -> None:
        """There is something to tell."""
        self._news.set()

    def end(self) -> None:
        """The engine is expelled, or its stream has ended."""
        self.ended.set()
        self._news.set()

    async def news(self) -> None:
        """Wait until there is something to tell."""
        await self._news.wait()
        self._news.clear()


class EngineRegistry:
    """Every engine with a lease, those lost lately, and the table that all of them are to have."""

    def __init__(
        self, terms: LeaseTerms, on_change: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.terms = terms
        self._clock = clock
        self._on_change = on_change
        self._leases: dict[str, Lease] = {}
        self._lost: dict[str, tuple[Engine, float]] = {}
        self._table: RoutingTable | None = None
        self._encoded = b""
        self._recording = NO_RECORDING
        self._acknowledged = asyncio.Event()

    # ---- streams

    def register(self, engine: Engine) -> Lease:
        """An engine attaches; an older stream of the same engine ends."""
        old = self._leases.get(engine.id)
        if old is not None:
            old.end()
        lease = Lease(engine, self._clock())
        lease.wake()
        self._leases[engine.id] = lease
        self._lost.pop(engine.id, None)
        self._on_change()
        return lease

    def renew(self, lease: Lease, engine: Engine) -> None:
        """An engine reports again."""
        before, lease.engine, lease.renewed_at = lease.engine, engine, self._clock()
        if before.epoch != engine.epoch:
            self._acknowledged.set()
        if _shown(before) != _shown(engine):
            self._on_change()

    def release(self, lease: Lease) -> None:
        """A stream has ended. The engine is taken for lost until it attaches again."""
        lease.end()
        if self._leases.get(lease.engine.id) is lease:
            del self._leases[lease.engine.id]
            self._lost[lease.engine.id] = (replace(lease.engine, condition=Condition.LOST), self._clock())
            self._acknowledged.set()
            self._on_change()

    async def next_news(self, lease: Lease) -> News | None:
        """What the engine has to be told, as soon as there is something; None when its lease has ended."""
        while not lease.ended.is_set():
            await lease.news()
            if (news := self._news(lease)) is not None and not lease.ended.is_set():
                return news
        return None

    def _news(self, lease: Lease) -> News | None:
        """What has changed since the lease was told; it counts as told."""
        table = b""
        if self._table is not None and lease.sent < self._table.epoch:
            lease.sent, table = self._table.epoch, self._encoded
        changed, lease.told = lease.told != self._recording, self._recording
        return News(table, self._recording if changed else None) if table or changed else None

    # ---- the controller's side

    def engines(self) -> tuple[Engine, ...]:
        """Every engine with a lease, and those lost lately."""
        held = [lease.engine for lease in self._leases.values()]
        return tuple(sorted((*held, *(engine for engine, _ in self._lost.values())), key=lambda engine: engine.id))

    def highest_epoch(self) -> Epoch:
        """The highest epoch that any engine has acknowledged."""
        return max((engine.epoch for engine in self.engines()), default=NO_EPOCH)

    def publish(self, table: RoutingTable) -> None:
        """Give every engine `table`, unless they have a newer one."""
        if self._table is not None and table.epoch <= self._table.epoch:
            return
        self._table, self._encoded = table, table.encode()
        for lease in self._leases.values():
            lease.wake()

    def record(self, order: RecordingOrder | None) -> None:
        """Have every engine record, also those that attach later; None has none record."""
        self._recording = order or NO_RECORDING
        for lease in self._leases.values():
            lease.wake()

    async def await_acknowledged(self, epoch: Epoch) -> tuple[str, ...]:
        """Wait a bounded time for engines that serve to acknowledge `epoch`; expels the silent, returns their ids."""
        deadline = self._clock() + self.terms.acknowledge_s
        while self._silent(epoch) and self._clock() < deadline:
            self._acknowledged.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline - self._clock()):
                    await self._acknowledged.wait()
        silent = self._silent(epoch)
        for lease in silent:
            self.release(lease)
        return tuple(lease.engine.id for lease in silent)

    def sweep(self) -> None:
        """Expel engines whose lease has run out; forget those lost long ago."""
        now = self._clock()
        for lease in list(self._leases.values()):
            if now - lease.renewed_at > self.terms.lease_s:
                self.release(lease)
        forgotten = [name for name, (_, at) in self._lost.items() if now - at > self.terms.lost_kept_s]
        for name in forgotten:
            del self._lost[name]
        if forgotten:
            self._on_change()

    def close(self) -> None:
        """End every stream; the engines attach again to whoever comes next."""
        for lease in self._leases.values():
            lease.end()

    def _silent(self, epoch: Epoch) -> list[Lease]:
        """Engines that serve and have not acknowledged `epoch`; one that starts does not dispatch yet."""
        serving = (Condition.READY, Condition.DRAINING)
        leases = self._leases.values()
        return [one for one in leases if one.engine.condition in serving and one.engine.epoch < epoch]


def _shown(engine: Engine) -> tuple[str, Condition, Epoch, str]:
    """What watchers are told of at once; the rest they see with the next change."""
    return (engine.endpoint, engine.condition, engine.epoch, engine.pod)
