"""Page owners that a launcher starts beside its workers: one a pod, shared, replaced when it dies."""

import asyncio
import os
import signal
import tempfile

import memory_pages
import msgspec
import pytest
from memory_checkpoint import TinyCheckpoint

from flexpert_workers.expert.control_client import ControlClient
from flexpert_workers.memory.client import OwnerClient
from flexpert_workers.memory.host import HostBackend
from flexpert_workers.messages import control
from flexpert_workers.pool.owners import owner_domain, owner_socket
from flexpert_workers.pool.state import PoolSpec, Slot
from flexpert_workers.pool.subprocesses import Host, SubprocessWorkers

EVERYTHING = tuple((layer, index, ()) for layer in range(2) for index in range(8))


@pytest.fixture
def files(tmp_path):
    return TinyCheckpoint(tmp_path)


@pytest.fixture
def spec(files):
    return PoolSpec("uid", "name", "default", files.source, workers_per_pod=2, memory_per_worker_bytes=1 << 24)


@pytest.fixture
def launcher():
    with tempfile.TemporaryDirectory(prefix="fx") as folder:
        slots = [Slot("a/0", pod="a"), Slot("a/1", pod="a", number=1), Slot("b/0", pod="b")]
        made = SubprocessWorkers(slots, Host(socket_dir=folder))
        made.folder = folder
        yield made
        made.kill_all()


async def started(launcher, worker, slot, spec):
    """A client of a worker that was started in a slot."""
    await launcher.start(worker, (await launcher.slots())[slot], spec)
    while True:
        for one in await launcher.list():
            if one.worker == worker and one.control_endpoint:
                return ControlClient(one.control_endpoint)
        await asyncio.sleep(0.05)


async def prepared(client, operation):
    """What came of a worker's bringing every expert."""
    await asyncio.to_thread(client.request, control.Prepare(operation, EVERYTHING), 60)
    while True:
        status = await asyncio.to_thread(client.request, control.AskPrepare(operation), 60)
        if status.done:
            return status
        await asyncio.sleep(0.02)


def handed_back(path, hello):
    """Wait until the owner at a path has every expert again."""
    probe = OwnerClient(path, hello, HostBackend())
    probe.connect(60)
    memory_pages.until(lambda: probe.owner_state().lent == 16)
    probe.close()


def domain(client):
    return client.request(control.Describe(), 60).domain


async def test_the_workers_of_a_pod_share_an_owner_that_outlives_them_and_is_replaced(launcher, spec, files):
    first = await started(launcher, "w0", 0, spec)
    assert (await prepared(first, "op")).attached_experts == 0
    second = await started(launcher, "w1", 1, spec)
    assert (await prepared(second, "op")).attached_experts == 16
    elsewhere = await started(launcher, "w2", 2, spec)
    assert domain(first) == domain(second) != domain(elsewhere) != ""
    assert (await prepared(elsewhere, "op")).attached_experts == 0

    os.kill(launcher.pid("w0"), signal.SIGKILL)
    third = await started(launcher, "w3", 0, spec)
    assert (await prepared(third, "op")).attached_experts == 16

    died = launcher.owners.pid("a")
    os.kill(died, signal.SIGKILL)
    while launcher.owners.pid("a") == died:
        await launcher.list()
        await asyncio.sleep(0.05)
    path = owner_socket(launcher.folder, owner_domain("a", spec))
    await asyncio.to_thread(handed_back, path, msgspec.structs.replace(files.hello("probe"), pool="uid"))
    await asyncio.to_thread(third.request, control.Rollback("op"), 60)
    for attempt in range(1000):
        again = await prepared(third, f"again-{attempt}")
        if not again.error:
            break
        await asyncio.sleep(0.02)
    assert again.attached_experts == 16
    for client in (first, second, third, elsewhere):
        client.close()
