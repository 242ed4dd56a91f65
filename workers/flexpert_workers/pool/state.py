"""Frozen facts about a pool: slots, workers, engines, operations. Every module of the controller speaks in these."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from flexpert_workers.messages.control import WorkerState
from flexpert_workers.routing import NO_EPOCH, Epoch, WorkerAddress

Expert = tuple[int, int]
"""(MoE layer, index in the layer)."""

Placement = Mapping[Expert, Mapping[str, float]]
"""Expert → worker id → share of the expert's traffic; the shares of an expert add up to 1."""


class Condition(StrEnum):
    """How a worker or an engine is."""

    STARTING = "STARTING"
    READY = "READY"
    STANDBY = "STANDBY"
    DRAINING = "DRAINING"
    LOST = "LOST"


class Cause(StrEnum):
    """Why a reconfiguration happens; unspecified only of one that an earlier controller carried out."""

    UNSPECIFIED = "CAUSE_UNSPECIFIED"
    SCALE = "SCALE"
    REBALANCE = "REBALANCE"
    FAILURE = "FAILURE"
    UPGRADE = "UPGRADE"
    INITIAL = "INITIAL"
    DRAIN = "DRAIN"


class Phase(StrEnum):
    """Where a reconfiguration stands (DESIGN §6)."""

    PENDING = "PENDING"
    PREPARE = "PREPARE"
    COMMIT = "COMMIT"
    RETIRE = "RETIRE"
    SUCCEEDED = "SUCCEEDED"
    ROLLED_BACK = "ROLLED_BACK"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"

    @property
    def finished(self) -> bool:
        """Nothing more happens to an operation in this phase."""
        return self in (Phase.SUCCEEDED, Phase.ROLLED_BACK, Phase.CANCELLED, Phase.FAILED)


@dataclass(frozen=True)
class Slot:
    """A place where one worker can run. `pod` and `node` may be known only once a worker has run there.

    Attributes:
        number: Among the workers of its pod.
        gpus: Of its pod, which its workers share.
    """

    id: str
    pod: str = ""
    node: str = ""
    ray_node_id: str = ""
    failure_domain: str = ""
    number: int = 0
    gpus: int = 0

    @property
    def gpu(self) -> int | None:
        """Number of the GPU that a worker here computes on, among those of its pod; None: it has none."""
        return self.number % self.gpus if self.gpus else None


@dataclass(frozen=True)
class LaunchedWorker:
    """A worker process as its launcher knows it; `control_endpoint` is empty until it is up."""

    worker: str
    slot: str
    control_endpoint: str = ""


@dataclass(frozen=True)
class Worker:
    """What is known of a worker.

    Attributes:
        slot: None when its slot is gone.
        began_at: When its start was asked for, or when it was found, in the controller's clock.
        ready_at: When it first answered; None while it starts.
        waited_s: For how long a worker was missing before this one was promoted: nothing for a warm standby.
        state: Its last own description; None while it starts.
        stopped: It was drained and stopped; it keeps its slot empty.
        leaving: It was being drained when it was lost: its slot is to stay empty too.
        begun_here: This controller has it started, so it holds nothing until it first answers.
        lost_at: When it was found dead, in the controller's clock.
    """

    id: str
    slot: Slot | None
    condition: Condition
    state: WorkerState | None = None
    stopped: bool = False
    lost_at: float | None = None
    began_at: float = 0.0
    ready_at: float | None = None
    waited_s: float = 0.0
    leaving: bool = False
    begun_here: bool = False

    @property
    def live(self) -> bool:
        """It answers and can hold experts (also while it drains or stands by)."""
        up = (Condition.READY, Condition.DRAINING, Condition.STANDBY)
        return self.state is not None and not self.stopped and self.condition in up

    @property
    def placeable(self) -> bool:
        """Experts may be placed on it: it is live and no standby."""
        return self.live and self.condition is not Condition.STANDBY

    @cached_property
    def experts(self) -> frozenset[Expert]:
        """What it held when it last described itself; nothing once it is lost or stopped."""
        return frozenset(self.state.experts) if self.state is not None and self.live else frozenset()

    @property
    def domain(self) -> str:
        """Its page owner's id, as it last said; empty when it has none."""
        return self.state.domain if self.state is not None else ""

    @property
    def free_bytes(self) -> int:
        """Room in its memory budget."""
        return max(0, self.state.memory_bytes - self.state.resident_bytes) if self.state is not None else 0

    @property
    def address(self) -> WorkerAddress:
        """How routing tables name it; only of a worker that has described itself."""
        assert self.state is not None, f"worker {self.id} has not described itself"
        state = self.state
        return WorkerAddress(state.worker, state.incarnation, state.endpoint, state.control_endpoint)


@dataclass(frozen=True)
class Engine:
    """What is known of an engine, from its last report."""

    id: str
    condition: Condition
    endpoint: str = ""
    epoch: Epoch = NO_EPOCH
    pid: int = 0
    pod: str = ""
    running: int = 0
    waiting: int = 0
    expert_bytes: int = 0
    kv_bytes: int = 0
    kv_use: float = 0.0
    generated_tokens: int = 0
    threads: int = 0


