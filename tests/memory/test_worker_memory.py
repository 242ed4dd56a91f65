"""Expert workers on page owners: what they hold is the checkpoint's, they attach to one owner, and outlive it."""

import tempfile
from contextlib import contextmanager

import expert_harness as harness
import memory_pages
import msgspec
import pytest
import torch

from flexpert_workers.checkpoint import open_checkpoint
from flexpert_workers.expert import ExpertWorker
from flexpert_workers.expert.control_client import ControlClient
from flexpert_workers.memory.owner import OwnerConfig
from flexpert_workers.messages import control

ALL = harness.all_experts()


@pytest.fixture(scope="module", params=["mixtral", "gpt_oss"])
def model(request, tmp_path_factory):
    return harness.make_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def checkpoint(model):
    return open_checkpoint(model.source)


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="fx") as path:
        yield path


def owner_config(model, folder, name="owner", budget_bytes=1 << 28):
    return OwnerConfig(
        domain=name,
        pool=harness.POOL,
        source=model.source,
        dtype="Auto",
        budget_bytes=budget_bytes,
        socket=f"{folder}/{name}.sock",
        bind_host="127.0.0.1",
        socket_dir=folder,
    )


@contextmanager
def running(model, folder, name, owner_socket):
    config = msgspec.structs.replace(harness.make_config(name, model.source, folder), owner_socket=owner_socket)
    worker = ExpertWorker(config)
    worker.start()
    client = ControlClient(worker.control_endpoint)
    try:
        yield worker, client
    finally:
        client.close()
        worker.stop()


def state(client):
    return client.request(control.Describe(), 30)


def test_an_owner_casts_what_is_stored_in_another_type(model, folder):
    half = open_checkpoint(model.source, "BFloat16")
    with memory_pages.owner_process(msgspec.structs.replace(owner_config(model, folder), dtype="BFloat16")):
        config = harness.make_config("w", model.source, folder, dtype="BFloat16")
        worker = ExpertWorker(msgspec.structs.replace(config, owner_socket=f"{folder}/owner.sock"))
        worker.start()
        with ControlClient(worker.control_endpoint) as client:
            assert harness.prepare(client, "op", [(1, 3)], timeout_s=120).error == ""
            assert harness.mapped_bytes(worker, (1, 3)) == half.read_expert(1, 3)
        worker.stop()


def test_two_workers_of_one_owner_share_its_pages(model, checkpoint, folder):
    config = owner_config(model, folder)
    with (
        memory_pages.owner_process(config),
        running(model, folder, "a", config.socket) as (worker, first),
        running(model, folder, "b", config.socket) as (other, second),
    ):
        brought = harness.prepare(first, "op", ALL)
        assert (brought.copied_experts, brought.attached_experts, brought.error) == (16, 0, "")
        assert brought.step_seconds["copy"] > 0
        attached = harness.prepare(second, "op", ALL)
        assert (attached.copied_experts, attached.attached_experts, attached.copied_bytes) == (16, 16, 0)
        assert set(attached.step_seconds) == {"copy", "verify", "map", "populate", "warm-up"}
        assert attached.step_seconds["warm-up"] > 0, "a row went through each"
        for key in ALL:
            expected = checkpoint.read_expert(*key)
            assert harness.mapped_bytes(worker, key) == harness.mapped_bytes(other, key) == expected
        assert state(first).domain == state(second).domain == "owner"


def test_pages_are_copied_between_two_owners(model, checkpoint, folder):
    first, second = owner_config(model, folder, "one"), owner_config(model, folder, "two")
    with (
        memory_pages.owner_process(first),
        memory_pages.owner_process(second),
        running(model, folder, "a", first.socket) as (_, source),
        running(model, folder, "b", second.socket) as (worker, target),
    ):
        harness.prepare(source, "op", ALL[:6])
        peers = [state(source).transfer_endpoint]
        status = harness.prepare(target, "op", [(*key, peers) for key in ALL[:8]])
        assert (status.copied_experts, status.from_peers, status.attached_experts) == (8, 6, 0)
        for key in ALL[:8]:
            assert harness.mapped_bytes(worker, key) == checkpoint.read_expert(*key)


def test_a_worker_comes_back_without_a_byte_copied(model, folder):
    config = owner_config(model, folder)
    worker_config = msgspec.structs.replace(harness.make_config("w", model.source, folder), owner_socket=config.socket)
    with memory_pages.owner_process(config):
        with harness.worker_process(worker_config) as (process, ready):
            with ControlClient(ready()["control_endpoint"]) as client:
                assert harness.prepare(client, "op", ALL).attached_experts == 0
            process.kill()
        with running(model, folder, "w2", config.socket) as (_, client):
            status = harness.prepare(client, "op", ALL)
            assert (status.attached_experts, status.copied_bytes) == (16, 0)


