"""A whole worker on a GPU: its pages, its kernels, its owner. Here the driver is played; `tests/gpu` has a real one."""

import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import expert_harness as harness
import fake_cuda
import memory_pages
import msgspec
import pytest
import torch

from flexpert_workers.checkpoint import open_checkpoint
from flexpert_workers.errors import DeviceUnavailable, PageError
from flexpert_workers.expert import ExpertWorker
from flexpert_workers.expert.control_client import ControlClient
from flexpert_workers.memory.devices import DeviceOpener, open_device
from flexpert_workers.memory.owner import OwnerConfig
from flexpert_workers.memory.owner.process import OwnerProcess
from flexpert_workers.messages import control

ALL = harness.all_experts()
PLAYED = str(Path(__file__).parent / "fake_cuda_process.py")
BUDGET = 64 << 20


@dataclass(frozen=True)
class World:
    """A device: its name, what opens it in this process, and how programs that open it are run."""

    name: str
    opener: DeviceOpener
    worker: tuple = ("-m", "flexpert_workers.expert")
    owner: tuple = ("-m", "flexpert_workers.memory.owner")


@pytest.fixture
def world():
    cuda = fake_cuda.FakeCuda()
    yield World("cuda:1", fake_cuda.open_fake(cuda), (PLAYED, "expert"), (PLAYED, "owner"))
    assert cuda.leaked() == {"handles": 0, "ranges": 0, "mappings": 0}


@pytest.fixture(scope="module", params=["mixtral", "gpt_oss"])
def model(request, tmp_path_factory):
    return harness.make_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="fx") as path:
        yield path


def owner_config(world, model, folder, name="owner"):
    return OwnerConfig(
        domain=name,
        pool=harness.POOL,
        source=model.source,
        dtype="Auto",
        budget_bytes=BUDGET,
        socket=f"{folder}/{name}.sock",
        bind_host="127.0.0.1",
        socket_dir=folder,
        device=world.name,
    )


def worker_config(world, model, folder, name="w", owner="owner"):
    config = harness.make_config(name, model.source, folder, memory_bytes=BUDGET)
    return msgspec.structs.replace(config, owner_socket=f"{folder}/{owner}.sock" if owner else "", device=world.name)


@contextmanager
def owning(world, config):
    owner = OwnerProcess(config, world.opener)
    owner.start()
    try:
        yield
    finally:
        owner.stop()


@contextmanager
def working(world, config):
    worker = ExpertWorker(config, world.opener)
    worker.start()
    client = ControlClient(worker.control_endpoint)
    try:
        yield worker, client
    finally:
        client.close()
        worker.stop()


@contextmanager
def dispatching(worker, client):
    with harness.Engine(worker, client.request(control.Describe(), 30).digest) as engine:
        yield engine


def assert_computes(engine, model, seed=0):
    """Every layer computes what the architecture's own experts compute on the CPU."""
    for layer in range(2):
        hidden, index, weights = harness.routed(24, 8, 2, seed=seed)
        expected = model.reference(layer, hidden, index, weights)
        torch.testing.assert_close(engine.sums(layer, hidden, index, weights), expected, rtol=1e-3, atol=1e-4)


def test_experts_are_filled_mapped_and_computed_from_as_on_the_cpu(world, model, folder):
    checkpoint = open_checkpoint(model.source)
    with (
        owning(world, owner_config(world, model, folder)),
        working(world, worker_config(world, model, folder)) as (worker, client),
        dispatching(worker, client) as engine,
    ):
        status = harness.prepare(client, "op", ALL)
        assert (status.error, status.copied_experts, status.attached_experts) == ("", 16, 0)
        for key in ALL:
            assert harness.mapped_bytes(worker, key) == checkpoint.read_expert(*key)
        assert_computes(engine, model)


def test_a_worker_without_an_owner_process_has_its_pages_on_its_device(world, model, folder):
    with (
        working(world, worker_config(world, model, folder, owner="")) as (worker, client),
        dispatching(worker, client) as engine,
    ):
        assert harness.prepare(client, "op", ALL).error == ""
        assert_computes(engine, model)


def test_a_second_process_attaches_and_one_that_was_killed_comes_back_without_a_byte_copied(world, model, folder):
    with memory_pages.owner_process(owner_config(world, model, folder), world.owner):
        with harness.worker_process(worker_config(world, model, folder, "a"), world.worker) as (process, ready):
            with ControlClient(ready()["control_endpoint"]) as client:
                assert harness.prepare(client, "op", ALL, timeout_s=120).error == ""
            with working(world, worker_config(world, model, folder, "b")) as (worker, client):
                status = harness.prepare(client, "op", ALL)
                assert (status.attached_experts, status.copied_bytes) == (16, 0)
                with dispatching(worker, client) as engine:
                    assert_computes(engine, model)
            process.kill()
            process.wait()
        with (
            working(world, worker_config(world, model, folder, "c")) as (worker, client),
            dispatching(worker, client) as engine,
        ):
            status = harness.prepare(client, "op", ALL)
            assert (status.attached_experts, status.copied_bytes) == (16, 0)
            assert_computes(engine, model)


