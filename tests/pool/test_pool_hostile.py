"""Faults that are no deaths, each while experts are brought to a third worker: the operation rolls back and says why.

Two workers serve all the while; the old table stands, every sum is right, and without the fault the same plan succeeds.
The pool controller is the real one, workers and page owners are processes, and what goes wrong goes wrong for real.
"""

import asyncio
import resource
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from os import kill
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pool_cables import READ_BYTES, Cable, State, unharmed
from pool_processes import (
    EXPERTS,
    LAYERS,
    PATIENCE_S,
    POOL,
    Dispatching,
    Processes,
    differing,
    engine_of,
    impatient,
    patient,
    rounds,
    spread,
)

from flexpert_workers.memory.client import OwnerClient
from flexpert_workers.memory.host import HostBackend
from flexpert_workers.memory.loans import Want
from flexpert_workers.messages.owner import Hello
from flexpert_workers.pool.owners import owner_domain, owner_socket
from flexpert_workers.pool.state import Cause, LaunchedWorker, Operation, Phase, Slot
from flexpert_workers.pool.subprocesses import Host, SubprocessWorkers

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

PAGE_BYTES = 3 * 64 * 96 * 4
ROOM = 12
"""Pages that a worker, and its owner, have room for; a pool has `LAYERS * EXPERTS` experts."""


class CabledWorkers(SubprocessWorkers):
    """Workers whose control sockets are reached over cables, and so are the page servers of their owners.

    Attributes:
        cables: By worker.
        owner_cables: By endpoint.
    """

    def __init__(self, slots: list[Slot], host: Host) -> None:
        super().__init__(slots, host)
        self.cables: dict[str, Cable] = {}
        self.owner_cables: dict[str, Cable] = {}

    async def list(self) -> tuple[LaunchedWorker, ...]:
        """Every worker whose process runs; before anybody hears of one, its cable is there."""
        running = await super().list()
        for one in running:
            if one.control_endpoint and one.worker not in self.cables:
                self.cables[one.worker] = Cable(one.control_endpoint.removeprefix("ipc://"))
        return running

    def put_between_owners(self, endpoints: Iterable[str]) -> None:
        """Put a cable in front of each page server that has none yet, before anybody copies from it."""
        for endpoint in endpoints:
            if endpoint not in self.owner_cables:
                self.owner_cables[endpoint] = Cable(endpoint.removeprefix("ipc://"))


class CabledProcesses(Processes):
    """A controller over workers behind cables."""

    launcher: CabledWorkers


@dataclass
class Scene:
    """Two workers that serve, a third that holds nothing, and somebody who never stops dispatching."""

    rig: Any
    processes: CabledProcesses
    dispatching: Dispatching
    names: list[str]

    @property
    def third(self) -> str:
        """The worker that experts are to be brought to."""
        holders = {address.worker for address in self.rig.controller.keeper.table.workers}
        ready = [one.id for one in self.rig.controller.fleet.all() if one.live and one.id not in holders]
        return str(ready[0])

    @property
    def pod(self) -> str:
        """Of the third worker."""
        return str(self.rig.controller.fleet.workers[self.third].slot.pod)

    def cable_to_third(self) -> Cable:
        """Between the pool controller and the third worker."""
        return self.processes.launcher.cables[self.third]

    @contextmanager
    def between_owners(
        self, bytes_per_s: float | None = None, harm: Callable[[bytes], bytes] = unharmed
    ) -> Iterator[None]:
        """Have what goes from one page owner to another go slowly, or come to harm."""
        cables = self.processes.launcher.owner_cables.values()
        for cable in cables:
            cable.bytes_per_s, cable.harm = bytes_per_s, harm
        try:
            yield
        finally:
            for cable in cables:
                cable.bytes_per_s, cable.harm = None, unharmed

    def forget_what_is_idle(self) -> None:
        """Have the page owners keep no page that nobody borrows: what comes is copied, not attached."""
        for worker in self.rig.controller.fleet.all():
            if worker.live:
                stranger = self.borrower(str(worker.slot.pod))
                stranger.drop_idle()
                stranger.close()

    def borrower(self, pod: str) -> OwnerClient:
        """Somebody else who borrows from a pod's page owner."""
        launcher, digest = self.processes.launcher, self.rig.controller.model.digest
        path = owner_socket(launcher._host.socket_dir, owner_domain(pod, self.processes.spec))
        client = OwnerClient(path, Hello("stranger", POOL, digest, PAGE_BYTES, LAYERS * EXPERTS), HostBackend())
        client.connect(PATIENCE_S)
        return client

    async def grow(self, name: str) -> Operation:
        """Bring a third of the experts to the third worker."""
        target = spread([*self.names, self.third])
        operation: Operation = await self.rig.reconfigure(self._own(name), target)
        return operation

    async def was_rolled_back(self, operation: Operation, *reasons: str) -> None:
        """It came to nothing, the message says why, and who dispatches has not noticed."""
        assert operation.phase is Phase.ROLLED_BACK, operation
        assert any(reason in operation.message for reason in reasons), operation.message
        placed = {address.worker for address in self.rig.controller.keeper.table.workers}
        assert placed == set(self.names)
        await rounds(self.rig, self.dispatching, 3)

    async def is_well(self) -> None:
        """Without the fault the same plan succeeds; then the third worker is emptied again."""
        await self.rig.ready(3, timeout_s=PATIENCE_S)
        grown = await self.grow("grow-again")
        assert grown.phase is Phase.SUCCEEDED, grown.message
        await rounds(self.rig, self.dispatching, 3)
        assert await asyncio.to_thread(differing, self.rig, self.processes.spec.source) == []
        await self.shrink()

    async def shrink(self) -> None:
        """Empty the third worker again."""
        back = await self.rig.reconfigure(self._own("shrink"), spread(self.names))
        assert back.phase is Phase.SUCCEEDED, back.message
        await rounds(self.rig, self.dispatching, 3)

    def _own(self, name: str) -> str:
        """An operation's id that no other scene has: workers remember the ones they know."""
        return f"{name}-{self.rig.controller.keeper.term}"


