"""Pool controller ↔ expert worker, on the worker's control socket.

Every request is one frame, a tagged MessagePack struct, and so is every reply.
"""

import msgspec

from flexpert_proto.measuring import Figures
from flexpert_workers.routing import Epoch


class Describe(msgspec.Struct, frozen=True, tag=True):
    """Ask a worker what it is and holds."""


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """Ask a worker to make experts resident for an operation; returns at once, `PrepareStatus` tells the progress.

    Attributes:
        experts: (layer, index, transfer endpoints of the domains to copy from, in order; the file comes last).
    """

    operation: str
    experts: tuple[tuple[int, int, tuple[str, ...]], ...]


class AskPrepare(msgspec.Struct, frozen=True, tag=True):
    """Ask how far `Prepare` is."""

    operation: str


class Rollback(msgspec.Struct, frozen=True, tag=True):
    """Stop preparing `operation` and free what it brought that the worker's newest table does not name."""

    operation: str


class StoreTable(msgspec.Struct, frozen=True, tag=True):
    """Keep this encoded routing table if it is the newest the worker has seen; refuses a lower term."""

    table: bytes


class Retire(msgspec.Struct, frozen=True, tag=True):
    """Free the experts that the stored table of `epoch` does not give this worker, once none is in flight."""

    epoch: Epoch


class AskLoads(msgspec.Struct, frozen=True, tag=True):
    """Ask for the tokens computed per expert since the worker started, and what else it measures."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End the worker once nothing is in flight."""


ControlRequest = Describe | Prepare | AskPrepare | Rollback | StoreTable | Retire | AskLoads | Stop


class Done(msgspec.Struct, frozen=True, tag=True):
    """The request was carried out; `freed` counts bytes that `Retire` or `Rollback` gave back."""

    freed: int = 0


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The request was not carried out.

    Attributes:
        reason: A sentence. `kind` is one of "stale", "capacity", "not-resident", "checkpoint", "internal".
    """

    kind: str
    reason: str


class WorkerState(msgspec.Struct, frozen=True, tag=True):
    """What a worker is and holds.

    Attributes:
        memory_bytes: What experts can fill: as many as fit with the padding of their pages, which is left out here.
        resident_bytes: Of experts, padding left out.
        table: Its newest encoded routing table, or empty.
        threads: With which it computes, 0 when unknown.
        domain: Id of its page owner: an expert that another worker of the domain holds is attached, not copied. Empty
            when it keeps its pages itself.
        transfer_endpoint: Where other domains copy pages from.
    """

    worker: str
    incarnation: str
    pool: str
    digest: str
    endpoint: str
    control_endpoint: str
    pod: str
    node: str
    pid: int
    memory_bytes: int
    resident_bytes: int
    experts: tuple[tuple[int, int], ...]
    table: bytes
    in_flight: int
    threads: int = 0
    domain: str = ""
    transfer_endpoint: str = ""


class PrepareStatus(msgspec.Struct, frozen=True, tag=True):
    """How far a `Prepare` is.

    Attributes:
        copied_bytes: That were copied or read; attached experts cost none.
        copied_experts: That have become resident, attached ones included.
        from_peers: Of those, how many were copied from another worker.
        error: Empty unless it failed; then nothing of it stays resident.
        attached_experts: Of those resident, how many were in the domain already.
        step_seconds: Of "copy" (or reading), "verify", "map", "populate" and "warm-up", so far.
    """

    operation: str
    done: bool
    copied_bytes: int
    copied_experts: int
    from_peers: int
    error: str
    attached_experts: int = 0
    step_seconds: dict[str, float] = {}


class Loads(msgspec.Struct, frozen=True, tag=True):
    """What a worker counted since it started.

    Attributes:
        tokens: Computed per expert, packed layer * experts + index.
    """

    tokens: tuple[int, ...]
    figures: Figures | None = None


ControlReply = Done | Refused | WorkerState | PrepareStatus | Loads
