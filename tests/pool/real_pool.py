"""A pool of real workers and page owners as threads of this process: two pods with an owner each, and a controller."""

import asyncio
import gc
import os
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pool_plans import plan

from flexpert_workers.checkpoint import Checkpoint
from flexpert_workers.expert import ExpertWorker, WorkerConfig
from flexpert_workers.memory.owner.process import OwnerProcess
from flexpert_workers.pool.controller import PoolController, Settings
from flexpert_workers.pool.fakes import FakeEngines
from flexpert_workers.pool.fleet import Patience
from flexpert_workers.pool.leases import LeaseTerms
from flexpert_workers.pool.links import ControlLink
from flexpert_workers.pool.owners import owner_config, owner_domain, owner_place
from flexpert_workers.pool.reconfigure import Deadlines
from flexpert_workers.pool.state import (
    Cause,
    Condition,
    Expert,
    LaunchedWorker,
    ModelFacts,
    Operation,
    Placement,
    PoolSpec,
    Request,
    Slot,
)

POOL = "uid-1"
PATIENCE_S = 120.0
SLOTS = tuple(Slot(f"{pod}/{number}", pod=pod, number=number) for pod in "ab" for number in range(2))
SETTINGS = Settings(
    pool=POOL,
    round_s=0.02,
    lost_kept_s=0.1,
    patience=Patience(ping_s=0.5, answer_s=60.0, audit_s=1.0),
    leases=LeaseTerms(lease_s=60.0, acknowledge_s=0.1),
    deadlines=Deadlines(poll_s=0.002, longest_poll_s=0.01),
)
_Answer = TypeVar("_Answer")


class ThreadWorkers:
    """A `WorkerLauncher` of workers in this process. A worker that is killed stops without a word to the controller."""

    def __init__(self, folder: str) -> None:
        self.running: dict[str, tuple[Slot, ExpertWorker]] = {}
        self._folder = folder
        self._made: list[ExpertWorker] = []
        self._owners: dict[str, tuple[Slot, OwnerProcess]] = {}

    async def slots(self) -> tuple[Slot, ...]:
        return SLOTS

    async def list(self) -> tuple[LaunchedWorker, ...]:
        return tuple(
            LaunchedWorker(name, slot.id, worker.control_endpoint) for name, (slot, worker) in self.running.items()
        )

    async def start(self, worker: str, slot: Slot, spec: PoolSpec) -> None:
        socket = self._owner_of(slot, spec)
        config = WorkerConfig(
            worker=worker,
            pool=spec.uid,
            source=spec.source,
            dtype=spec.dtype,
            memory_bytes=spec.memory_per_worker_bytes,
            threads=1,
            bind_host="127.0.0.1",
            pod=slot.pod,
            node="node",
            socket_dir=self._folder,
            owner_socket=socket,
        )
        started = ExpertWorker(config)
        self._made.append(started)
        await asyncio.to_thread(started.start)
        self.running[worker] = slot, started

    async def stop(self, worker: str) -> None:
        if worker in self.running:
            await asyncio.to_thread(self.running.pop(worker)[1].stop)

    async def failure(self, worker: str) -> str:
        return ""

    async def replace_owner(self, pod: str, spec: PoolSpec) -> None:
        """A pod's page owner dies, and another takes its place."""
        if pod in self._owners:
            slot, owner = self._owners.pop(pod)
            await asyncio.to_thread(owner.stop)
            self._owner_of(slot, spec)

    def used_bytes(self) -> dict[str, int]:
        """What each owner with a worker has in use."""
        lenders = {slot.pod: worker._memory.lender for slot, worker in self.running.values()}  # type: ignore[union-attr]
        return {pod: lender.owner_state().used_bytes for pod, lender in lenders.items()}  # type: ignore[attr-defined]

    def close(self) -> None:
        """End everything, also what was being started when the controller ended."""
        for worker in self._made:
            worker.stop()
        for _, owner in self._owners.values():
            owner.stop()

    def _owner_of(self, slot: Slot, spec: PoolSpec) -> str:
        config = owner_config(owner_domain(owner_place(slot.pod, slot), spec), spec, slot, "127.0.0.1", self._folder)
        if slot.pod not in self._owners:
            owner = OwnerProcess(config)
            owner.start()
            self._owners[slot.pod] = slot, owner
        return config.socket


