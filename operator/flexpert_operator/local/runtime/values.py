"""What the runtime knows and what it decides: frozen values between its pure parts and its actuator."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flexpert_operator.local.processes import ProcessId

Object = dict[str, Any]

NODE_NAME = "laptop"
HOST = "127.0.0.1"
CLUSTER_LABEL = "ray.io/cluster"
GROUP_LABEL = "ray.io/group"
NODE_TYPE_LABEL = "ray.io/node-type"
HEAD_GROUP = "headgroup"
HEAD_CONTAINER = "ray-head"
WORKER_CONTAINER = "ray-worker"
GCS_PORT_NAME = "gcs-server"


@dataclass(frozen=True)
class Container:
    """A container of a pod as it runs here.

    Attributes:
        process: Its process, the running one or the last; None before the first start.
        running: Whether that process runs.
        started_at: When it was started last, in seconds since the Unix epoch.
        finished_at: When it was found to have ended.
        exit_code: Of the last end; None when it is unknown (a process adopted from an earlier runtime).
        restarts: How often it was started again.
        ready: What its probe said last.
        refusal: Why it cannot be started, as Kubernetes names it, or empty.
    """

    name: str
    process: ProcessId | None = None
    running: bool = False
    started_at: float = 0.0
    finished_at: float = 0.0
    exit_code: int | None = None
    restarts: int = 0
    ready: bool = False
    refusal: str = ""


@dataclass(frozen=True)
class LocalPod:
    """What runs here for a Pod object.

    Attributes:
        folder: Its scratch folder.
        ports: Number of each named container port.
        stopping_at: When its end began, None while it may run.
        killed: Whether its grace has run out and it was killed.
        mounted: Digests of the files of its volumes, by the volume's name; see `volumes`.
    """

    uid: str
    namespace: str
    name: str
    cluster: str | None
    is_head: bool
    grace_s: float
    folder: str
    ports: Mapping[str, int]
    containers: tuple[Container, ...]
    stopping_at: float | None = None
    killed: bool = False
    mounted: Mapping[str, str] = field(default_factory=dict)

    def container(self, name: str) -> Container:
        """The container with this name."""
        return next(container for container in self.containers if container.name == name)

    @property
    def is_running(self) -> bool:
        """Whether any process of it runs."""
        return any(container.running for container in self.containers)


@dataclass(frozen=True)
class Held:
    """Why a container may not start yet, as Kubernetes names it."""

    reason: str
    message: str


@dataclass(frozen=True)
class File:
    """A file of a volume, with its access bits."""

    data: bytes = field(repr=False)
    mode: int


@dataclass(frozen=True)
class Observed:
    """Everything the decisions depend on.

    Attributes:
        nodes: The Node objects, all of which this host plays.
        local: The pods that run here, by uid.
        now: Seconds since the Unix epoch.
        max_starting: How many Ray nodes may be starting at a time: many more than there are cores only starve each
            other, and a node that is not up within 30 s gives up.
    """

    clusters: tuple[Object, ...] = ()
    deployments: tuple[Object, ...] = ()
    services: tuple[Object, ...] = ()
    pods: tuple[Object, ...] = ()
    nodes: tuple[Object, ...] = ()
    secrets: tuple[Object, ...] = field(default=(), repr=False)
    config_maps: tuple[Object, ...] = ()
    local: Mapping[str, LocalPod] = field(default_factory=dict)
    now: float = 0.0
    max_starting: int = 2


@dataclass(frozen=True)
class CreatePod:
    """Make a Pod object."""

    manifest: Object


@dataclass(frozen=True)
class DeletePod:
    """Delete a Pod object; `at_once` when its processes have ended and only the object is left."""

    namespace: str
    name: str
    uid: str
    reason: str
    at_once: bool = False


@dataclass(frozen=True)
class WriteStatus:
    """Merge into an object's status."""

    kind: str
    namespace: str
    name: str
    status: Object


@dataclass(frozen=True)
class AdmitPod:
    """Give a Pod object its folder and ports."""

    pod: Object


@dataclass(frozen=True)
class MountVolume:
    """Have a volume of a pod hold these files, by their path in it, and no others."""

    uid: str
    volume: str
    files: Mapping[str, File] = field(repr=False)
    digest: str


@dataclass(frozen=True)
class StartContainer:
    """Start a container's process, or start it again."""

    pod: Object
    container: str


@dataclass(frozen=True)
class StopPod:
    """SIGTERM to the pod's containers."""

    uid: str


@dataclass(frozen=True)
class KillPod:
    """SIGKILL to what is left of the pod."""

    uid: str


@dataclass(frozen=True)
class ForgetPod:
    """Remove the folder of a pod that has ended."""

    uid: str


Action = CreatePod | DeletePod | WriteStatus | AdmitPod | MountVolume | StartContainer | StopPod | KillPod | ForgetPod
