"""What `flexpert top` shows of a pool: plain values, worked out of what was seen of it lately. Pure; `top` looks."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexpert_operator.decide.balance import Spread
from flexpert_operator.pool_client import placement_of
from flexpert_placement.types import WorkerCapacity
from flexpert_proto import pool_pb2 as pb
from flexpert_proto.measuring import Figures, Histogram, figures_of

RATE_S = 10.0
"""Time over which tokens per second are told."""

WINDOW_S = 60.0
"""Time over which loads and latencies are told."""

TIMES = {
    "TTFT": ("ingress_ttft_seconds", "engine_ttft_seconds"),
    "TPOT": ("ingress_tpot_seconds", "engine_tpot_seconds"),
    "queue": ("ingress_queue_seconds", "engine_queue_seconds"),
    "step": ("engine_step_seconds",),
}
"""Histograms of each time, that are looked at in this order: what clients saw first."""

_RUNNING = (pb.PENDING, pb.PREPARE, pb.COMMIT, pb.RETIRE)


@dataclass(frozen=True)
class Look:
    """What the pool controller said, and when (seconds since the Unix epoch)."""

    pool: pb.Pool
    at: float


@dataclass(frozen=True)
class WorkerRow:
    """A worker; its part of the tokens, and of its time that it computed, are None while nothing is known of them."""

    id: str
    pod: str
    node: str
    state: str
    experts: int
    resident_bytes: int
    memory_bytes: int
    load_percent: float | None
    busy_percent: float | None


@dataclass(frozen=True)
class EngineRow:
    """An engine; `epoch` is the newest that it has acknowledged."""

    id: str
    pod: str
    state: str
    running: int
    waiting: int
    kv_percent: float
    tokens_per_second: float | None
    epoch: str


@dataclass(frozen=True)
class TimeRow:
    """A time of requests or steps: how many there were, and percentiles in milliseconds; None where there was none."""

    name: str
    count: int
    p50_milliseconds: float | None
    p90_milliseconds: float | None
    p99_milliseconds: float | None


@dataclass(frozen=True)
class OperationView:
    """The reconfiguration that runs, or ran last.

    Attributes:
        percent: Of its bytes that are there, in Prepare; None in other phases, and where nothing is to be moved.
        seconds: Since it began, or that it took.
        expected_seconds: That were predicted.
    """

    id: str
    cause: str
    phase: str
    running: bool
    moved_experts: int
    moved_bytes: int
    expected_bytes: int
    percent: float | None
    seconds: float
    expected_seconds: float
    wave: int
    waves: int
    message: str


@dataclass(frozen=True)
class View:
    """Everything that is shown.

    Attributes:
        at: When it was looked, seconds since the Unix epoch.
        ready: Status of the condition Ready, and `reason` why it is that.
        trouble: Why what is shown is not of now, or empty.
        batch_tokens: Mean tokens of an engine's step, lately.
        times: Of the last minute.
        layer_imbalance: Of each layer the busiest worker's time over the average one.
        autoscaling: What the policy that targets it decided last; None where there is none.
    """

    name: str
    namespace: str
    at: float
    ready: str
    reason: str
    trouble: str
    model: str
    epoch: str
    message: str
    lost_experts: int
    workers: tuple[WorkerRow, ...]
    engines: tuple[EngineRow, ...]
    tokens_per_second: float | None
    batch_tokens: float | None
    times: tuple[TimeRow, ...]
    layer_imbalance: tuple[float, ...]
    operation: OperationView | None
    autoscaling: Mapping[str, Any] | None

    def json(self) -> dict[str, Any]:
        """As `-o json` writes it, with the API's spelling of names."""
        found: dict[str, Any] = camel(asdict(self))
        return found


