"""How busy workers are, what their page owner makes of it, and that its copies make way."""

import tempfile
import threading
from contextlib import contextmanager

import expert_harness as harness
import memory_pages
import msgspec
import pytest

from flexpert_workers.expert import ExpertWorker
from flexpert_workers.expert.busyness import BusyMeter
from flexpert_workers.expert.control_client import ControlClient
from flexpert_workers.memory.owner import OwnerConfig
from flexpert_workers.memory.owner.serving import ServingLoad
from flexpert_workers.messages import control

ALL = harness.all_experts()
SERVED = [key for key in ALL if key[0] == 0]


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_meter_tells_the_share_of_the_last_interval():
    clock = Clock()
    meter = BusyMeter(clock)
    meter.note(0.06)
    clock.now += 0.05
    assert meter.share() == 0.0, "an interval is not over yet"
    clock.now += 0.15
    assert meter.share() == pytest.approx(0.3)
    meter.note(5.0)
    clock.now += 0.2
    assert meter.share() == 1.0
    clock.now += 0.2
    assert meter.share() == 0.0


def test_a_domain_is_as_busy_as_its_busiest_worker_that_still_says_so():
    clock = Clock()
    load = ServingLoad(clock)
    assert load.busy() == 0.0
    load.note("a", 0.4)
    load.note("b", 0.9)
    assert load.busy() == 0.9
    load.end("b")
    assert load.busy() == 0.4
    clock.now += 10.0
    assert load.busy() == 0.0, "who hangs is not waited for"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return harness.make_model("mixtral", tmp_path_factory.mktemp("mixtral"))


@contextmanager
def serving(worker, client):
    """Dispatches one behind the other, without a pause."""
    digest, ended = client.request(control.Describe(), 30).digest, threading.Event()
    rows = harness.routed(2000, 8, 2)

    def dispatch():
        with harness.Engine(worker, digest) as engine:
            while not ended.is_set():
                engine.sums(0, *rows)

    thread = threading.Thread(target=dispatch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_an_owner_knows_while_its_worker_is_busy_and_its_copies_come_to_an_end(model):
    with tempfile.TemporaryDirectory(prefix="fx") as folder:
        config = OwnerConfig(
            domain="owner",
            pool=harness.POOL,
            source=model.source,
            dtype="Auto",
            budget_bytes=1 << 26,
            socket=f"{folder}/owner.sock",
            bind_host="127.0.0.1",
            socket_dir=folder,
            readers=1,
            ahead=0,
            copy_bytes_per_s=500_000,
        )
        with memory_pages.owner_process(config):
            worker = ExpertWorker(
                msgspec.structs.replace(harness.make_config("w", model.source, folder), owner_socket=config.socket)
            )
            worker.start()
            with ControlClient(worker.control_endpoint) as client:
                lender = worker._memory.lender
                harness.prepare(client, "served", SERVED)
                assert lender.owner_state().busy < 0.5
                with serving(worker, client):
                    memory_pages.until(lambda: lender.owner_state().busy > 0.7)
                    harness.prepare(client, "busy", [(1, index) for index in range(8)], timeout_s=120)
                memory_pages.until(lambda: lender.owner_state().busy < 0.1)
            worker.stop()
