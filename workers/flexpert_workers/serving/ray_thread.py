"""Ray's blocking calls beside the pool controller's event loop, for `ray_launcher`, `ray_fetcher` and `engines`."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import ray

from flexpert_workers.pool.launchers import LauncherUnavailable

_Result = TypeVar("_Result")


class RayThread:
    """A thread that asks Ray, one question after the other.

    Args:
        name: Of the thread.
        timeout_s: How long an answer is waited for.
        away: What Ray raises when it is not there; anything else is told to whoever asked.
    """

    def __init__(
        self,
        name: str,
        timeout_s: float = 60.0,
        away: tuple[type[Exception], ...] = (ray.exceptions.RaySystemError, ray.exceptions.RpcError),
    ) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._timeout_s = timeout_s
        self._away: tuple[type[Exception], ...] = (TimeoutError, *away)

    async def call(self, act: Callable[[], _Result]) -> _Result:
        """What `act` returns; raises `LauncherUnavailable` when Ray does not answer."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._thread, act)
        except self._away as away:
            raise LauncherUnavailable(f"Ray does not answer: {away}") from away