def test_slots_are_remapped_beside_dispatches_of_their_neighbours(world, model, folder):
    """One layer is computed from without a pause while experts of the other come and go."""
    with (
        owning(world, owner_config(world, model, folder)),
        working(world, worker_config(world, model, folder)) as (worker, client),
        dispatching(worker, client) as engine,
    ):
        harness.prepare(client, "kept", [key for key in ALL if key[0] == 0])
        hidden, index, weights = harness.routed(64, 8, 2)
        expected = engine.sums(0, hidden, index, weights)
        ended, outputs = threading.Event(), []

        def compute():
            while not ended.is_set():
                outputs.append(engine.sums(0, hidden, index, weights))

        neighbour = threading.Thread(target=compute)
        neighbour.start()
        try:
            for number in range(40):
                moved = [(1, (number + step) % 8) for step in range(3)]
                assert harness.prepare(client, f"op{number}", moved).error == ""
                assert not isinstance(client.request(control.Rollback(f"op{number}"), 30), control.Refused)
        finally:
            ended.set()
            neighbour.join()
        assert outputs
        assert all(torch.equal(output, expected) for output in outputs)
        assert client.request(control.Describe(), 30).experts == tuple(key for key in ALL if key[0] == 0)


def test_pages_are_copied_between_two_owners_of_devices(world, model, folder):
    checkpoint = open_checkpoint(model.source)
    with (
        owning(world, owner_config(world, model, folder, "one")),
        owning(world, owner_config(world, model, folder, "two")),
        working(world, worker_config(world, model, folder, "a", "one")) as (_, source),
        working(world, worker_config(world, model, folder, "b", "two")) as (worker, target),
    ):
        harness.prepare(source, "op", ALL)
        peers = [source.request(control.Describe(), 30).transfer_endpoint]
        status = harness.prepare(target, "op", [(*key, peers) for key in ALL])
        assert (status.error, status.from_peers) == ("", 16)
        for key in ALL:
            assert harness.mapped_bytes(worker, key) == checkpoint.read_expert(*key)


def test_what_a_worker_says_it_has_room_for_fits_with_its_padding(world, model, folder):
    """Plans are made from it: what it promises must not be refused once copies are under way."""
    layout = open_checkpoint(model.source).layout
    footprint = world.opener(world.name, computes=False, copies=False).backend.footprint(layout.page_bytes)
    assert footprint > layout.page_bytes
    config = msgspec.structs.replace(worker_config(world, model, folder, owner=""), memory_bytes=4 * footprint + 1)
    with working(world, config) as (_, client):
        assert client.request(control.Describe(), 30).memory_bytes == 4 * layout.page_bytes
        assert harness.prepare(client, "all", ALL[:4]).error == ""
        assert harness.prepare(client, "more", ALL[4:5]).kind == "capacity"
        assert client.request(control.Describe(), 30).resident_bytes == 4 * layout.page_bytes


def test_a_worker_on_another_device_than_its_owner_is_refused(world, model, folder):
    with owning(world, owner_config(world, model, folder)):
        on_the_host = msgspec.structs.replace(worker_config(world, model, folder), device="cpu")
        worker = ExpertWorker(on_the_host)
        with pytest.raises(PageError, match="not in host: give both one device"):
            worker.start()
        worker.stop()


def test_a_device_that_is_not_there_is_named():
    for name in ("gpu", "cuda", "cuda:", "metal:0"):
        with pytest.raises(DeviceUnavailable, match='give "cpu", "cuda:N" or "cuda:UUID"'):
            open_device(name, computes=True, copies=False)
    absent = "cuda:GPU-00000000-0000-0000-0000-000000000000"
    with pytest.raises(DeviceUnavailable, match=f"device {absent} was asked for.*set the device to cpu"):
        open_device(absent, computes=True, copies=False)


def test_programs_say_that_their_device_is_not_there(model, folder):
    world = World("cuda:99", open_device)
    with memory_pages.owner_process(owner_config(world, model, folder)) as (process, said):
        assert said["error"] == "DeviceUnavailable"
        assert process.wait(60) == 3
    with harness.worker_process(worker_config(world, model, folder)) as (process, ready):
        assert "cuda:99 was asked for" in ready()["message"]
        assert process.wait(60) == 3


def test_cuda_is_imported_only_when_it_is_asked_for():
    program = (
        "import sys; from flexpert_workers.memory.devices import open_device; "
        "open_device('cpu', computes=True, copies=True); "
        "sys.exit(any(name.split('.')[0] in ('cuda', 'cupy', 'torch') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
