"""Fixtures of the dispatch tests: the harness of the expert tests, tiny models, and pools of workers as threads."""

import tempfile

import expert_harness
import pytest

from flexpert_workers.dispatch import DispatchClient, TableHolder
from flexpert_workers.expert import ExpertWorker
from flexpert_workers.expert.control_client import ControlClient
from flexpert_workers.messages import control


@pytest.fixture(scope="session")
def harness():
    return expert_harness


@pytest.fixture(scope="session")
def models(harness, tmp_path_factory):
    return {kind: harness.make_model(kind, tmp_path_factory.mktemp(kind)) for kind in harness.MODELS}


@pytest.fixture
def socket_dir():
    with tempfile.TemporaryDirectory(prefix="fx") as folder:
        yield folder


class Pool:
    """Workers as threads of this process, their control clients, and one dispatch client."""

    def __init__(self, harness, model, socket_dir, num_workers):
        self.harness = harness
        self.model = model
        self.workers = [
            ExpertWorker(harness.make_config(f"w{number}", model.source, socket_dir)) for number in range(num_workers)
        ]
        for worker in self.workers:
            worker.start()
        self.controls = [ControlClient(worker.control_endpoint) for worker in self.workers]
        self.digest = self.controls[0].request(control.Describe(), 10).digest
        self.tables = TableHolder()
        self.refreshes = 0
        self.on_refresh = lambda: None
        self.client = self.new_client()

    def new_client(self, deadline_s=20.0, hang_timeout_s=10.0):
        return DispatchClient(
            self.harness.POOL,
            self.digest,
            self.tables,
            deadline_s=deadline_s,
            hang_timeout_s=hang_timeout_s,
            refresh=self._refresh,
        )

    def _refresh(self):
        self.refreshes += 1
        self.on_refresh()

    def prepare(self, worker, experts, operation="op"):
        status = self.harness.prepare(self.controls[worker], operation, experts)
        assert status.done, status
        assert not status.error, status
        return status

    def table(self, placement, epoch=(1, 1), workers=None):
        controls = self.controls if workers is None else [self.controls[number] for number in workers]
        addresses = [self.harness.address_of(client) for client in controls]
        return self.harness.make_table(addresses, placement, self.digest, epoch)

    def close(self):
        self.client.close()
        for client in self.controls:
            client.close()
        for worker in self.workers:
            worker.stop()


@pytest.fixture
def make_pool(harness, models, socket_dir):
    pools = []

    def make(kind="mixtral", num_workers=2):
        pools.append(Pool(harness, models[kind], socket_dir, num_workers))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()