@dataclass
class Stage:
    """What all scenes share: the processes, and how often a controller has been made."""

    processes: CabledProcesses
    dispatching: Dispatching | None = None
    term: int = 0

    @asynccontextmanager
    async def scene(self, change: Callable[[Any], Any] = lambda settings: settings) -> AsyncIterator[Scene]:
        """A new controller over the workers that run."""
        rig = await self.processes.again(lambda settings: change(hard(settings)))
        self.term += 1
        rig.controller.configure(rig.controller.incarnation, self.term, 1, self.processes.spec)
        names = await rig.ready(3, timeout_s=PATIENCE_S)
        states = [worker.state for worker in rig.controller.fleet.all() if worker.live]
        self.processes.launcher.put_between_owners(state.transfer_endpoint for state in states)
        if rig.controller.keeper.table is None:
            initial = await rig.reconfigure("initial", spread(names[:2]), Cause.INITIAL)
            assert initial.phase is Phase.SUCCEEDED, initial.message
        await rig.until(lambda: rig.controller.keeper.epoch.term == self.term, PATIENCE_S)
        await rig.controller.operations.settled()
        holders = sorted({address.worker for address in rig.controller.keeper.table.workers})
        scene = Scene(rig, self.processes, self._dispatching(rig), holders[:2])
        engine = engine_of(rig, scene.dispatching)
        try:
            await rounds(rig, scene.dispatching, 3)
            if len(holders) > 2:  # an earlier test ended in the midst of it
                await scene.shrink()
            await asyncio.to_thread(scene.forget_what_is_idle)
            yield scene
        finally:
            engine.cancel()
        assert scene.dispatching.wrong == []

    def _dispatching(self, rig: Any) -> Dispatching:
        if self.dispatching is None:
            self.dispatching = Dispatching(self.processes.spec.source, rig.controller.model.digest)
            self.dispatching.start()
        return self.dispatching


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(
    tiny_checkpoint: str,
    tmp_path_factory: pytest.TempPathFactory,
    controller_settings: Any,
    rig_type: Any,
    new_slot: Callable[[int], Slot],
) -> AsyncIterator[Stage]:
    model = tmp_path_factory.mktemp("hostile") / "model"
    shutil.copytree(tiny_checkpoint.removeprefix("file://"), model)
    with tempfile.TemporaryDirectory(prefix="fxh") as folder:
        launcher = CabledWorkers([new_slot(number) for number in range(3)], Host(socket_dir=f"{folder}/s"))
        processes = CabledProcesses(f"file://{model}", launcher, lambda: patient(controller_settings()), rig_type)
        processes.spec = replace(processes.spec, memory_per_worker_bytes=ROOM * PAGE_BYTES)
        made = Stage(processes)
        try:
            yield made
        finally:
            if made.dispatching is not None:
                made.dispatching.stop()
            await processes.close()
            for cable in (*launcher.cables.values(), *launcher.owner_cables.values()):
                cable.remove()


def hard(settings: Any) -> Any:
    """A worker that keeps silent is given up soon, but not one that is slow on a busy machine."""
    patience = replace(settings.patience, answer_s=4.0, misses=2)
    return replace(impatient(settings), patience=patience)


def short_of_time(settings: Any) -> Any:
    """What is not prepared within seconds is not prepared at all."""
    return replace(settings, deadlines=replace(settings.deadlines, prepare_s=4.0))