def view_of(
    looks: Sequence[Look],
    deployment: Mapping[str, Any],
    policy: Mapping[str, Any] | None = None,
    trouble: str = "",
    now: float | None = None,
) -> View:
    """What is shown of a pool.

    Args:
        looks: The looks of the last minute, the newest last; at least one.
        deployment: The MoEDeployment.
        policy: The MoEAutoscalingPolicy that targets it, or None.
        trouble: Why there is no newer look, or empty.
        now: Seconds since the Unix epoch; the newest look's when left out.
    """
    last = looks[-1]
    pool = last.pool
    tokens = recent_tokens(looks)
    loads, imbalance = spread_of(pool, tokens)
    engines = tuple(engine_row(engine, looks) for engine in pool.engines)
    ready, reason = ready_of(deployment)
    figures = recent_figures(looks)
    rates = [row.tokens_per_second for row in engines if row.tokens_per_second is not None]
    return View(
        name=deployment["metadata"]["name"],
        namespace=deployment["metadata"]["namespace"],
        at=last.at,
        ready=ready,
        reason=reason,
        trouble=trouble,
        model=model_of(pool),
        epoch=f"{pool.epoch.term}.{pool.epoch.sequence}",
        message=pool.message,
        lost_experts=len(pool.lost),
        workers=tuple(sorted((worker_row(worker, loads, looks) for worker in pool.workers), key=_busiest_first)),
        engines=tuple(sorted(engines, key=lambda row: (-row.running - row.waiting, row.id))),
        tokens_per_second=sum(rates) if rates else None,
        batch_tokens=None if figures is None else mean_of(figures.histogram("engine_step_tokens")),
        times=() if figures is None else times_of(figures),
        layer_imbalance=tuple(round(one, 4) for one in pool.layer_imbalance) or imbalance,
        operation=operation_of(pool.operation, now or last.at) if pool.HasField("operation") else None,
        autoscaling=autoscaling_of(policy),
    )


def kept(looks: Sequence[Look], now: float) -> list[Look]:
    """The looks that still count: of the last minute, of the same controller, and one at least."""
    newest = looks[-1:]
    same = [look for look in looks if newest and look.pool.incarnation == newest[0].pool.incarnation]
    return [look for look in same if now - look.at <= WINDOW_S] or list(newest)


def recent_figures(looks: Sequence[Look]) -> Figures | None:
    """What was measured lately, in the first seconds everything that ever was; None where nobody tells."""
    if not looks[-1].pool.HasField("figures"):
        return None
    now, long_enough = figures_of(looks[-1].pool.figures), looks[-1].at - looks[0].at >= RATE_S
    told = long_enough and looks[0].pool.HasField("figures")
    return now.minus(figures_of(looks[0].pool.figures)) if told else now


def times_of(figures: Figures) -> tuple[TimeRow, ...]:
    """The times' percentiles; of what clients saw, else of what engines did."""
    rows = []
    for name, histograms in TIMES.items():
        found = next((one for one in map(figures.histogram, histograms) if one.count), Histogram((), (0,)))
        values = [round(1000 * found.quantile(part), 2) if found.count else None for part in (0.5, 0.9, 0.99)]
        rows.append(TimeRow(name, found.count, *values))
    return tuple(rows)


def mean_of(histogram: Histogram) -> float | None:
    """None where nothing was observed."""
    return round(histogram.mean, 1) if histogram.count else None


def recent_tokens(looks: Sequence[Look]) -> NDArray[np.float64] | None:
    """[layers, experts] tokens of the time that the looks cover, else of all time; None where none is known."""
    last = looks[-1].pool
    shape = (last.model.layers, last.model.experts)
    if len(last.loads) != shape[0] * shape[1] or not last.loads:
        return None
    now = np.array(last.loads, dtype=np.float64)
    for look in looks:
        if look.pool.loads_since == last.loads_since and len(look.pool.loads) == len(now):
            lately = now - np.array(look.pool.loads, dtype=np.float64)
            if lately.any() and (lately >= 0).all():
                return lately.reshape(shape)
    return now.reshape(shape) if now.any() else None


def spread_of(pool: pb.Pool, tokens: NDArray[np.float64] | None) -> tuple[dict[str, float], tuple[float, ...]]:
    """Each worker's part of the tokens, and each layer's busiest worker over the average one."""
    serving = [worker.id for worker in pool.workers if worker.state in (pb.Worker.READY, pb.Worker.DRAINING)]
    if tokens is None or not serving:
        return {}, ()
    capacities = [WorkerCapacity(worker, memory_bytes=0) for worker in serving]
    times = Spread.of(placement_of(pool), capacities).times(tokens)
    if not times.any():
        return {}, ()
    parts = times.sum(axis=0) / times.sum()
    average = times.mean(axis=1)
    imbalance = np.divide(times.max(axis=1), average, out=np.ones_like(average), where=average > 0)
    return dict(zip(serving, parts.tolist(), strict=True)), tuple(round(float(one), 4) for one in imbalance)


