"""A pool of real processes for `bench_elastic`: controller here; workers, page owners and an engine as processes.

What the operator would do is done here, with the same solver: grant a term, ask for a size, plan, have it carried out.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import grpc.aio

from flexpert_placement import ExpertId, Placement, PlacementProblem, WorkerCapacity, make_plan, solve
from flexpert_proto import names
from flexpert_workers import allocator, threads
from flexpert_workers.pool.controller import PoolController, Settings
from flexpert_workers.pool.inspector import inspect_in_subprocess
from flexpert_workers.pool.links import ControlLink
from flexpert_workers.pool.service import serve
from flexpert_workers.pool.state import (
    Cause,
    Condition,
    Expert,
    ModelFacts,
    Move,
    Operation,
    Phase,
    PoolSpec,
    Request,
    Slot,
)
from flexpert_workers.pool.subprocesses import Host, SubprocessEngines, SubprocessWorkers
from flexpert_workers.pool.tables import placement_of

UID, NAME, HOST = "bench", "bench", "127.0.0.1"
SHARED_POD = "shared"
"""Its workers have one page owner."""
WAIT_S = 300.0
POLL_S = 0.02
KV_CACHE_BYTES = 64 << 20
TERM = 1
BIND_TRIES = 50

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Change:
    """A size reached: times in seconds of the monotonic clock; `step_seconds` as the controller tells them."""

    begun: float
    in_force: float
    finished: float
    operation: Operation
    solve_s: float


class Pool:
    """A pool that grows, shrinks and restarts. Made and used within one event loop."""

    def __init__(self, source: str, memory_per_worker_bytes: int, stack: ExitStack) -> None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fxe"))
        self.port = free_port()
        self._host = Host(HOST, str(Path(folder) / "s"), {**allocator.environment(), "GRPC_VERBOSITY": "NONE"})
        self._spec = PoolSpec(
            uid=UID,
            name=NAME,
            namespace="default",
            source=source,
            max_batch_tokens=512,
            kv_cache_bytes=KV_CACHE_BYTES,
            engine_threads=1,
            workers_per_pod=3,
            memory_per_worker_bytes=memory_per_worker_bytes,
            worker_threads=1,
        )
        self._operations = 0
        self._server: grpc.aio.Server | None = None
        self._processes: tuple[SubprocessWorkers, SubprocessEngines] | None = None
        self._controller: PoolController | None = None

    @property
    def controller(self) -> PoolController:
        """The present incarnation of the pool's controller."""
        assert self._controller is not None, "the pool has not been started"
        return self._controller

    @property
    def launcher(self) -> SubprocessWorkers:
        """What starts the present workers."""
        assert self._processes is not None, "the pool has not been started"
        return self._processes[0]

    # ---- life

    async def start(self, size: int) -> Change:
        """Start everything from nothing: controller, page owner, workers and engine; returns when it serves."""
        begun = now()
        workers = SubprocessWorkers([Slot(f"slot-{number}", SHARED_POD) for number in range(size)], self._host)
        engines = SubprocessEngines(f"{HOST}:{self.port}", self._host)
        self._processes = workers, engines
        self._controller = PoolController(Settings(UID), workers, engines, ControlLink, inspect_in_subprocess)
        await self._controller.start()
        self._server = await bound(self._controller, self.port)
        self.want(size)
        return await self._reach(size, begun, Cause.INITIAL)

    async def stop(self) -> None:
        """End everything, now."""
        if self._server is not None:
            await self._server.stop(None)
            await self.controller.stop()
            self._server = None
        if self._processes is not None:
            for launcher in self._processes:
                launcher.kill_all()
            self._processes = None

    async def cold_restart(self, size: int) -> Change:
        """End everything and start it anew at another size."""
        begun = now()
        await self.stop()
        return replace(await self.start(size), begun=begun)

    # ---- sizes

    def want(self, size: int) -> None:
        """Tell the controller how many workers are to serve; the others stand by."""
        controller = self.controller
        controller.configure(controller.incarnation, TERM, 1, replace(self._spec, workers=size))

    async def add_standby(self, slot: str, pod: str) -> None:
        """Have a worker stand by in a new slot."""
        self.launcher.add_slot(Slot(slot, pod))
        await self._until(lambda: Condition.STANDBY in self._conditions() or None)

    async def grow(self, size: int, new_slot: Slot | None, peers: bool) -> Change:
        """Have `size` workers serve.

        Args:
            size: One more than serve now.
            new_slot: Of a worker that is to be started; None for the one that stands by.
            peers: Whether experts may be copied from other workers' owners; else they come from the file.
        """
        begun = now()
        if new_slot is not None:
            self.launcher.add_slot(new_slot)
        self.want(size)
        return await self._reach(size, begun, Cause.SCALE, peers)

    async def shrink(self, slot: str) -> Change:
        """Empty the worker of a slot and end it."""
        begun = now()
        workers = self.controller.fleet.all()
        (victim,) = (one.id for one in workers if one.slot and one.slot.id == slot and one.live)
        size = len(self._serving()) - 1
        self.controller.drain((victim,), undo=False)
        self.want(size)
        change = await self._reach(size, begun, Cause.SCALE)
        await self._until(lambda: victim not in self.controller.fleet.live() or None)
        await self.launcher.remove_slot(slot)
        return change

    # ---- small things

    async def _reach(self, size: int, begun: float, cause: Cause, peers: bool = True) -> Change:
        serving = await self._until(lambda: found if len(found := self._serving()) == size else None)
        model = await self._until(lambda: self.controller.model)
        solving = now()
        request = await asyncio.to_thread(self._plan, model, serving, cause, peers)
        solve_s = now() - solving
        self.controller.reconfigure(request)
        in_force = await self._until(lambda: self._in_force(request.operation))
        operation = await self._until(lambda: self._finished(request.operation))
        if operation.phase is not Phase.SUCCEEDED:
            raise SystemExit(f"the pool did not reach {size} workers: {operation.message}")
        return Change(begun, in_force, now(), operation, solve_s)

    def _plan(self, model: ModelFacts, serving: tuple[str, ...], cause: Cause, peers: bool) -> Request:
        current: Placement = {
            ExpertId(*expert): row for expert, row in placement_of(self.controller.keeper.table).items()
        }
        capacity = tuple(WorkerCapacity(worker, self._spec.memory_per_worker_bytes) for worker in serving)
        even = ((1.0,) * model.experts,) * model.layers
        target = solve(PlacementProblem(even, model.expert_bytes, capacity, current, max_replicas=1)).placement
        plan = make_plan(current, target)
        moves = tuple(Move(move.expert, move.target, move.sources if peers else ()) for move in plan.moves)
        self._operations += 1
        placed: dict[Expert, Mapping[str, float]] = {(e.layer, e.index): row for e, row in target.items()}
        return Request(f"change-{self._operations}", cause, self.controller.keeper.epoch, moves, placed)

    def _serving(self) -> tuple[str, ...]:
        return tuple(one.id for one in self.controller.fleet.all() if one.condition is Condition.READY)

    def _conditions(self) -> set[Condition]:
        return {one.condition for one in self.controller.fleet.all()}

    def _in_force(self, operation: str) -> float | None:
        """The time, once an engine serves by the table of an operation; at once for one that has failed."""
        found = self.controller.operations.get(operation)
        if found.phase.finished and found.phase is not Phase.SUCCEEDED:
            return now()
        table = self.controller.keeper.table
        if table is None or table.operation != operation:
            return None
        engines = self.controller.engines.engines()
        serving = any(one.condition is Condition.READY and one.epoch >= table.epoch for one in engines)
        return now() if serving else None

    def _finished(self, operation: str) -> Operation | None:
        found = self.controller.operations.get(operation)
        return found if found.phase.finished and self.controller.operations.running is None else None

    async def _until(self, find: Callable[[], _Value | None]) -> _Value:
        """What `find` gives, once it gives something; it is asked at every change of the pool."""
        changes = self.controller.changes
        try:
            async with asyncio.timeout(WAIT_S):
                while (found := find()) is None:
                    await changes.wait(changes.count, POLL_S)
        except TimeoutError:
            seen = ", ".join(f"{one.id} {one.condition}" for one in self.controller.fleet.all())
            raise SystemExit(f"not ready in {WAIT_S:.0f} s: {self.controller.message()}; workers: {seen}") from None
        return found


def ingress_process(port: int, stack: ExitStack) -> tuple[int, str]:
    """An ingress of the pool whose controller listens on `port`: its process id and its address."""
    environment = {
        **os.environ,
        **threads.environment(1),
        names.ENV_POOL_CONTROL: f"{HOST}:{port}",
        names.ENV_BIND_HOST: HOST,
        names.port_variable(names.GRPC_PORT_NAME): "0",
        names.port_variable(names.HTTP_PORT_NAME): "0",
    }
    process = stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-m", "flexpert_workers.ingress"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    )
    stack.callback(process.kill)
    assert process.stdout is not None
    return process.pid, f"{HOST}:{json.loads(process.stdout.readline())['grpc_port']}"


async def bound(controller: PoolController, port: int) -> grpc.aio.Server:
    """A controller's server at a port that an earlier one may just have left."""
    for _ in range(BIND_TRIES):
        with suppress(RuntimeError):
            return (await serve(controller, f"{HOST}:{port}"))[0]
        await asyncio.sleep(POLL_S)
    raise SystemExit(f"port {port} is taken")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def now() -> float:
    """Seconds of the monotonic clock, the same in all processes."""
    return asyncio.get_running_loop().time()
