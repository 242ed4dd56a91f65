"""What goes wrong when the operator talks to others.

OperatorError
├── KubeError             the API server refused or did not answer; `reconciler` is called again
│   ├── KubeUnavailable   no answer, or one that says to come back
│   │   └── KubeExpired   a list or watch cannot be continued; list anew
│   ├── KubeConflict      somebody else changed the object, or made it first
│   ├── KubeNotFound      there is no such object
│   ├── KubeRayUnfit      KubeRay is not installed, or too old; `reason` is for the condition
│   ├── ChildTaken        an object that is not ours has the name of one that is to be made
│   └── KubeRefused       it will not be accepted as it is; the message is the API server's
└── PoolError             the pool controller refused or did not answer
    ├── PoolUnavailable   no answer
    ├── PoolRefused       a precondition does not hold (stale epoch, another incarnation); observe again
    │   ├── PlanRefused   a plan cannot be carried out on the pool as it is; the message says why
    │   └── Outdone       the pool has heard from a later leader than this operator
    └── ModelRefused      a checkpoint cannot be served; `reason` is for the condition, the message for the user
"""


class OperatorError(Exception):
    """Root of the tree."""


class KubeError(OperatorError):
    """The API server refused or did not answer."""


class KubeUnavailable(KubeError):
    """No answer in time, or one that says to come back.

    Attributes:
        retry_after_s: When to come back at the earliest, where the answer says so.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class KubeExpired(KubeUnavailable):
    """A list or a watch cannot go on from where it was (410): list anew."""


class KubeConflict(KubeError):
    """The object was changed or made by somebody else since it was read."""


class KubeNotFound(KubeError):
    """There is no such object."""


class ChildTaken(KubeError):
    """Something that is not ours has the name of an object that is to be made; the message says which and whose."""


class KubeRayUnfit(KubeError):
    """There is no KubeRay, or one whose definitions are too old; the message says what to do.

    Attributes:
        reason: One CamelCase word.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class KubeRefused(KubeError):
    """The request will not be accepted as it is."""


class PoolError(OperatorError):
    """The pool controller refused or did not answer."""


class PoolUnavailable(PoolError):
    """No answer in time."""


class PoolRefused(PoolError):
    """A precondition does not hold."""


class PlanRefused(PoolRefused):
    """A plan cannot be carried out on the pool as it is."""


class Outdone(PoolRefused):
    """The pool has heard from a later leader; whether this operator still leads is for its lease to say."""


class ModelRefused(PoolError):
    """A checkpoint cannot be served.

    Attributes:
        reason: One CamelCase word.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
