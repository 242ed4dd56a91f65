"""The exceptions that the pool raises at what a user or a machine did.

FlexpertError
├── InvalidRequest        a request that can never be served; `field` names what is wrong with it
├── Overloaded            a bounded queue is full; `retry_after_s` is the wait predicted
├── CheckpointError       a checkpoint that cannot be used; the message names file and tensor
│   ├── CheckpointNotFound
│   ├── CorruptCheckpoint
│   ├── UnsupportedArchitecture
│   ├── AccessDenied          the source wants a token or key that it was not given
│   ├── SourceUnreachable     the source does not answer now; it is tried again
│   └── CacheUnusable         the node's cache is full, cannot be written, or lacks what only it may give (offline)
├── CapacityError         something does not fit into the memory it was given
├── PageError             memory that was lent is not what it should be
├── DeviceUnavailable     a device that was asked for is not there, or cannot be used by this process
├── TransferError         a page could not be copied from a peer; `received` is what arrived
│   ├── SourceLost            the connection broke or the source hung, and it did not come back in time
│   ├── PageNotHeld           the source does not hold the expert
│   ├── IdentityMismatch      the source is of another pool or checkpoint
│   ├── CorruptPage           the bytes that arrived are not those that left
│   └── TransferCancelled     the copy was not wanted any more
├── StaleEpoch            an operation based on a table that is not the newest, or an older term
└── PassAbandoned         a forward pass gave up waiting for experts; its requests are queued again
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flexpert_workers.transfer.contract import Received


class FlexpertError(Exception):
    """Root of the tree; the message says what to do."""


class InvalidRequest(FlexpertError):
    """A request that can never be served.

    Attributes:
        field: Path of the offending field, as the client wrote it.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class Overloaded(FlexpertError):
    """A bounded queue is full.

    Attributes:
        retry_after_s: Predicted wait in seconds.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CheckpointError(FlexpertError):
    """A checkpoint that cannot be used."""


class CheckpointNotFound(CheckpointError):
    """No checkpoint, or a file of it is missing."""


class CorruptCheckpoint(CheckpointError):
    """A file is truncated or its contents contradict its header."""


class UnsupportedArchitecture(CheckpointError):
    """The architecture cannot be served; the message names it and says why."""


class AccessDenied(CheckpointError):
    """The source wants a token or key that it was not given, or one with more rights."""


class SourceUnreachable(CheckpointError):
    """The source does not answer, or asks for patience."""


class CacheUnusable(CheckpointError):
    """The node's cache is full, cannot be written, or lacks a checkpoint that nothing else may give."""


class CapacityError(FlexpertError):
    """Something does not fit into the memory it was given."""


class PageError(FlexpertError):
    """Memory that was lent is not what it should be: not sealed, too short, or its bytes are not those promised."""


class DeviceUnavailable(FlexpertError):
    """A device that was asked for is not there, or cannot be used by this process; the message says what to change."""


class TransferError(FlexpertError):
    """A page could not be copied from a peer: go on with another source, or with the file.

    Attributes:
        received: What arrived intact; a fetch from another source goes on from there. None when that is nothing.
    """

    def __init__(self, message: str, received: "Received | None" = None) -> None:
        super().__init__(message)
        self.received = received


class SourceLost(TransferError):
    """The connection broke or the source hung, and it did not come back in time."""


class PageNotHeld(TransferError):
    """The source does not hold the expert."""


class IdentityMismatch(TransferError):
    """The source is of another pool or checkpoint."""


class CorruptPage(TransferError):
    """The bytes that arrived are not those that left, or the source names another checksum than before."""


class TransferCancelled(TransferError):
    """The copy was not wanted any more."""


class StaleEpoch(FlexpertError):
    """An operation based on a table that is not the newest, or a lower term."""


class PassAbandoned(FlexpertError):
    """A forward pass gave up waiting for experts.

    Attributes:
        experts: The (layer, index) pairs that no worker answered for.
    """

    def __init__(self, message: str, experts: tuple[tuple[int, int], ...] = ()) -> None:
        super().__init__(message)
        self.experts = experts
