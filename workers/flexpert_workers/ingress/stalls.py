"""Cuts off clients that take nothing of what is written for them. One watch for all streams, run by `server.py`.

A time-out for each write would cost more than the write; here a write only leaves its time and its task.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from flexpert_workers.errors import FlexpertError

LOOKS_PER_TIMEOUT = 4


class Stalled(FlexpertError):
    """The client took nothing for too long; nothing more can be written to it."""


class Stalls:
    """The writes that are under way.

    Attributes:
        num_cut: Clients that were cut off.
    """

    def __init__(self, clock: Callable[[], float], timeout_s: float) -> None:
        self._clock = clock
        self._timeout_s = timeout_s
        self._since: dict[asyncio.Task[Any], float] = {}
        self._cut: set[asyncio.Task[Any]] = set()
        self.num_cut = 0

    async def write(self, written: Awaitable[None]) -> None:
        """Wait for a write.

        Raises:
            Stalled: It took longer than the time-out.
        """
        task = asyncio.current_task()
        assert task is not None, "runs in a task"
        self._since[task] = self._clock()
        try:
            await written
        except asyncio.CancelledError:
            if task in self._cut and task.uncancel() == 0:
                raise Stalled(f"the client took nothing for {self._timeout_s:g} s") from None
            raise
        finally:
            del self._since[task]
            self._cut.discard(task)

    async def watch(self) -> None:
        """Look again and again, for ever."""
        while True:
            await asyncio.sleep(self._timeout_s / LOOKS_PER_TIMEOUT)
            now = self._clock()
            stalled = {task for task, since in self._since.items() if now - since > self._timeout_s}
            for task in stalled - self._cut:
                self.num_cut += 1
                self._cut.add(task)
                task.cancel()
