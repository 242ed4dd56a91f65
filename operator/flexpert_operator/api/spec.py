"""MoEDeployment as frozen values, and the one place where its fields, defaults, bounds and rules are written down.

`handlers` and `reconciler` parse the API server's object once, at the door; `crd` makes the CustomResourceDefinition
of these classes. Of a field without a default in the API, `absent` says what leaving it out means.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, ClassVar

from flexpert_operator.api.fields import Field, FieldError, Json, Rule, read
from flexpert_operator.api.ingress import Ingress as Ingress
from flexpert_operator.api.ingress import Serving as Serving
from flexpert_operator.api.model import Model as Model
from flexpert_operator.api.names import ENGINES_ROLE, EXPERTS_ROLE, HEAD_ROLE, INGRESS_ROLE
from flexpert_operator.api.pods import DisruptionBudget, PodSettings
from flexpert_operator.api.pods import Resources as Resources
from flexpert_operator.api.security import Security
from flexpert_placement.types import SolverName

GIBIBYTE = 2**30


class InvalidObject(Exception):
    """An object that the schema should have refused: the CRD that is installed is another version's."""


class Objective(StrEnum):
    """What a placement minimises."""

    MAKESPAN = "Makespan"


@dataclass(frozen=True)
class Engines:
    """The engines; `kv_cache_bytes` 0 leaves the size to them."""

    replicas: Annotated[int, Field("Number of engines.", minimum=1, maximum=256)] = 1
    max_batch_tokens: Annotated[
        int,
        Field("Token budget of one forward pass; longer prompts are cut into chunks.", minimum=16, maximum=1048576),
    ] = 2048
    kv_cache_bytes: Annotated[
        int,
        Field(
            "Bound on the KV cache of an engine.",
            name="kvCacheMemory",
            quantity=True,
            absent="it comes from the model and the memory limit of the container",
        ),
    ] = 0
    resources: Annotated[Resources, Field("Resources of the container, as Kubernetes writes them.")] = field(
        default_factory=Resources
    )
    disruption_budget: Annotated[DisruptionBudget, Field("How many pods may be evicted at a time.")] = field(
        default_factory=DisruptionBudget
    )
    pod: Annotated[PodSettings, Field("Of its pods.", inline=True)] = field(default_factory=PodSettings)


