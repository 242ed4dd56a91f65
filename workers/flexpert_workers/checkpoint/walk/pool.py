"""Expert workers without a pool controller: started, given their experts, and a dispatch client that routes to them.

Used by the walk and by tests that serve a checkpoint end to end; sockets, messages and tables are the real ones.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import msgspec

from flexpert_workers import threads
from flexpert_workers.checkpoint.checkpoint import Checkpoint
from flexpert_workers.dispatch import DispatchClient, TableHolder
from flexpert_workers.expert import ExpertWorker, WorkerConfig
from flexpert_workers.expert.control_client import ControlClient
from flexpert_workers.messages import control
from flexpert_workers.routing import Epoch, Replica, RoutingTable, WorkerAddress

POOL = "walk"
_TIMEOUT_S = 60.0

Start = Callable[[WorkerConfig], AbstractContextManager[WorkerAddress]]
"""How a worker is brought up; it is ended when the context is left."""


@contextmanager
def thread_worker(config: WorkerConfig) -> Iterator[WorkerAddress]:
    """A worker as threads of this process."""
    worker = ExpertWorker(config)
    worker.start()
    try:
        yield WorkerAddress(config.worker, worker.incarnation, worker.endpoint, worker.control_endpoint)
    finally:
        worker.stop()


@contextmanager
def process_worker(config: WorkerConfig) -> Iterator[WorkerAddress]:
    """A worker as a process of its own."""
    command = [sys.executable, "-m", "flexpert_workers.expert", "--config", msgspec.json.encode(config).decode()]
    environment = {**os.environ, **threads.environment(config.threads)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            yield WorkerAddress(config.worker, ready["incarnation"], ready["endpoint"], ready["control_endpoint"])
        finally:
            process.kill()


@contextmanager
def dispatch_pool(
    checkpoint: Checkpoint, dtype: str, num_workers: int = 2, start: Start = thread_worker
) -> Iterator[DispatchClient]:
    """Start workers, give expert `index` to worker `index % num_workers` in every layer, and dispatch to them.

    Args:
        checkpoint: What is served; the workers open its folder again, in `dtype`.
        dtype: As of `open_checkpoint`.
        num_workers: How many.
        start: How each is started.

    Raises:
        RuntimeError: A worker could not read its experts.
    """
    with ExitStack() as stack:
        socket_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="fx"))
        configs = [_config(checkpoint, dtype, socket_dir, number) for number in range(num_workers)]
        addresses = [stack.enter_context(start(config)) for config in configs]
        for number, address in enumerate(addresses):
            _prepare(address, _share(checkpoint, number, num_workers))
        tables = TableHolder()
        tables.publish(_table(checkpoint, addresses))
        client = DispatchClient(
            POOL, checkpoint.digest, tables, deadline_s=_TIMEOUT_S, hang_timeout_s=_TIMEOUT_S, refresh=lambda: None
        )
        stack.callback(client.close)
        yield client


def _config(checkpoint: Checkpoint, dtype: str, socket_dir: str, number: int) -> WorkerConfig:
    return WorkerConfig(
        worker=f"worker-{number}",
        pool=POOL,
        source=checkpoint.path.as_uri(),
        dtype=dtype,
        memory_bytes=checkpoint.layout.page_bytes * checkpoint.num_layers * checkpoint.num_experts,
        threads=1,
        bind_host="127.0.0.1",
        pod="",
        node="",
        socket_dir=socket_dir,
    )


def _share(checkpoint: Checkpoint, number: int, num_workers: int) -> tuple[tuple[int, int, tuple[str, ...]], ...]:
    indices = range(number, checkpoint.num_experts, num_workers)
    return tuple((layer, index, ()) for layer in range(checkpoint.num_layers) for index in indices)


def _prepare(address: WorkerAddress, experts: tuple[tuple[int, int, tuple[str, ...]], ...]) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    with ControlClient(address.control_endpoint) as client:
        reply = client.request(control.Prepare("walk", experts), _TIMEOUT_S)
        if not isinstance(reply, control.Refused):
            reply = _wait_prepared(client, deadline)
    if not isinstance(reply, control.PrepareStatus) or not reply.done or reply.error:
        raise RuntimeError(f"{address.worker} could not make its experts resident: {reply}")


def _wait_prepared(client: ControlClient, deadline: float) -> control.ControlReply:
    while True:
        reply = client.request(control.AskPrepare("walk"), _TIMEOUT_S)
        if not isinstance(reply, control.PrepareStatus) or reply.done or time.monotonic() > deadline:
            return reply


def _table(checkpoint: Checkpoint, addresses: Sequence[WorkerAddress]) -> RoutingTable:
    row = tuple((Replica(index % len(addresses), 1.0),) for index in range(checkpoint.num_experts))
    return RoutingTable(POOL, checkpoint.digest, Epoch(1, 1), "walk", tuple(addresses), (row,) * checkpoint.num_layers)
