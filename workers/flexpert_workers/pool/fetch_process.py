"""`sources.fetch` as a process of this host, which ends with whoever started it: what fetchers run on a node."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Mapping

from flexpert_workers.pool.state import FetchState, Slot

_FIELDS = ("phase", "bytes_done", "bytes_total", "error", "message")


class FetchProcess:
    """Fetches a pinned source; `state` tells how far it is. `environment` None is this process's own."""

    def __init__(self, source: str, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "flexpert_workers.sources.fetch", source, "--tied"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._state = FetchState("Resolving")
        self._reader = threading.Thread(target=self._read, name="fetch", daemon=True)
        self._reader.start()

    @property
    def state(self) -> FetchState:
        """As the process said last."""
        return self._state

    def end(self) -> None:
        """End it if it runs; what it has fetched stays."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            told = {name: said[name] for name in _FIELDS if name in said}
            before = {name: getattr(self._state, name) for name in ("bytes_done", "bytes_total")}
            self._state = FetchState(**{**before, **told})
        if not self._state.finished:
            status = self._process.wait()
            self._state = FetchState("Failed", error="CheckpointError", message=f"the fetch ended with status {status}")


class SubprocessFetcher:
    """A `NodeFetcher` of processes on this host: for tests, and machines without Ray.

    Args:
        slots: Whose pods are the nodes.
        environment: Of the processes.
    """

    def __init__(self, slots: tuple[Slot, ...], environment: Mapping[str, str]) -> None:
        self._nodes = tuple(sorted({slot.pod for slot in slots}))
        self._environment = dict(environment)
        self._processes: dict[tuple[str, str], FetchProcess] = {}

    async def nodes(self) -> tuple[str, ...]:
        """The pods of the slots."""
        return self._nodes

    async def begin(self, node: str, source: str) -> None:
        """Start a process, unless one runs."""
        if (node, source) not in self._processes:
            self._processes[node, source] = FetchProcess(source, self._environment)

    async def state(self, node: str, source: str) -> FetchState | None:
        """As it said last."""
        process = self._processes.get((node, source))
        return process.state if process is not None else None

    async def end(self, node: str, source: str) -> None:
        """End the process."""
        process = self._processes.pop((node, source), None)
        if process is not None:
            await asyncio.to_thread(process.end)