def test_a_worker_serves_on_when_its_owner_dies_and_the_next_owner_has_its_pages(model, checkpoint, folder):
    config = owner_config(model, folder)
    with running_after(config) as start_owner:
        first = start_owner()
        with running(model, folder, "w", config.socket) as (worker, client):
            harness.prepare(client, "op", ALL[:8])
            first.kill()
            first.wait()
            for key in ALL[:8]:
                assert harness.mapped_bytes(worker, key) == checkpoint.read_expert(*key)
            memory_pages.until(lambda: "page owner" in harness.prepare(client, "lost", ALL[8:9]).error)
            assert state(client).experts == tuple(ALL[:8])
            second = start_owner()
            memory_pages.until(lambda: worker._memory.lender.owner_pid == second.pid)
            assert harness.prepare(client, "again", ALL).error == ""
            assert worker._memory.lender.owner_state().lent == 16


@contextmanager
def running_after(config):
    """Starts owners of one domain, one after the other."""
    started = []

    def start():
        context = memory_pages.owner_process(config)
        started.append(context)
        process, _ = context.__enter__()
        return process

    try:
        yield start
    finally:
        for context in started:
            context.__exit__(None, None, None)


def test_an_owner_at_its_budget_makes_prepare_fail_and_nothing_stays(model, checkpoint, folder):
    padded = -(-checkpoint.layout.page_bytes // 4096) * 4096
    config = owner_config(model, folder, budget_bytes=4 * padded)
    with (
        memory_pages.owner_process(config),
        running(model, folder, "w", config.socket) as (worker, client),
    ):
        harness.prepare(client, "one", ALL[:2])
        failed = harness.prepare(client, "two", ALL[2:8])
        assert "do not fit" in failed.error
        assert state(client).experts == tuple(ALL[:2])
        assert worker._memory.lender.owner_state().used_bytes <= config.budget_bytes
        assert harness.prepare(client, "three", ALL[2:4]).error == ""


def test_a_cancelled_preparation_ends_within_a_page(model, folder):
    """A page would take its owner hours at this rate."""
    config = msgspec.structs.replace(owner_config(model, folder), copy_bytes_per_s=20, ahead=0, readers=1)
    with (
        memory_pages.owner_process(config) as (owner, _),
        running(model, folder, "w", config.socket) as (worker, client),
    ):
        mappings = memory_pages.num_page_mappings(owner.pid)
        client.request(control.Prepare("slow", tuple((*key, ()) for key in ALL[:4])), 30)
        memory_pages.until(lambda: memory_pages.num_page_mappings(owner.pid) > mappings)
        memory_pages.until(lambda: not isinstance(client.request(control.Rollback("slow"), 30), control.Refused))
        assert (state(client).experts, state(client).resident_bytes) == ((), 0)
        memory_pages.until(lambda: worker._memory.lender.owner_state().used_bytes == 0)
        assert memory_pages.num_page_mappings(owner.pid) == mappings


def test_an_expert_that_computes_no_numbers_is_not_served(folder, tmp_path):
    torch.manual_seed(7)
    broken = harness.MODELS["mixtral"]()
    with torch.no_grad():
        broken.model.layers[1].mlp.experts.down_proj[3, 0, 0] = float("nan")
    broken.save_pretrained(tmp_path)
    damaged = harness.TinyModel(f"file://{tmp_path}", broken)
    with running(damaged, folder, "w", "") as (_, client):
        failed = harness.prepare(client, "op", [(1, 2), (1, 3)])
        assert "layer 1 expert 3: a row through it gives infinities or no numbers" in failed.error
        assert state(client).experts == ()
        assert harness.prepare(client, "others", [key for key in ALL if key != (1, 3)]).error == ""


def test_two_hundred_reconfigurations_leave_nothing_behind(model, folder):
    config = owner_config(model, folder)
    with (
        memory_pages.owner_process(config) as (owner, _),
        running(model, folder, "w", config.socket) as (worker, client),
    ):

        def cycle(number):
            keys = [ALL[(number + step) % 16] for step in range(3)]
            harness.prepare(client, f"op{number}", keys)
            client.request(control.Rollback(f"op{number}"), 30)

        def left():
            worker._memory.lender.drop_idle()
            return memory_pages.num_page_mappings(), memory_pages.num_descriptors(owner.pid)

        cycle(0)
        before, descriptors = left(), memory_pages.num_descriptors()
        for number in range(1, 201):
            cycle(number)
        assert left() == before
        assert memory_pages.num_descriptors() <= descriptors
        assert state(client).resident_bytes == 0
        assert len(worker._memory.store._free) == worker._memory.store.capacity + 1
