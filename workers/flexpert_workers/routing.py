"""The routing table: the placement as engines see it. Immutable, numbered by an epoch, the same bytes everywhere.

The pool controller publishes tables, workers store the newest, engines route by it (DESIGN §6, 1–4).
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Self

import msgspec


class Epoch(msgspec.Struct, frozen=True, order=True, array_like=True):
    """A table's number: a higher term always wins, within a term the sequence counts."""

    term: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.term}.{self.sequence}"


NO_EPOCH = Epoch(0, 0)


class WorkerAddress(msgspec.Struct, frozen=True, array_like=True):
    """Where and who a worker is. A worker refuses a dispatch meant for another incarnation."""

    worker: str
    incarnation: str
    endpoint: str
    control_endpoint: str


class Replica(msgspec.Struct, frozen=True, array_like=True):
    """One live copy of an expert: the worker's position in `RoutingTable.workers`, and its share of the traffic."""

    worker: int
    share: float


class RoutingTable(msgspec.Struct, frozen=True, dict=True):
    """A placement as engines see it.

    Attributes:
        pool: uid of the MoEDeployment.
        digest: Digest of the checkpoint whose experts are placed.
        epoch: The table's number.
        operation: Id of the reconfiguration that published it.
        workers: The workers named, in the order in which their sums are added.
        replicas: [layers, experts] → the replicas of that expert, whose shares add up to 1.
    """

    pool: str
    digest: str
    epoch: Epoch
    operation: str
    workers: tuple[WorkerAddress, ...]
    replicas: tuple[tuple[tuple[Replica, ...], ...], ...]

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return len(self.replicas)

    @property
    def num_experts(self) -> int:
        """Experts per MoE layer."""
        return len(self.replicas[0]) if self.replicas else 0

    @cached_property
    def placement(self) -> Mapping[tuple[int, int], Mapping[str, float]]:
        """(layer, index) → worker id → share of the expert's traffic."""
        names = [address.worker for address in self.workers]
        return {
            (layer, index): {names[replica.worker]: replica.share for replica in replicas}
            for layer, row in enumerate(self.replicas)
            for index, replicas in enumerate(row)
        }

    def experts_without_replica(self) -> tuple[tuple[int, int], ...]:
        """(layer, index) of every expert that no worker holds; a table is published only when this is empty."""
        return tuple(
            (layer, index)
            for layer, row in enumerate(self.replicas)
            for index, replicas in enumerate(row)
            if not replicas
        )

    def experts_of(self, worker: str) -> frozenset[tuple[int, int]]:
        """(layer, index) of every expert that the table gives to `worker`."""
        positions = {position for position, address in enumerate(self.workers) if address.worker == worker}
        return frozenset(
            (layer, index)
            for layer, row in enumerate(self.replicas)
            for index, replicas in enumerate(row)
            if any(replica.worker in positions for replica in replicas)
        )

    def encode(self) -> bytes:
        """The table as MessagePack."""
        return self._encoded

    @cached_property
    def _encoded(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The table that `encode` wrote.

        Raises:
            msgspec.DecodeError: The bytes are not a table.
        """
        return msgspec.msgpack.decode(data, type=cls)


def newest(tables: Iterable[RoutingTable | None]) -> RoutingTable | None:
    """The table with the highest epoch, or None when there is none."""
    return max((table for table in tables if table is not None), key=lambda table: table.epoch, default=None)
