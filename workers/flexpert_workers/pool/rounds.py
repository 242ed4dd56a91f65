"""The tasks of a pool controller: rounds that come again and again, and work beside them. `controller` begins them."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine

from flexpert_workers.pool.changes import Changes
from flexpert_workers.pool.launchers import LauncherUnavailable

log = logging.getLogger(__name__)


class Rounds:
    """Tasks that end together.

    Args:
        round_s: How often a round comes, when nothing happens in between.
    """

    def __init__(self, round_s: float) -> None:
        self._round_s = round_s
        self._tasks: set[asyncio.Task[None]] = set()

    def repeat(self, act: Callable[[], Coroutine[None, None, None]], changes: Changes) -> None:
        """Call `act` from now on whenever something changed, and every `round_s`."""
        self.spawn(self._forever(act, changes))

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run something beside the rounds; that it failed is logged."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_log_failure)

    async def stop(self) -> None:
        """Cancel all of them, and wait for that."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _forever(self, act: Callable[[], Coroutine[None, None, None]], changes: Changes) -> None:
        """Call `act` again and again; that a round failed ends nothing."""
        while True:
            seen = changes.count
            try:
                await act()
            except LauncherUnavailable as away:
                log.info("the launcher is away: %s", away)
            except Exception:
                log.exception("a round of the pool controller failed")
                seen = changes.count
            await changes.wait(seen, self._round_s)


def _log_failure(task: asyncio.Task[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        failure = task.exception()
        if failure is not None:
            log.error("a task of the pool controller failed", exc_info=failure)
