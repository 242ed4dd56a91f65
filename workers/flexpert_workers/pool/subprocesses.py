"""Launchers that start workers and engines as processes of this host: for tests, and machines without Ray."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread

import msgspec

from flexpert_workers import threads
from flexpert_workers.expert import WorkerConfig
from flexpert_workers.pool.owners import device_of, owner_config, owner_domain, owner_place
from flexpert_workers.pool.state import LaunchedWorker, PoolSpec, Slot

_GRACE_S = 2.0


@dataclass(frozen=True)
class Host:
    """Where processes listen, and what is added to their environment."""

    bind_host: str = "127.0.0.1"
    socket_dir: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


class ReportingProcess:
    """A process that prints one line of JSON when it is up, or why it is not."""

    def __init__(self, module: str, config: bytes, num_threads: int, host: Host) -> None:
        environment = {**os.environ, **host.environment, **threads.environment(num_threads)}
        command = [sys.executable, "-m", module, "--config", config.decode()]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self._said: dict[str, object] = {}
        self._reader = Thread(target=self._read, name="report", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def said(self, name: str) -> str:
        """A field of what it printed, or empty."""
        return str(self._said.get(name, ""))

    async def end(self, grace_s: float = _GRACE_S) -> None:
        """End it: politely, and after `grace_s` for good."""
        self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self._process.wait, grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                said = json.loads(line)
                self._said = said if isinstance(said, dict) else self._said


class SubprocessOwners:
    """Page owners as processes, one for each pod, GPU and checkpoint; one that died is replaced by `replace_dead`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._processes: dict[str, tuple[str, bytes, ReportingProcess]] = {}

    def start(self, slot: Slot, spec: PoolSpec) -> str:
        """Have the owner of a slot run; the path of its socket."""
        domain = owner_domain(owner_place(slot.pod, slot), spec)
        config = owner_config(domain, spec, slot, self._host.bind_host, self._host.socket_dir)
        if domain not in self._processes:
            encoded = msgspec.json.encode(config)
            self._processes[domain] = (slot.pod, encoded, self._run(encoded))
        return config.socket

    def replace_dead(self) -> None:
        """Start owners anew whose processes have ended."""
        for domain, (pod, config, process) in self._processes.items():
            if not process.running:
                self._processes[domain] = (pod, config, self._run(config))

    def pid(self, pod: str) -> int:
        """Process id of a pod's owner."""
        return next(process.pid for place, _, process in self._processes.values() if place == pod)

    def kill(self, pods: Callable[[str], bool] = lambda _: True) -> None:
        """End the owners of some pods, now."""
        for domain, (pod, _, process) in list(self._processes.items()):
            if pods(pod):
                process.kill()
                del self._processes[domain]

    def _run(self, config: bytes) -> ReportingProcess:
        return ReportingProcess("flexpert_workers.memory.owner", config, 1, self._host)


