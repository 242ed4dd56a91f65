"""Notices that a source is not what is served any more: a branch that moved, files that were written. Touches nothing.

`controller` owns one and tells what it finds; the operator makes a condition of it.
"""

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import msgspec

from flexpert_workers.errors import CheckpointError
from flexpert_workers.pool.inspector import Inspector
from flexpert_workers.pool.state import ModelFacts
from flexpert_workers.sources import parse_remote
from flexpert_workers.sources.local import checkpoint_folder, folder_state

log = logging.getLogger(__name__)

REMOTE_PERIOD_S = 300.0
FOLDER_PERIOD_S = 15.0

UNREADABLE = "unreadable"
"""The state of a folder that is no whole checkpoint any more."""

Resolver = Callable[[str, str], Awaitable[str]]
"""(source, revision) → what names the state of its files now; raises `errors.CheckpointError`."""


class _Answer(msgspec.Struct, frozen=True):
    revision: str = ""
    message: str = ""


async def resolve_source(source: str, revision: str) -> str:
    """The state of a source now: of a folder in this process, of a remote one by a process of its own.

    Raises:
        CheckpointError: It cannot be told.
    """
    if parse_remote(source) is None:
        return await asyncio.to_thread(lambda: folder_state(checkpoint_folder(source)))
    command = [sys.executable, "-m", "flexpert_workers.sources.resolve", source, revision]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    try:
        answer = msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=_Answer)
    except (IndexError, msgspec.DecodeError) as unreadable:
        raise CheckpointError(f"{source} could not be resolved: {done.stderr.strip()[-200:]}") from unreadable
    if not answer.revision:
        raise CheckpointError(answer.message)
    return answer.revision


class SourceWatch:
    """Compares, now and then, what a source is with what is served.

    Args:
        inspector: Finds a folder's digest, since a file that was written need not have changed.
        resolve: Tells the state of a source.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, inspector: Inspector, resolve: Resolver = resolve_source, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._inspector = inspector
        self._resolve = resolve
        self._clock = clock
        self._served = ""
        self._same: set[str] = set()
        self._looked_at: float | None = None
        self._newer = ""

    async def look(self, model: ModelFacts) -> str:
        """The state of the source if it is another than the one served, else empty; looks now and then only."""
        if not model.resolved:
            return ""
        if model.digest != self._served:
            self._served, self._same, self._newer, self._looked_at = model.digest, {model.resolved}, "", self._clock()
        period = REMOTE_PERIOD_S if parse_remote(model.source) is not None else FOLDER_PERIOD_S
        if self._looked_at is not None and self._clock() - self._looked_at < period:
            return self._newer
        self._looked_at = self._clock()
        try:
            state = await self._resolve(model.source, model.revision)
            self._newer = "" if await self._is_served(model, state) else state
        except CheckpointError as away:
            log.info("cannot tell whether %s is what is served: %s", model.source, away)
            if parse_remote(model.source) is None:
                self._newer = UNREADABLE
        return self._newer

    async def _is_served(self, model: ModelFacts, state: str) -> bool:
        if state in self._same:
            return True
        if parse_remote(model.source) is None:
            facts = await self._inspector(model.source, model.revision, model.dtype)
            if facts.digest == model.digest:
                self._same.add(state)
        return state in self._same