def worker_row(worker: pb.Worker, loads: Mapping[str, float], looks: Sequence[Look]) -> WorkerRow:
    """One worker."""
    load, busy = loads.get(worker.id), busy_of(worker, looks)
    return WorkerRow(
        id=worker.id,
        pod=worker.pod,
        node=worker.node,
        state=pb.Worker.State.Name(worker.state).capitalize(),
        experts=len(worker.experts),
        resident_bytes=worker.resident_bytes,
        memory_bytes=worker.memory_bytes,
        load_percent=None if load is None else round(100 * load, 2),
        busy_percent=None if busy is None else round(100 * busy, 2),
    )


def busy_of(worker: pb.Worker, looks: Sequence[Look]) -> float | None:
    """Part of its time lately in which a worker computed; None where nobody tells."""
    if not worker.up_seconds:
        return None
    then = [one for look in looks[:-1] for one in look.pool.workers if one.id == worker.id]
    for one in then[:1]:
        if worker.incarnation == one.incarnation and worker.up_seconds > one.up_seconds:
            return min((worker.busy_seconds - one.busy_seconds) / (worker.up_seconds - one.up_seconds), 1.0)
    return min(worker.busy_seconds / worker.up_seconds, 1.0)


def _busiest_first(row: WorkerRow) -> tuple[float, int, str]:
    return -(row.load_percent or 0.0), -row.resident_bytes, row.id


def engine_row(engine: pb.Engine, looks: Sequence[Look]) -> EngineRow:
    """One engine, with how fast it generates."""
    return EngineRow(
        id=engine.id,
        pod=engine.pod,
        state=pb.Engine.State.Name(engine.state).capitalize(),
        running=engine.running,
        waiting=engine.waiting,
        kv_percent=round(100 * engine.kv_use, 1),
        tokens_per_second=rate_of(engine, looks),
        epoch=f"{engine.epoch.term}.{engine.epoch.sequence}",
    )


def rate_of(engine: pb.Engine, looks: Sequence[Look]) -> float | None:
    """Tokens per second over the last seconds; None from one look alone."""
    last = looks[-1]
    for look in looks[:-1]:
        if last.at - look.at <= RATE_S and last.at > look.at:
            then = [one.generated_tokens for one in look.pool.engines if one.id == engine.id]
            if then and engine.generated_tokens >= then[0]:
                return round((engine.generated_tokens - then[0]) / (last.at - look.at), 2)
    return None


def operation_of(operation: pb.Operation, now: float) -> OperationView:
    """The reconfiguration that runs or ran last."""
    running = operation.phase in _RUNNING
    expected = operation.predicted.moved_bytes
    part = 100 * operation.moved_bytes / expected if expected and operation.phase == pb.PREPARE else None
    return OperationView(
        id=operation.id,
        cause=pb.Cause.Name(operation.cause).capitalize(),
        phase=pb.Phase.Name(operation.phase).replace("_", " ").capitalize(),
        running=running,
        moved_experts=operation.moved_experts,
        moved_bytes=operation.moved_bytes,
        expected_bytes=expected,
        percent=None if part is None else round(min(part, 100.0), 1),
        seconds=round(max(0.0, (now if running else operation.finished_at) - operation.started_at), 3),
        expected_seconds=round(operation.predicted.seconds, 3),
        wave=operation.wave,
        waves=max(operation.predicted.waves, operation.wave),
        message=operation.message,
    )


def model_of(pool: pb.Pool) -> str:
    """What is served, in a few words."""
    if not pool.HasField("model"):
        return ""
    model = pool.model
    return f"{model.architecture}, {model.layers} layers of {model.experts} experts, {model.experts_per_token} a token"


def ready_of(deployment: Mapping[str, Any]) -> tuple[str, str]:
    """Status of the condition Ready, and why it is that."""
    for condition in (deployment.get("status") or {}).get("conditions") or ():
        if condition["type"] == "Ready":
            said = (condition.get("reason", ""), condition.get("message", ""))
            return condition["status"], ": ".join(filter(None, said))
    return "Unknown", ""


def autoscaling_of(policy: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What a policy decided last."""
    if policy is None:
        return None
    status = policy.get("status") or {}
    decision = status.get("lastDecision") or {}
    return {
        "policy": policy["metadata"]["name"],
        "desired": status.get("desired"),
        "time": decision.get("time"),
        "message": decision.get("message", "has decided nothing yet"),
    }


def camel(value: Any) -> Any:
    """The same with keys as the API spells them."""
    if isinstance(value, Mapping):
        return {_camel_key(key): camel(inner) for key, inner in value.items()}
    return [camel(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _camel_key(key: str) -> str:
    first, *rest = key.split("_")
    return first + "".join(part.capitalize() for part in rest)