class SubprocessWorkers:
    """A `WorkerLauncher` of processes in slots that the caller adds and removes, as pods come and go.

    Attributes:
        owners: The page owners of their pods, where the host has a folder for sockets; else each worker has its own.
    """

    def __init__(self, slots: Sequence[Slot], host: Host) -> None:
        self.owners = SubprocessOwners(host)
        self._slots = {slot.id: slot for slot in slots}
        self._host = host
        self._processes: dict[str, tuple[Slot, ReportingProcess]] = {}

    def add_slot(self, slot: Slot) -> None:
        """A pod came."""
        self._slots[slot.id] = slot

    async def remove_slot(self, slot: str) -> None:
        """A pod goes, and the worker in it."""
        del self._slots[slot]
        for worker in [name for name, (where, _) in self._processes.items() if where.id == slot]:
            await self.stop(worker)
        left = {known.pod for known in self._slots.values()}
        self.owners.kill(lambda pod: pod not in left)

    def pid(self, worker: str) -> int:
        """Process id of a worker."""
        return self._processes[worker][1].pid

    async def slots(self) -> tuple[Slot, ...]:
        """Every slot there is."""
        return tuple(self._slots.values())

    async def list(self) -> tuple[LaunchedWorker, ...]:
        """Every worker whose process runs."""
        self.owners.replace_dead()
        return tuple(
            LaunchedWorker(worker, slot.id, process.said("control_endpoint"))
            for worker, (slot, process) in self._processes.items()
            if process.running
        )

    async def start(self, worker: str, slot: Slot, spec: PoolSpec) -> None:
        """Begin to start a worker, if its pod has not gone meanwhile."""
        if slot.id not in self._slots:
            return
        num_threads = spec.worker_threads or threads.share_of_cores(max(1, len(self._slots)))
        config = WorkerConfig(
            worker=worker,
            pool=spec.uid,
            source=spec.source,
            dtype=spec.dtype,
            memory_bytes=spec.memory_per_worker_bytes,
            threads=num_threads,
            bind_host=self._host.bind_host,
            pod=slot.pod,
            node=slot.node,
            socket_dir=self._host.socket_dir,
            owner_socket=self.owners.start(slot, spec) if self._host.socket_dir else "",
            device=device_of(slot),
        )
        process = ReportingProcess("flexpert_workers.expert", msgspec.json.encode(config), num_threads, self._host)
        self._processes[worker] = (slot, process)

    async def stop(self, worker: str) -> None:
        """End a worker's process if it runs."""
        known = self._processes.get(worker)
        if known is not None and known[1].running:
            await known[1].end()

    async def failure(self, worker: str) -> str:
        """What a worker printed when its checkpoint could not be used."""
        known = self._processes.get(worker)
        return known[1].said("message") if known is not None else ""

    def kill_all(self) -> None:
        """End everything, now."""
        for _, process in self._processes.values():
            process.kill()
        self.owners.kill()


class SubprocessEngines:
    """An `EngineLauncher` of processes; one that died is replaced when `apply` is called the next time."""

    def __init__(self, pool_control: str, host: Host) -> None:
        self._pool_control = pool_control
        self._host = host
        self._spec: PoolSpec | None = None
        self._processes: list[ReportingProcess] = []
        self._problem = ""

    async def apply(self, spec: PoolSpec) -> None:
        """Have `spec.engine_replicas` engines run, with `spec`."""
        if self._spec is not None:
            same_number = replace(spec, engine_replicas=self._spec.engine_replicas)
            await self._keep(0 if self._told(same_number) != self._told(self._spec) else len(self._processes))
        self._spec = spec
        died = [process for process in self._processes if not process.running]
        self._problem = died[-1].said("message") if died else self._problem
        self._processes = [process for process in self._processes if process.running]
        await self._keep(spec.engine_replicas)
        while len(self._processes) < spec.engine_replicas:
            self._processes.append(self._start(spec))

    async def problem(self) -> str:
        """What the last engine that died gave as its reason, while too few run."""
        up = [process for process in self._processes if process.said("endpoint")]
        return "" if self._spec is None or len(up) >= self._spec.engine_replicas else self._problem

    def pids(self) -> tuple[int, ...]:
        """Process ids of the engines that run."""
        return tuple(process.pid for process in self._processes if process.running)

    def kill_all(self) -> None:
        """End everything, now."""
        for process in self._processes:
            process.kill()

    async def _keep(self, count: int) -> None:
        surplus, self._processes = self._processes[count:], self._processes[:count]
        await asyncio.gather(*(process.end() for process in surplus))

    def _start(self, spec: PoolSpec) -> ReportingProcess:
        config = {"engine": f"e-{secrets.token_hex(4)}", **self._told(spec)}
        num_threads = _engine_threads(spec)
        return ReportingProcess("flexpert_workers.engine", msgspec.json.encode(config), num_threads, self._host)

    def _told(self, spec: PoolSpec) -> dict[str, str | int]:
        """What of the specification an engine is told: a change of anything else leaves it running."""
        return {
            "pool": spec.uid,
            "source": spec.source,
            "dtype": spec.dtype,
            "max_batch_tokens": spec.max_batch_tokens,
            "kv_cache_bytes": spec.kv_cache_bytes,
            "threads": _engine_threads(spec),
            "pool_control": self._pool_control,
            "bind_host": self._host.bind_host,
            "pod": Path("/proc/sys/kernel/hostname").read_text().strip(),
            "socket_dir": self._host.socket_dir,
        }


def _engine_threads(spec: PoolSpec) -> int:
    return spec.engine_threads or threads.share_of_cores(max(1, spec.engine_replicas))