@dataclass(frozen=True)
class ModelFacts:
    """What the controller needs of a checkpoint: `layers` MoE layers of `experts`, `expert_bytes` each.

    Attributes:
        opened: What the pool's processes open: `source`, pinned where it is remote; empty: `source`.
        resolved: Names the state of the files: a hub's commit, else a digest of what a folder or store lists.
        fetched_bytes: That every node has to fetch; 0 for a folder.
    """

    source: str
    revision: str
    dtype: str
    digest: str
    architecture: str
    layers: int
    experts: int
    experts_per_token: int
    expert_bytes: int
    dense_bytes: int = 0
    kv_bytes_per_token: int = 0
    context_length: int = 0
    opened: str = ""
    resolved: str = ""
    fetched_bytes: int = 0

    def all_experts(self) -> frozenset[Expert]:
        """Every (layer, index)."""
        return frozenset((layer, index) for layer in range(self.layers) for index in range(self.experts))


@dataclass(frozen=True)
class PoolSpec:
    """What the operator wants of the pool; see `pool.proto`.

    Attributes:
        resolved: What `revision` was resolved to when the pool began to serve it; empty: it is resolved now.
        workers: None: all that there are hold experts.
        copy_bytes_per_s: None: copies and fills go as fast as serving lets them.
    """

    uid: str
    name: str
    namespace: str
    source: str
    revision: str = ""
    dtype: str = "Auto"
    engine_replicas: int = 1
    max_batch_tokens: int = 2048
    kv_cache_bytes: int = 0
    engine_threads: int = 0
    workers_per_pod: int = 1
    memory_per_worker_bytes: int = 0
    worker_threads: int = 0
    workers: int | None = None
    standby_workers: int = 0
    copy_bytes_per_s: int | None = None
    resolved: str = ""


@dataclass(frozen=True)
class FetchState:
    """How far the model's files are on a node, as the fetch there says (`sources.fetch`).

    Attributes:
        phase: "Resolving", "Waiting", "Downloading", "Verifying", "Ready" or "Failed".
        error: Class of the error, where it failed.
        message: What to do about it.
    """

    phase: str
    bytes_done: int = 0
    bytes_total: int = 0
    error: str = ""
    message: str = ""

    @property
    def finished(self) -> bool:
        """Nothing more happens."""
        return self.phase in ("Ready", "Failed")


@dataclass(frozen=True)
class ModelFiles:
    """How far the model's files are on all nodes, and whether the source still is what is served; see `pool.proto`."""

    phase: str = ""
    bytes_done: int = 0
    bytes_total: int = 0
    nodes_ready: int = 0
    nodes: int = 0
    error: str = ""
    message: str = ""
    newer_revision: str = ""


@dataclass(frozen=True)
class Move:
    """A copy of `expert` that is to come into being on `target`, from the first of `sources` that has it ("": file)."""

    expert: Expert
    target: str
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """A reconfiguration that somebody asks for.

    Attributes:
        base_epoch: Epoch of the table it starts from.
        target: The complete placement it leads to.
        recorded: Whether it shows as the pool's operation; fencing after a new term does not.
        leader: Which of the operators asks; 0: one that is not elected, or nobody outside.
    """

    operation: str
    cause: Cause
    base_epoch: Epoch
    moves: tuple[Move, ...]
    target: Placement
    recorded: bool = True
    leader: int = 0

    def workers(self) -> frozenset[str]:
        """Workers that hold something in the end, or are to be given something on the way."""
        return self._workers

    @cached_property
    def _workers(self) -> frozenset[str]:
        placed = {worker for shares in self.target.values() for worker in shares}
        return frozenset(placed | {move.target for move in self.moves})


@dataclass(frozen=True)
class Prediction:
    """What a plan would do.

    Attributes:
        attached_experts: Of those moved, the ones whose page is in the target's domain already: they cost no byte.
        peak_bytes: Most that each worker holds on the way.
        refusal: Why it could not be carried out, or empty.
        waves: Commits that it takes.
    """

    moved_bytes: int
    moved_experts: int
    attached_experts: int
    seconds: float
    peak_bytes: Mapping[str, int]
    refusal: str
    waves: int = 1


@dataclass(frozen=True)
class Operation:
    """A reconfiguration as observed. Times are seconds since the Unix epoch; `finished_at` is None while it runs.

    Attributes:
        step_seconds: Of "start", "copy", "verify", "map", "populate", "warm-up" and "commit": the slowest worker's
            each.
        peak_bytes: What each worker held when all was prepared.
        predicted: What was expected of it; None when the model was not known.
        wave: The one that runs, or ran last.
    """

    id: str
    cause: Cause
    phase: Phase
    base_epoch: Epoch
    started_at: float
    epoch: Epoch | None = None
    moved_experts: int = 0
    moved_bytes: int = 0
    message: str = ""
    finished_at: float | None = None
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    attached_experts: int = 0
    step_seconds: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: Mapping[str, int] = field(default_factory=dict)
    predicted: "Prediction | None" = None
    wave: int = 1