async def test_a_worker_that_is_cut_off_but_lives(stage: Stage) -> None:
    """It hears nothing and is not heard; it is given up, and its process is ended."""
    async with stage.scene() as scene:
        lost, cable = scene.third, scene.cable_to_third()
        cable.be(State.SILENT)
        await scene.was_rolled_back(await scene.grow("silent"), lost)
        await scene.rig.until(lambda: lost not in scene.rig.controller.fleet.live(), PATIENCE_S)
        await scene.rig.until(lambda: lost not in names_of(scene.processes.launcher), PATIENCE_S)
        await scene.is_well()


async def test_a_worker_that_refuses_every_connection_but_lives(stage: Stage) -> None:
    async with stage.scene(short_of_time) as scene:
        with scene.between_owners(bytes_per_s=8000):
            lost, cable = scene.third, scene.cable_to_third()
            growing = asyncio.create_task(scene.grow("refused"))
            await scene.rig.until(lambda: scene.rig.controller.operations.running is not None)
            cable.be(State.CUT)
            await scene.was_rolled_back(await growing, lost)
        await scene.is_well()


async def test_a_link_that_is_too_slow(stage: Stage) -> None:
    async with stage.scene(short_of_time) as scene:
        with scene.between_owners(bytes_per_s=30_000):
            await scene.was_rolled_back(await scene.grow("slow"), "did not prepare in time")
        await scene.is_well()


async def test_pages_that_arrive_damaged_where_there_is_no_file(stage: Stage) -> None:
    """With the file the pages are read from there; see `test_pages_that_arrive_damaged_are_read_from_the_file`."""
    async with stage.scene() as scene:
        with without_weights(scene.processes.spec.source), scene.between_owners(harm=flip):
            await scene.was_rolled_back(await scene.grow("damaged"), "arrived damaged")
        await scene.is_well()


async def test_pages_that_arrive_damaged_are_read_from_the_file(stage: Stage) -> None:
    async with stage.scene() as scene:
        with scene.between_owners(harm=flip):
            operation = await scene.grow("healed")
            assert operation.phase is Phase.SUCCEEDED, operation.message
        assert await asyncio.to_thread(differing, scene.rig, scene.processes.spec.source) == []
        await scene.shrink()


async def test_an_owner_that_gets_no_more_memory(stage: Stage) -> None:
    """To a page in RAM that is what a full disk is to a file: `fallocate` fails."""
    async with stage.scene() as scene:
        owner = scene.processes.launcher.owners.pid(scene.pod)
        before = resource.prlimit(owner, resource.RLIMIT_FSIZE, (PAGE_BYTES - 1, resource.RLIM_INFINITY))
        try:
            await scene.was_rolled_back(await scene.grow("full"), "can be made")
        finally:
            resource.prlimit(owner, resource.RLIMIT_FSIZE, before)
        await scene.is_well()


async def test_an_owner_at_its_budget(stage: Stage) -> None:
    async with stage.scene() as scene:
        placed = spread([*scene.names, scene.third])
        coming = [expert for expert, shares in placed.items() if scene.third in shares]
        others = [expert for expert in placed if expert not in coming][:ROOM]
        stranger = await asyncio.to_thread(scene.borrower, scene.pod)
        try:
            held = await asyncio.to_thread(lambda: list(stranger.acquire([Want(expert) for expert in others])))
            assert len(held) + len(coming) > ROOM
            await scene.was_rolled_back(await scene.grow("no-room"), "do not fit")
        finally:
            await asyncio.to_thread(stranger.close)
        await scene.is_well()


async def test_an_owner_that_hangs(stage: Stage) -> None:
    async with stage.scene() as scene:
        owner = scene.processes.launcher.owners.pid(scene.pod)
        kill(owner, signal.SIGSTOP)
        try:
            await scene.was_rolled_back(await scene.grow("hung-owner"), "page owner")
        finally:
            kill(owner, signal.SIGCONT)
        await scene.is_well()


@contextmanager
def without_weights(source: str) -> Iterator[None]:
    """The checkpoint's file is away."""
    weights = Path(source.removeprefix("file://"), "model.safetensors")
    away = weights.with_suffix(".away")
    weights.rename(away)
    try:
        yield
    finally:
        away.rename(weights)


def flip(data: bytes) -> bytes:
    """One bit of what can only be a page's bytes: requests and headers are shorter than what is read at a time."""
    return data[:-1] + bytes([data[-1] ^ 1]) if len(data) == READ_BYTES else data


def names_of(launcher: SubprocessWorkers) -> set[str]:
    """Workers whose processes run."""
    return {worker for worker, (_, process) in launcher._processes.items() if process.running}
