"""What the pool controller refuses, and why. `service` turns each into a gRPC status.

FlexpertError
└── PoolRefusal
    ├── NotGranted          the caller's or this controller's term does not allow it
    ├── StaleLeader         another operator leads by now
    ├── NotConfigured       no model is known yet, or the pool cannot serve it
    ├── OperationRunning    one reconfiguration at a time
    ├── Committed           too late to cancel
    ├── UnknownName         no such worker, operation or recording
    ├── RecordingRunning    one recording at a time
    ├── InvalidRecording    so many tokens or seconds cannot be recorded
    ├── InvalidMessage      a field whose value means nothing
    └── InvalidPlan         a plan that contradicts itself or the pool
WorkerUnreachable           a worker did not answer in time (not the user's doing)
"""

from flexpert_workers.errors import FlexpertError


class PoolRefusal(FlexpertError):
    """Root of what a pool controller refuses."""


class NotGranted(PoolRefusal):
    """A term is missing, or is not higher than an earlier one, or was meant for another incarnation."""


class StaleLeader(PoolRefusal):
    """An operator asks that led once; a later one has asked since.

    Attributes:
        newest: Number of the latest leadership that was heard of.
    """

    def __init__(self, leader: int, newest: int) -> None:
        super().__init__(f"leader {leader} steers no more: this pool has heard from leader {newest}")
        self.newest = newest


class NotConfigured(PoolRefusal):
    """The pool has no model that it can serve."""


class OperationRunning(PoolRefusal):
    """Another reconfiguration runs; its id is in the message."""


class Committed(PoolRefusal):
    """The operation has committed and rolls forward."""


class UnknownName(PoolRefusal):
    """No such worker, operation or recording."""


class RecordingRunning(PoolRefusal):
    """Somebody records already."""


class InvalidRecording(PoolRefusal):
    """Sizes of a recording that cannot be."""


class InvalidMessage(PoolRefusal):
    """A field has a value that means nothing here; the message names it."""


class InvalidPlan(PoolRefusal):
    """A plan that contradicts itself or the pool."""


class WorkerUnreachable(FlexpertError):
    """A worker did not answer within the time given."""
