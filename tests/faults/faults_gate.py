"""Holds the pool controller's messages to workers, so that a phase lasts as long as a test wants."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from flexpert_workers.messages.control import ControlReply, ControlRequest, Describe
from flexpert_workers.pool.exceptions import WorkerUnreachable
from flexpert_workers.pool.fleet import LinkFactory, WorkerLink

FIRST_DESCRIBE = "FirstDescribe"
_LOOK_S = 0.005


class Gate:
    """Holds messages of one kind, while the file `gate` names it: `KIND NUMBER` lets NUMBER of them pass.

    A message that is held writes its kind to the file `held`.
    """

    def __init__(self, folder: Path) -> None:
        self._gate, self._held = folder / "gate", folder / "held"
        self._passed = 0

    async def pass_through(self, kind: str) -> None:
        """Return when the message may go."""
        allowed = self._allowed(kind)
        if allowed is None:
            self._passed = 0 if not self._gate.exists() else self._passed
            return
        self._passed += 1
        if self._passed <= allowed:
            return
        self._held.write_text(kind)
        while self._allowed(kind) is not None:  # noqa: ASYNC110 - the gate is a file, and outlives this process
            await asyncio.sleep(_LOOK_S)

    def _allowed(self, kind: str) -> int | None:
        try:
            named, number = self._gate.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(number) if named == kind else None


class GatedLink:
    """A link to a worker behind the gate."""

    def __init__(self, gate: Gate, link: WorkerLink) -> None:
        self._gate = gate
        self._link = link
        self._is_new = True
        self._closed = False

    async def ask(self, request: ControlRequest, timeout_s: float) -> ControlReply:
        """Ask, once the gate is open; raises `WorkerUnreachable`."""
        kind = FIRST_DESCRIBE if self._is_new and isinstance(request, Describe) else type(request).__name__
        await self._gate.pass_through(kind)
        self._is_new = False
        if self._closed:
            raise WorkerUnreachable("its connection was given up")
        return await self._link.ask(request, timeout_s)

    def close(self) -> None:
        """Give the connection up."""
        self._closed = True
        self._link.close()


def gated(folder: Path, links: LinkFactory) -> LinkFactory:
    """Links behind the gate of a folder."""
    gate = Gate(folder)

    def make(endpoint: str, on_break: Callable[[], None]) -> GatedLink:
        return GatedLink(gate, links(endpoint, on_break))

    return make
