"""Asks the host; and the pool controller's launchers over it."""

import asyncio
import json
import secrets
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from flexpert_workers.expert import WorkerConfig
from flexpert_workers.pool.launchers import LauncherUnavailable
from flexpert_workers.pool.state import LaunchedWorker, PoolSpec, Slot

NUM_ENGINES = 2
HANG_S = 1.0


@dataclass(frozen=True)
class Process:
    """A child of the host; `pid` is None once it has ended."""

    name: str
    kind: str
    slot: str
    pid: int | None
    said: dict[str, Any] = field(default_factory=dict)


class Nodes:
    """What runs on the host at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request; returns what runs then.

        Raises:
            LauncherUnavailable: The host is gone.
        """
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.connect(str(self.folder / "host"))
                with sock.makefile("rw") as stream:
                    stream.write(json.dumps({"do": do} | request) + "\n")
                    stream.flush()
                    answer: dict[str, Any] = json.loads(stream.readline())
        except (OSError, ValueError) as gone:
            raise LauncherUnavailable(f"the host does not answer: {gone}") from gone
        return answer

    def processes(self, kind: str) -> list[Process]:
        """Those of a kind that run, the eldest first."""
        listed = [Process(**child) for child in self.ask("list")["children"]]
        return [process for process in listed if process.kind == kind and process.pid is not None]

    def slots(self) -> list[dict[str, str]]:
        """Every slot."""
        slots: list[dict[str, str]] = self.ask("list")["slots"]
        return slots

    def owner_socket(self, slot: str) -> str:
        """Where the page owner of a slot lends."""
        return str(self.folder / f"{slot}.own")


class HostWorkers:
    """A `WorkerLauncher` over the host."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    async def slots(self) -> tuple[Slot, ...]:
        """The pods that run."""
        slots = await asyncio.to_thread(self._nodes.slots)
        return tuple(Slot(slot["id"], pod=slot["id"], node=slot["id"]) for slot in slots)

    async def list(self) -> tuple[LaunchedWorker, ...]:
        """Every worker that runs."""
        running = await asyncio.to_thread(self._nodes.processes, "worker")
        return tuple(LaunchedWorker(one.name, one.slot, one.said.get("control_endpoint", "")) for one in running)

    async def start(self, worker: str, slot: Slot, spec: PoolSpec) -> None:
        """Start a worker that borrows from its pod's page owner."""
        config = WorkerConfig(
            worker=worker,
            pool=spec.uid,
            source=spec.source,
            dtype=spec.dtype,
            memory_bytes=spec.memory_per_worker_bytes,
            threads=1,
            bind_host="127.0.0.1",
            pod=slot.pod,
            node=slot.node,
            socket_dir=str(self._nodes.folder / "s"),
            owner_socket=self._nodes.owner_socket(slot.id),
        )
        arguments = ["--config", msgspec.json.encode(config).decode()]
        await asyncio.to_thread(self._nodes.ask, "start", name=worker, kind="worker", arguments=arguments, slot=slot.id)

    async def stop(self, worker: str) -> None:
        """End a worker."""
        await asyncio.to_thread(self._nodes.ask, "stop", name=worker)

    async def failure(self, worker: str) -> str:
        """What a worker printed as its last word."""
        answer = await asyncio.to_thread(self._nodes.ask, "list")
        return next((one["said"].get("message", "") for one in answer["children"] if one["name"] == worker), "")


class HostEngines:
    """An `EngineLauncher` over the host: there are as many as are asked for, as Ray Serve would keep them."""

    def __init__(self, nodes: Nodes, pool_control: str) -> None:
        self._nodes = nodes
        self._pool_control = pool_control

    async def apply(self, spec: PoolSpec) -> None:
        """Start those that lack, stop those that are too many."""
        running = await asyncio.to_thread(self._nodes.processes, "engine")
        for surplus in running[spec.engine_replicas :]:
            await asyncio.to_thread(self._nodes.ask, "stop", name=surplus.name)
        for _ in range(spec.engine_replicas - len(running)):
            name = f"e-{secrets.token_hex(4)}"
            arguments = ["--config", json.dumps(self._config(name, spec))]
            await asyncio.to_thread(self._nodes.ask, "start", name=name, kind="engine", arguments=arguments)

    async def problem(self) -> str:
        """Nothing: an engine that dies is replaced."""
        return ""

    def _config(self, name: str, spec: PoolSpec) -> dict[str, Any]:
        return {
            "engine": name,
            "pool": spec.uid,
            "source": spec.source,
            "dtype": spec.dtype,
            "kv_cache_bytes": 1 << 25,
            "max_batch_tokens": 256,
            "threads": 1,
            "pool_control": self._pool_control,
            "socket_dir": str(self._nodes.folder / "s"),
            "dispatch_hang_s": HANG_S,
        }