@dataclass(frozen=True)
class Experts:
    """The expert workers."""

    RULES: ClassVar = (
        Rule(
            "!has(self.workers) || !has(self.workersPerPod) || self.workers % self.workersPerPod == 0",
            "workers must be a multiple of workersPerPod",
            ".workers",
        ),
    )

    workers: Annotated[
        int, Field("Number of expert workers; 0 is idle. kubectl scale writes it.", minimum=0, maximum=4096)
    ] = 1
    workers_per_pod: Annotated[
        int,
        Field(
            "Workers that share a pod and its memory; cannot be changed.",
            minimum=1,
            maximum=16,
            rules=(Rule("self == oldSelf", "workersPerPod cannot be changed; make another MoEDeployment"),),
        ),
    ] = 1
    standby_workers: Annotated[
        int,
        Field(
            "Workers that are kept beside these, started and connected but without experts, in pods of their own. "
            "Growth and the loss of a worker take one at once; another is started behind it.",
            minimum=0,
            maximum=256,
        ),
    ] = 0
    memory_per_worker_bytes: Annotated[
        int,
        Field(
            "Memory that a worker may fill with experts: the GPU's where resources ask for nvidia.com/gpu, of which "
            "the workers of a pod take one each in turn.",
            name="memoryPerWorker",
            quantity=True,
        ),
    ] = 4 * GIBIBYTE
    copy_bytes_per_s: Annotated[
        int | None,
        Field(
            "Most bytes a second that a page owner takes in, from other owners and from the checkpoint, and most that "
            "it gives to others. It makes way for serving all the same, which shrinks the rate while workers are busy.",
            name="copyBytesPerSecond",
            quantity=True,
            absent="it is limited by that alone",
        ),
    ] = None
    resources: Annotated[Resources, Field("Resources of the container, as Kubernetes writes them.")] = field(
        default_factory=Resources
    )
    disruption_budget: Annotated[DisruptionBudget, Field("How many pods may be evicted at a time.")] = field(
        default_factory=DisruptionBudget
    )
    pod: Annotated[PodSettings, Field("Of its pods.", inline=True)] = field(default_factory=PodSettings)

    @property
    def pods(self) -> int:
        """Pods that hold the workers asked for."""
        return self.workers // self.workers_per_pod

    @property
    def standby_pods(self) -> int:
        """Pods beside them whose workers stand by."""
        return -(-self.standby_workers // self.workers_per_pod)


@dataclass(frozen=True)
class Rebalance:
    """When experts are moved because their loads have changed; times in seconds, gains in percent of the makespan."""

    RULES: ClassVar = (
        Rule(
            "!has(self.stopGainPercent) || !has(self.minGainPercent) || self.stopGainPercent <= self.minGainPercent",
            "stopGainPercent must be at most minGainPercent",
            ".stopGainPercent",
        ),
    )

    enabled: Annotated[bool, Field("Whether it is done.")] = True
    interval_s: Annotated[
        float,
        Field(
            "Time between two looks at whether moving experts pays.", name="intervalSeconds", minimum=5, maximum=86400
        ),
    ] = 60
    min_gain_percent: Annotated[
        float,
        Field(
            "Smallest predicted reduction of the makespan for which experts begin to be moved. Whatever it is, they "
            "are moved only where the time gained exceeds what the moves cost.",
            minimum=0,
            maximum=100,
        ),
    ] = 5
    stop_gain_percent: Annotated[
        float | None,
        Field(
            "Smallest reduction for which a rebalancing that has begun goes on; at most minGainPercent.",
            minimum=0,
            maximum=100,
            absent="half of minGainPercent",
        ),
    ] = None
    cooldown_s: Annotated[
        float,
        Field(
            "Time after a rebalancing in which no other one starts.", name="cooldownSeconds", minimum=0, maximum=86400
        ),
    ] = 60
    half_life_s: Annotated[
        float,
        Field(
            "Time in which the weight of the loads that were seen halves. Shorter follows the text faster, longer is "
            "surer. Nothing is moved before loads have been watched for this long.",
            name="halfLifeSeconds",
            minimum=1,
            maximum=86400,
        ),
    ] = 60
    max_hold_s: Annotated[
        float,
        Field(
            "Longest time for which a gain is expected to last. The time is estimated from how fast the loads drift; "
            "the moves have to pay within it.",
            name="maxHoldSeconds",
            minimum=1,
            maximum=604800,
        ),
    ] = 3600
    move_cost_percent: Annotated[
        float,
        Field("Part of the throughput that serving is taken to lose while experts are moved.", minimum=0, maximum=100),
    ] = 10
    max_moves: Annotated[int | None, Field("Copies that one rebalancing may make.", minimum=1, absent="no limit")] = (
        None
    )
    max_bytes: Annotated[
        int | None, Field("Bytes that one rebalancing may copy.", quantity=True, absent="no limit")
    ] = None

    @property
    def go_on_percent(self) -> float:
        """What it takes to go on once it has begun."""
        return self.min_gain_percent / 2 if self.stop_gain_percent is None else self.stop_gain_percent


@dataclass(frozen=True)
class Solver:
    """What solves the integer program."""

    name: Annotated[SolverName, Field("Its name.")] = SolverName.CBC
    time_limit_s: Annotated[
        float,
        Field(
            "Time after which the best placement found so far is taken.",
            name="timeLimitSeconds",
            minimum=1,
            maximum=600,
        ),
    ] = 10


@dataclass(frozen=True)
class PlacementSpec:
    """How experts are laid out."""

    min_replicas: Annotated[
        int,
        Field(
            "Copies that every expert has at least, each on another worker.",
            name="minReplicasPerExpert",
            minimum=1,
            maximum=16,
        ),
    ] = 1
    objective: Annotated[
        Objective, Field("What is minimised. Makespan is the time of the busiest worker, summed over the layers.")
    ] = Objective.MAKESPAN
    solver: Annotated[Solver, Field("The solver of the integer program.")] = field(default_factory=Solver)
    rebalance: Annotated[Rebalance, Field("Moving experts because their loads have changed.")] = field(
        default_factory=Rebalance
    )


@dataclass(frozen=True)
class Head:
    """The head of the Ray cluster, which also runs the pool controller."""

    pod: Annotated[PodSettings, Field("Of its pods.", inline=True)] = field(default_factory=PodSettings)


@dataclass(frozen=True)
class Spec:
    """`spec` of a MoEDeployment."""

    RULES: ClassVar = (
        Rule(
            "!has(self.placement) || !has(self.placement.minReplicasPerExpert) || !has(self.experts) || "
            "!has(self.experts.workers) || self.experts.workers == 0 || "
            "self.placement.minReplicasPerExpert <= self.experts.workers",
            "placement.minReplicasPerExpert must be at most experts.workers",
            ".placement.minReplicasPerExpert",
        ),
    )

    model: Annotated[Model, Field("The checkpoint.")]
    engines: Annotated[Engines, Field("The engines, which hold attention, the KV cache and the request queue.")] = (
        field(default_factory=Engines)
    )
    experts: Annotated[Experts, Field("The expert workers, which hold the experts and compute them.")] = field(
        default_factory=Experts
    )
    placement: Annotated[PlacementSpec, Field("How experts are laid out over the workers.")] = field(
        default_factory=PlacementSpec
    )
    serving: Annotated[Serving, Field("Ports of the ingress.")] = field(default_factory=Serving)
    head: Annotated[Head, Field("The head of the Ray cluster, which also runs the pool controller.")] = field(
        default_factory=Head
    )
    ingress: Annotated[Ingress, Field("The ingress, which holds clients' streams and finds engines for them.")] = field(
        default_factory=Ingress
    )
    security: Annotated[Security, Field("Certificates, tokens and keys, in Secrets of the same namespace.")] = field(
        default_factory=Security
    )


@dataclass(frozen=True)
class MoEDeployment:
    """A MoEDeployment as it was read.

    Attributes:
        deleted_at: RFC 3339 time at which deletion was asked for, or None.
        status: The status as it was, raw.
    """

    name: str
    namespace: str
    uid: str
    generation: int
    resource_version: str
    model: Model
    engines: Engines
    experts: Experts
    placement: PlacementSpec
    serving: Serving
    head: Head = field(default_factory=Head)
    ingress: Ingress = field(default_factory=Ingress)
    security: Security = field(default_factory=Security)
    annotations: Mapping[str, str] = field(default_factory=dict)
    deleted_at: str | None = None
    status: Json = field(default_factory=dict)

    def pod_settings(self, role: str) -> PodSettings:
        """What is said about the pods of a role."""
        pods = {
            HEAD_ROLE: self.head.pod,
            ENGINES_ROLE: self.engines.pod,
            EXPERTS_ROLE: self.experts.pod,
            INGRESS_ROLE: self.ingress.pod,
        }
        return pods[role]


def parse_deployment(body: Json) -> MoEDeployment:
    """The typed MoEDeployment of an object that the API server validated and defaulted.

    Raises:
        InvalidObject: A field is missing or has a wrong type; the message has its path.
    """
    metadata = body["metadata"]
    try:
        spec = read(Spec, body.get("spec", {}), "spec")
        return MoEDeployment(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            generation=int(metadata.get("generation", 1)),
            resource_version=metadata["resourceVersion"],
            model=spec.model,
            engines=spec.engines,
            experts=spec.experts,
            placement=spec.placement,
            serving=spec.serving,
            head=spec.head,
            ingress=spec.ingress,
            security=spec.security,
            annotations=dict(metadata.get("annotations") or {}),
            deleted_at=metadata.get("deletionTimestamp"),
            status=dict(body.get("status") or {}),
        )
    except (KeyError, FieldError) as error:
        raise InvalidObject(f"cannot read {metadata.get('name')}: {error}; update the MoEDeployment CRD") from error
