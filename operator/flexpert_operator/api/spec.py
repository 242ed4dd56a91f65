"""MoEDeployment as frozen values. `handlers` and `reconciler` parse the API server's object once, at the door."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flexpert_operator.api.quantities import to_bytes
from flexpert_placement.types import SolverName

Json = Mapping[str, Any]


class InvalidObject(Exception):
    """An object that the schema should have refused: the CRD that is installed is another version's."""


@dataclass(frozen=True)
class Model:
    """The checkpoint that is served."""

    source: str
    revision: str = "main"
    dtype: str = "Auto"


@dataclass(frozen=True)
class Resources:
    """A container's resources, by name, as Kubernetes writes quantities."""

    limits: Mapping[str, str | int] = field(default_factory=dict)
    requests: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Engines:
    """The engines; `kv_cache_bytes` 0 leaves the size to them."""

    replicas: int = 1
    max_batch_tokens: int = 2048
    kv_cache_bytes: int = 0
    resources: Resources = field(default_factory=Resources)


@dataclass(frozen=True)
class Experts:
    """The expert workers."""

    workers: int = 1
    standby_workers: int = 0
    workers_per_pod: int = 1
    memory_per_worker_bytes: int = 4 * 2**30
    copy_bytes_per_s: int | None = None
    resources: Resources = field(default_factory=Resources)

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
    """When experts are moved because their loads have changed.

    Attributes:
        interval_s: Between two looks.
        min_gain_percent: Of the makespan; what it takes to begin.
        stop_gain_percent: What it takes to go on.
        cooldown_s: After experts were moved.
        half_life_s: In which the weight of the loads that were seen halves.
        max_hold_s: Longest time that a gain is expected to last.
        move_cost_percent: Of the throughput, which serving is taken to lose while experts move.
        max_moves: Replicas copied by one rebalancing; None is no limit.
        max_bytes: Bytes copied by one rebalancing; None is no limit.
    """

    enabled: bool = True
    interval_s: float = 60
    min_gain_percent: float = 5
    stop_gain_percent: float = 2.5
    cooldown_s: float = 60
    half_life_s: float = 60
    max_hold_s: float = 3600
    move_cost_percent: float = 10
    max_moves: int | None = None
    max_bytes: int | None = None


@dataclass(frozen=True)
class PlacementSpec:
    """How experts are laid out."""

    min_replicas: int = 1
    solver: SolverName = SolverName.CBC
    time_limit_s: float = 10
    rebalance: Rebalance = field(default_factory=Rebalance)


@dataclass(frozen=True)
class Serving:
    """Ports of the ingress."""

    grpc_port: int = 9000
    http_port: int = 8000


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
    annotations: Mapping[str, str] = field(default_factory=dict)
    deleted_at: str | None = None
    status: Json = field(default_factory=dict)


def parse_deployment(body: Json) -> MoEDeployment:
    """The typed MoEDeployment of an object that the API server validated and defaulted.

    Raises:
        InvalidObject: A field is missing or has a wrong type.
    """
    metadata, spec = body["metadata"], body.get("spec", {})
    try:
        return MoEDeployment(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            generation=int(metadata.get("generation", 1)),
            resource_version=metadata["resourceVersion"],
            model=Model(**spec["model"]),
            engines=parse_engines(spec.get("engines", {})),
            experts=parse_experts(spec.get("experts", {})),
            placement=parse_placement(spec.get("placement", {})),
            serving=parse_serving(spec.get("serving", {})),
            annotations=dict(metadata.get("annotations") or {}),
            deleted_at=metadata.get("deletionTimestamp"),
            status=dict(body.get("status") or {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidObject(f"cannot read {metadata.get('name')}: {error!r}; update the MoEDeployment CRD") from error


def parse_engines(spec: Json) -> Engines:
    """`spec.engines`."""
    cache = spec.get("kvCacheMemory")
    return Engines(
        replicas=spec.get("replicas", 1),
        max_batch_tokens=spec.get("maxBatchTokens", 2048),
        kv_cache_bytes=to_bytes(cache) if cache is not None else 0,
        resources=parse_resources(spec.get("resources", {})),
    )


def parse_experts(spec: Json) -> Experts:
    """`spec.experts`."""
    rate = spec.get("copyBytesPerSecond")
    return Experts(
        workers=spec.get("workers", 1),
        standby_workers=spec.get("standbyWorkers", 0),
        workers_per_pod=spec.get("workersPerPod", 1),
        memory_per_worker_bytes=to_bytes(spec.get("memoryPerWorker", "4Gi")),
        copy_bytes_per_s=to_bytes(rate) if rate is not None else None,
        resources=parse_resources(spec.get("resources", {})),
    )


def parse_placement(spec: Json) -> PlacementSpec:
    """`spec.placement`."""
    solver = spec.get("solver", {})
    return PlacementSpec(
        min_replicas=spec.get("minReplicasPerExpert", 1),
        solver=SolverName(solver.get("name", SolverName.CBC)),
        time_limit_s=solver.get("timeLimitSeconds", 10),
        rebalance=parse_rebalance(spec.get("rebalance", {})),
    )


def parse_rebalance(spec: Json) -> Rebalance:
    """`spec.placement.rebalance`; what it takes to go on is half of what it takes to begin, unless it is said."""
    start = spec.get("minGainPercent", 5)
    max_bytes = spec.get("maxBytes")
    return Rebalance(
        enabled=spec.get("enabled", True),
        interval_s=spec.get("intervalSeconds", 60),
        min_gain_percent=start,
        stop_gain_percent=spec.get("stopGainPercent", start / 2),
        cooldown_s=spec.get("cooldownSeconds", 60),
        half_life_s=spec.get("halfLifeSeconds", 60),
        max_hold_s=spec.get("maxHoldSeconds", 3600),
        move_cost_percent=spec.get("moveCostPercent", 10),
        max_moves=spec.get("maxMoves"),
        max_bytes=to_bytes(max_bytes) if max_bytes is not None else None,
    )


def parse_serving(spec: Json) -> Serving:
    """`spec.serving`."""
    return Serving(grpc_port=spec.get("grpcPort", 9000), http_port=spec.get("httpPort", 8000))


def parse_resources(spec: Json) -> Resources:
    """`limits` and `requests` of a container."""
    return Resources(limits=dict(spec.get("limits", {})), requests=dict(spec.get("requests", {})))
