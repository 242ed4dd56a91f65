"""A worker's share of expert memory: its slots, and the page owner that it borrows from."""

from collections.abc import Callable
from typing import Any

import zmq

from flexpert_workers.checkpoint import Checkpoint
from flexpert_workers.expert.config import WorkerConfig
from flexpert_workers.expert.store import ExpertStore, ResidentExpert
from flexpert_workers.expert.turns import ComputeTurns
from flexpert_workers.memory.backend import ExpertKey, PageBackend
from flexpert_workers.memory.client import OwnerClient
from flexpert_workers.memory.devices import Device
from flexpert_workers.memory.limits import allow_descriptors
from flexpert_workers.memory.loans import PageLender
from flexpert_workers.memory.owner.domain import DomainLimits, PageDomain
from flexpert_workers.memory.owner.local import LocalLender
from flexpert_workers.messages.owner import Hello
from flexpert_workers.transfer import Identity

_OWNER_TIMEOUT_S = 60.0
_LOCAL_COPIES = 3
"""Descriptors a page of an owner inside the worker takes: the owner's, the loan's, and that of a view being copied."""


class WorkerMemory:
    """Everything that `close` must give back, made in order.

    Args:
        config: The worker's.
        checkpoint: Whose experts it is to hold.
        incarnation: The worker's.
        device: In whose memory they are.
        try_out: See `ExpertStore`.
        busy: How busy the worker is with serving, from 0 to 1: its page owner makes way.
        context: ZeroMQ context.

    Attributes:
        store: The worker's experts.
        lender: Its page owner.
        turns: Of its compute thread.
        memory_bytes: Of its budget, what whole experts can fill, without the padding of their pages.

    Raises:
        CapacityError: The machine does not allow so many experts.
        ConnectionError: The page owner is not there.
    """

    def __init__(
        self,
        config: WorkerConfig,
        checkpoint: Checkpoint,
        incarnation: str,
        device: Device,
        try_out: Callable[[ResidentExpert], None],
        busy: Callable[[], float],
        context: "zmq.Context[Any]",
    ) -> None:
        backend = device.backend
        footprint = backend.footprint(checkpoint.layout.page_bytes)
        most = config.memory_bytes // footprint
        capacity = min(most, checkpoint.num_layers * checkpoint.num_experts)
        self.memory_bytes = most * checkpoint.layout.page_bytes
        allow_descriptors(capacity if config.owner_socket else _LOCAL_COPIES * capacity)
        self.turns = ComputeTurns()
        self.lender: PageLender
        if config.owner_socket:
            self.lender = _connected(config, checkpoint, incarnation, backend, busy)
        else:
            self.lender = _local(config, checkpoint, device, busy, context)
        self._arena = backend.reserve(capacity + 1, checkpoint.layout.page_bytes)
        self.store = ExpertStore(
            checkpoint.num_layers,
            checkpoint.num_experts,
            checkpoint.layout,
            self._arena,
            self.turns,
            self.lender.release,
            try_out,
        )

    def close(self) -> None:
        """Give everything back; nobody computes any more."""
        self.lender.close()
        self._arena.close()
        self.turns.close()


def _connected(
    config: WorkerConfig, checkpoint: Checkpoint, incarnation: str, backend: PageBackend, busy: Callable[[], float]
) -> OwnerClient:
    hello = Hello(
        borrower=f"{config.worker}/{incarnation}",
        pool=config.pool,
        digest=checkpoint.digest,
        page_bytes=checkpoint.layout.page_bytes,
        num_pages=checkpoint.num_layers * checkpoint.num_experts,
        memory=backend.name,
    )
    client = OwnerClient(config.owner_socket, hello, backend, busy)
    try:
        client.connect(_OWNER_TIMEOUT_S)
    except BaseException:
        client.close()
        raise
    return client


def _local(
    config: WorkerConfig,
    checkpoint: Checkpoint,
    device: Device,
    busy: Callable[[], float],
    context: "zmq.Context[Any]",
) -> LocalLender:
    def fill(key: ExpertKey, page: memoryview, pace: Callable[[int], None]) -> None:
        checkpoint.fill_page(*key, page, pace)

    domain = PageDomain(
        Identity(config.pool, checkpoint.digest),
        checkpoint.layout.page_bytes,
        DomainLimits(config.memory_bytes, readers=1, ahead=0),
        device,
        fill,
        config.bind_host,
        config.socket_dir,
        busy,
        context,
    )
    return LocalLender(domain, device.backend, config.worker)
