"""What a reconciliation sees, as frozen values; `reconciler` fills them in from Kubernetes and the pool controller."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from flexpert_operator.api.spec import Model
from flexpert_operator.api.words import Cause as Cause
from flexpert_operator.api.words import Phase as Phase
from flexpert_operator.decide.loads import SmoothedLoads
from flexpert_operator.decide.sizing_state import Sizing
from flexpert_placement.types import ExpertId, Placement
from flexpert_proto.measuring import Figures


class Epoch(NamedTuple):
    """A routing table's number; (0, 0) is none."""

    term: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.term}.{self.sequence}"


NO_EPOCH = Epoch(0, 0)


class MemberState(StrEnum):
    """State of a worker or of an engine."""

    STARTING = "Starting"
    READY = "Ready"
    STANDBY = "Standby"
    DRAINING = "Draining"
    LOST = "Lost"


RUNNING_PHASES = (Phase.PENDING, Phase.PREPARE, Phase.COMMIT, Phase.RETIRE)
UNDONE_PHASES = (Phase.ROLLED_BACK, Phase.CANCELLED, Phase.FAILED)


@dataclass(frozen=True)
class Worker:
    """An expert worker as the pool controller sees it."""

    id: str
    pod: str
    state: MemberState
    memory_bytes: int
    resident_bytes: int = 0
    num_experts: int = 0
    node: str = ""
    failure_domain: str = ""


@dataclass(frozen=True)
class Engine:
    """An engine as the pool controller sees it; `running` and `waiting` count requests."""

    id: str
    pod: str
    state: MemberState
    running: int = 0
    waiting: int = 0


@dataclass(frozen=True)
class Prediction:
    """What the pool controller expects of a reconfiguration.

    Attributes:
        peak_bytes: Those of the fullest worker.
        refusal: Why it could not be carried out, or empty.
    """

    moved_bytes: int
    seconds: float
    peak_bytes: int
    waves: int = 1
    refusal: str = ""


@dataclass(frozen=True)
class Operation:
    """The running reconfiguration or the last one; times in seconds since the Unix epoch, `finished_at` None: runs.

    Attributes:
        attached_experts: Of the moved ones, those that cost no byte.
        step_seconds: Of start, copy, verify, map, populate, warm-up and commit.
        peak_bytes: Of experts, on the fullest worker.
        wave: The one that runs, or ran last.
    """

    id: str
    cause: Cause
    phase: Phase
    base_epoch: Epoch
    moved_experts: int = 0
    moved_bytes: int = 0
    message: str = ""
    started_at: float = 0.0
    finished_at: float | None = None
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    attached_experts: int = 0
    step_seconds: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    predicted: Prediction | None = None
    wave: int = 1

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self.phase in RUNNING_PHASES


@dataclass(frozen=True)
class ModelFacts:
    """What the pool controller read in the checkpoint; `layers` counts MoE layers, `experts` those of one layer.

    Attributes:
        resolved: Names the state of its files: a hub's commit, else a digest.
        fetched_bytes: That every node fetches; 0 for a folder.
    """

    architecture: str
    digest: str
    layers: int
    experts: int
    expert_bytes: int
    resolved: str = ""
    fetched_bytes: int = 0

    @property
    def num_experts(self) -> int:
        """Experts of all layers."""
        return self.layers * self.experts


@dataclass(frozen=True)
class ModelFiles:
    """How far the model's files are on the nodes, as the pool controller tells (see `pool.proto`)."""

    phase: str = ""
    bytes_done: int = 0
    bytes_total: int = 0
    nodes_ready: int = 0
    nodes: int = 0
    error: str = ""
    message: str = ""
    newer_revision: str = ""

    @property
    def coming(self) -> bool:
        """Whether they are being fetched."""
        return self.phase not in ("", "Ready", "Failed")


