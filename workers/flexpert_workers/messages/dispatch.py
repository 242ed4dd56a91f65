"""Engine ↔ expert worker, per MoE layer (DESIGN §4).

Request frames: header, hidden rows `[rows, hidden]` in `dtype`, pairs `[pairs, 2]` int32 of (row, expert index),
routing weights `[pairs]` float32. Reply frames: header, then for `OK` the weighted sums `[rows, hidden]` float32.
"""

import enum

import msgspec

from flexpert_workers.routing import Epoch


class DispatchRequest(msgspec.Struct, frozen=True, array_like=True):
    """Header of a request.

    Attributes:
        request: Number of the dispatch, unique in the engine.
        attempt: Number of the try; a reply to an earlier one is dropped.
        rows: Number of hidden rows, of which each appears in at least one pair.
    """

    pool: str
    digest: str
    incarnation: str
    request: int
    attempt: int
    epoch: Epoch
    layer: int
    rows: int
    dtype: str


class Status(enum.IntEnum):
    """What became of a dispatch."""

    OK = 0
    NOT_RESIDENT = 1
    REFUSED = 2
    FAILED = 3


class DispatchReply(msgspec.Struct, frozen=True, array_like=True):
    """Header of a reply.

    Attributes:
        missing: With `NOT_RESIDENT`, the expert indices the worker lacks; nothing was computed.
        reason: With `REFUSED` (another pool, digest or incarnation) and `FAILED`, a sentence.
        compute_us: Microseconds the worker spent computing.
    """

    request: int
    attempt: int
    status: Status
    missing: tuple[int, ...] = ()
    reason: str = ""
    compute_us: int = 0
