"""Tells watchers that something changed: a counter that can be awaited. One event loop only."""

import asyncio
import contextlib


class Changes:
    """Counts changes; a watcher waits for the count to differ from the one it has seen."""

    def __init__(self) -> None:
        self.count = 0
        self._event = asyncio.Event()

    def bump(self) -> None:
        """Something changed."""
        self.count += 1
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seen: int, timeout_s: float) -> int:
        """Wait until the count differs from `seen` or time is up; returns the count."""
        if self.count == seen:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._event.wait()
        return self.count
