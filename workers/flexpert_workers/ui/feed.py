"""What watchers of the page are told: the whole state first, then what is another, as server-sent events.

One snapshot serves all of them. None is taken while nobody watches, and never more than a few a second: a large pool,
whose snapshot takes longer, is looked at less often.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import msgspec

from flexpert_workers.pool.changes import Changes
from flexpert_workers.pool.controller import PoolController
from flexpert_workers.ui.snapshot import Snapshot, Snapshots, difference

log = logging.getLogger(__name__)

MOST_WATCHERS = 32


@dataclass(frozen=True)
class Pace:
    """How often is looked.

    Attributes:
        shortest_s: Between two looks, however much happens.
        longest_s: Between two looks where nothing happens: figures creep.
        part: Of the time that looking may take altogether.
        silent_s: After which a watcher is told that there is nothing to tell.
    """

    shortest_s: float = 0.25
    longest_s: float = 1.0
    part: float = 0.05
    silent_s: float = 15.0


class Feed:
    """The stream of one controller's snapshots, taken while somebody watches."""

    def __init__(
        self,
        controller: PoolController,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._snapshots = Snapshots(controller)
        self._changes = controller.changes
        self._pace = pace or Pace()
        self._clock = clock
        self._news = Changes()
        self._latest: Snapshot | None = None
        self._looking: asyncio.Task[None] | None = None
        self._closed = False
        self.num_watchers = 0
        self.num_looks = 0

    def now(self) -> Snapshot:
        """The pool as it is."""
        self.num_looks += 1
        self._latest = self._snapshots.take()
        return self._latest

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events for one watcher: `state` with everything, then a `change` with what is another by then.

        One that reads slowly misses what was in between.
        """
        self.num_watchers += 1
        try:
            told = self.now()
            self._looking = self._looking or asyncio.create_task(self._look())
            yield _event("state", difference(None, told))
            while not self._closed:
                seen = self._news.count
                latest = self._latest or told
                if latest is not told:
                    change, told = difference(told, latest), latest
                    yield _event("change", change)
                elif await self._news.wait(seen, self._pace.silent_s) == seen:
                    yield b": nothing new\n\n"
        finally:
            self.num_watchers -= 1
            if self.num_watchers == 0:
                self._rest()

    def close(self) -> None:
        """End all streams."""
        self._closed = True
        self._rest()
        self._news.bump()

    async def _look(self) -> None:
        try:
            while True:
                pause = self._look_once()
                seen = self._changes.count
                await asyncio.sleep(pause)
                await self._changes.wait(seen, max(0.0, self._pace.longest_s - pause))
        except Exception:
            log.exception("the page's look at the pool failed")
            self.close()

    def _look_once(self) -> float:
        """Take a snapshot, which is news where it differs; returns for how long to rest, in seconds."""
        began, before = self._clock(), self._latest
        after = self.now()
        if before is not None and not after.differs(before):
            self._latest = before
        else:
            self._news.bump()
        return max(self._pace.shortest_s, (self._clock() - began) / self._pace.part)

    def _rest(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None


def _event(name: str, content: object) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(content) + b"\n\n"