@dataclass(frozen=True)
class Pool:
    """A pool as its controller sees it.

    Attributes:
        term: Granted to this incarnation of the controller; 0 is none yet.
        loads: Tokens per expert since `loads_since`, packed layer * experts + index; empty when nothing is known.
        loads_since: Seconds since the Unix epoch.
        generation: Of the MoEDeployment that it was configured with last; 0 is never.
        message: Why it cannot serve, or empty.
        lost: Experts without a live replica.
        wanted_workers: Workers that are to serve, as it was configured last; None: never said.
        wanted_standby: Workers that are to stand by.
        table_operation: Of the newest published table.
        files: How far the model's files are.
        figures: What all its processes have measured; None where that was not asked for.
        layer_imbalance: Busiest worker's tokens over the average, of each layer; empty as above.
    """

    incarnation: str
    term: int = 0
    epoch: Epoch = NO_EPOCH
    workers: tuple[Worker, ...] = ()
    engines: tuple[Engine, ...] = ()
    placement: Placement = field(default_factory=dict)
    model: ModelFacts | None = None
    loads: tuple[int, ...] = ()
    loads_since: float = 0.0
    operation: Operation | None = None
    generation: int = 0
    message: str = ""
    lost: tuple[ExpertId, ...] = ()
    wanted_workers: int | None = None
    wanted_standby: int = 0
    table_operation: str = ""
    files: ModelFiles = field(default_factory=ModelFiles)
    figures: Figures | None = None
    layer_imbalance: tuple[float, ...] = ()

    @property
    def alive(self) -> tuple[Worker, ...]:
        """Workers that are not lost."""
        return tuple(worker for worker in self.workers if worker.state is not MemberState.LOST)

    @property
    def requests_in_flight(self) -> int:
        """Requests of the engines that can still answer them: a lost one only remembers its last count."""
        there = (engine for engine in self.engines if engine.state is not MemberState.LOST)
        return sum(engine.running + engine.waiting for engine in there)

    @property
    def holders(self) -> frozenset[str]:
        """Ids of the workers that the placement names."""
        return frozenset(worker for row in self.placement.values() for worker in row)


@dataclass(frozen=True)
class Pod:
    """A pod of the expert or engine group.

    Attributes:
        terminating: Its deletion has been asked for.
        message: What keeps it from running.
        created_at: Seconds since the Unix epoch.
        node: Where it runs; empty while it is not scheduled.
        leaving: Why it is about to go (its node is being drained, or taken away), or empty.
        revision: Of the template that it was made from, as its label says.
        ready: Its readiness probes pass.
        unschedulable: No node takes it; `message` is the scheduler's.
        failing: A container cannot be started, or ends again and again.
    """

    name: str
    terminating: bool = False
    message: str = ""
    created_at: float = 0.0
    node: str = ""
    leaving: str = ""
    revision: str = ""
    ready: bool = False
    unschedulable: bool = False
    failing: bool = False


@dataclass(frozen=True)
class Group:
    """A worker group of the live RayCluster, with its pods as they were listed after the RayCluster was read."""

    replicas: int
    workers_to_delete: tuple[str, ...] = ()
    pods: tuple[Pod, ...] = ()

    @property
    def present(self) -> tuple[Pod, ...]:
        """Pods that are there to stay."""
        return tuple(pod for pod in self.pods if not pod.terminating)


@dataclass(frozen=True)
class Cluster:
    """The live RayCluster."""

    resource_version: str
    engines: Group
    experts: Group
    sizing: Sizing
    served_model: Model | None = None


@dataclass(frozen=True)
class Inspection:
    """What became of looking at a checkpoint: the facts, or the reason and message of a refusal; or it goes on."""

    facts: ModelFacts | None = None
    reason: str = ""
    message: str = ""
    pending: bool = False


@dataclass(frozen=True)
class Observation:
    """All that a reconciliation sees.

    Attributes:
        now: Seconds since the Unix epoch.
        cluster: None when there is no RayCluster yet.
        pool: None when the pool controller does not answer; `pool_error` says why.
        inspection: Of `spec.model`, None when it was not looked at yet.
        ingress_ready: Ingress pods that are ready.
        loads: What is known of the experts' loads.
    """

    now: float
    cluster: Cluster | None = None
    pool: Pool | None = None
    pool_error: str = ""
    inspection: Inspection | None = None
    ingress_ready: int = 0
    loads: SmoothedLoads | None = None

    @property
    def leaving_pods(self) -> tuple[str, ...]:
        """Expert pods that are going whatever we do; their workers get no experts and lose those that they have."""
        pods = self.cluster.experts.pods if self.cluster is not None else ()
        return tuple(pod.name for pod in pods if pod.terminating or pod.leaving)

    @property
    def bound_model(self) -> Model | None:
        """The model that cannot be changed any more: the one whose experts are placed, or were at the last size.

        While the pool controller does not answer, whatever was configured counts as placed.
        """
        if self.cluster is None:
            return None
        placed = self.pool is None or bool(self.pool.placement) or self.cluster.sizing.settled > 0
        return self.cluster.served_model if placed else None


@dataclass(frozen=True)
class Event:
    """An Event to be posted on the MoEDeployment; `reason` is one CamelCase word, `operation` an id or empty."""

    reason: str
    message: str
    warning: bool = False
    operation: str = ""


@dataclass(frozen=True)
class Problem:
    """Why the spec cannot be carried out; the message says what to change."""

    reason: str
    message: str