class RealPool:
    """The pool, driven from outside: its event loop runs while something is waited for."""

    def __init__(self, checkpoint: Checkpoint, source: str, folder: str, room: int, workers: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.checkpoint = checkpoint
        self.launcher = ThreadWorkers(folder)
        self.model = ModelFacts(
            source,
            "",
            "Auto",
            checkpoint.digest,
            checkpoint.architecture,
            checkpoint.num_layers,
            checkpoint.num_experts,
            checkpoint.experts_per_token,
            checkpoint.layout.page_bytes,
        )
        self.experts = sorted(self.model.all_experts())
        self.pages = {expert: checkpoint.read_expert(*expert) for expert in self.experts}
        memory = room * -(-self.model.expert_bytes // 4096) * 4096
        self.spec = PoolSpec(
            POOL, "tiny", "default", source, workers_per_pod=2, memory_per_worker_bytes=memory, workers=workers
        )
        self._numbers = iter(range(10**6))
        self.run(self._begin())

    # ---- what tests do

    def run(self, work: Awaitable[_Answer]) -> _Answer:
        async def bounded() -> _Answer:
            async with asyncio.timeout(PATIENCE_S):
                return await work

        return self.loop.run_until_complete(bounded())

    def until(self, true: Callable[[], object]) -> None:
        """Let the pool run until something holds."""

        async def wait() -> None:
            while not true():
                await self.controller.changes.wait(self.controller.changes.count, 0.02)

        self.run(wait())

    def configure(self, **changes: Any) -> None:
        self.spec = replace(self.spec, **changes)

        async def tell() -> None:
            self.controller.configure(self.controller.incarnation, 1, 1, self.spec)

        self.run(tell())

    def request(self, target: Placement, cause: Cause) -> Request:
        """A plan as the operator makes it: from what the controller tells."""
        return plan(self.controller, f"op-{next(self._numbers)}", target, cause)

    def begin(self, request: Request) -> Operation:
        return self.run(self.controller.reconfigure_aside(request))

    def settled(self) -> bool:
        return self.controller.operations.running is None

    def whole(self) -> bool:
        """Every worker that is to be there is, nothing is under way, and every expert is served."""
        live = [one for one in self.controller.fleet.all() if one.live]
        return (
            self.settled()
            and {one.id for one in live} == set(self.launcher.running)
            and len(live) == len(SLOTS)
            and len(self.ready()) >= (self.spec.workers or 0)
            and self.controller.lost_experts() == ()
        )

    def ready(self) -> list[str]:
        return [one.id for one in self.controller.fleet.all() if one.condition is Condition.READY]

    def spread(self, names: list[str]) -> Placement:
        return {expert: {names[number % len(names)]: 1.0} for number, expert in enumerate(self.experts)}

    def resident(self) -> dict[str, dict[Expert, bytes]]:
        """What every worker that runs has in its slots, read by its compute thread, which alone maps and unmaps."""
        found: dict[str, dict[Expert, bytes]] = {}
        for name, (_, worker) in self.launcher.running.items():
            found[name] = _mapped(worker)
        return found

    def assert_bytes(self) -> None:
        for name, experts in self.resident().items():
            wrong = [expert for expert, page in experts.items() if page != self.pages[expert]]
            assert not wrong, f"{name} has other bytes than the checkpoint for {wrong}"

    def close(self) -> None:
        self.run(self.controller.stop())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()
        self.launcher.close()

    async def _begin(self) -> None:
        async def inspect(source: str, revision: str, dtype: str) -> ModelFacts:
            return replace(self.model, source=source, revision=revision, dtype=dtype)

        self.controller = PoolController(
            SETTINGS, self.launcher, FakeEngines(), ControlLink, inspect, new_id=lambda: f"{next(self._numbers):04}"
        )
        await self.controller.start()
        self.controller.configure(self.controller.incarnation, 1, 1, self.spec)


def _mapped(worker: ExpertWorker) -> dict[Expert, bytes]:
    assert worker._memory is not None
    store = worker._memory.store
    found: dict[Expert, bytes] = {}

    def read() -> None:
        for expert, (slot, _) in list(store._mapped.items()):
            found[expert] = bytes(store._arena.tensor(slot)[: store.page_bytes].numpy())

    store._turns.run(read)
    return found


def footprint() -> dict[str, int]:
    """What this process has open, mapped and running."""
    gc.collect()
    mappings = Path("/proc/self/maps").read_text().splitlines()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "page mappings": sum("flexpert-page" in line for line in mappings),
        "threads": threading.active_count(),
    }


__all__ = ["POOL", "SLOTS", "RealPool", "footprint"]
