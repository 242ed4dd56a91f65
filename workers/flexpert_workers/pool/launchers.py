"""How processes of workers and engines come to be, and the model's files before them: three protocols.

`subprocesses` implements them with processes of this host, `serving` with Ray. The controller alone calls them.
"""

from typing import Protocol

from flexpert_workers.pool.state import FetchState, LaunchedWorker, PoolSpec, Slot


class WorkerLauncher(Protocol):
    """Starts workers in slots, and finds again those that an earlier controller started."""

    async def slots(self) -> tuple[Slot, ...]:
        """Every slot there is, taken or not."""

    async def list(self) -> tuple[LaunchedWorker, ...]:
        """Every worker whose process runs, also while it starts. What is absent is dead.

        Raises:
            LauncherUnavailable: It cannot be told now; nobody is to be taken for dead.
        """

    async def start(self, worker: str, slot: Slot, spec: PoolSpec) -> None:
        """Begin to start a worker; `list` tells when it is up. A worker that fails to start vanishes from it."""

    async def stop(self, worker: str) -> None:
        """End a worker's process if it runs, now."""

    async def failure(self, worker: str) -> str:
        """What a worker left as the reason of its end, in a sentence, or empty."""


class EngineLauncher(Protocol):
    """Keeps as many engines running as the spec says; replaces the dead."""

    async def apply(self, spec: PoolSpec) -> None:
        """Make the engines be as `spec` says; may be called again with the same one."""

    async def problem(self) -> str:
        """Why engines do not come up, in a sentence, or empty."""


class NodeFetcher(Protocol):
    """Runs `sources.fetch` on nodes, so that the files of a remote model are there before workers are."""

    async def nodes(self) -> tuple[str, ...]:
        """Every node that will open the model."""

    async def begin(self, node: str, source: str) -> None:
        """Begin to fetch, unless that goes on there already."""

    async def state(self, node: str, source: str) -> FetchState | None:
        """How far that is; None when nothing was begun, or it has died without a word."""

    async def end(self, node: str, source: str) -> None:
        """Forget a fetch that has finished."""


class LauncherUnavailable(Exception):
    """What runs cannot be told or changed now (the Ray head is away); try again."""
