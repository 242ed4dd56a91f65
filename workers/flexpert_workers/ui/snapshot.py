"""The pool as the page shows it: one frozen value, and what is another between two of them. `feed` takes them.

A snapshot is made of sections that are plain JSON. A section that is as before is the same object as before, so that
telling a watcher what changed costs a look at identities; what is large (placement, moves) is made anew only when the
table or the operation is another one. Experts are packed as layer * experts + index, as everywhere in `pool.proto`.
"""

import operator
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from flexpert_proto.measuring import Figures
from flexpert_workers.pool.controller import PoolController
from flexpert_workers.pool.loads import IntArray
from flexpert_workers.pool.state import Engine, Expert, ModelFacts, Operation, Placement, Worker
from flexpert_workers.pool.waves import Waves
from flexpert_workers.routing import RoutingTable
from flexpert_workers.ui.moves import moves_of, progress_of

_Value = TypeVar("_Value")
Section = Mapping[str, object] | list[object] | None

_NOTHING = np.zeros(0, dtype=np.int64)
_TIMES = ("ttft_seconds", "tpot_seconds", "queue_seconds")
_HISTOGRAMS = (
    *(f"{who}_{time}" for who in ("ingress", "engine") for time in _TIMES),
    "engine_step_seconds",
    "engine_step_tokens",
)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The pool at one moment.

    Attributes:
        time: Seconds since the Unix epoch.
        sections: By name: pool, model, workers, engines, figures, placement, operation, history, moves, progress.
        counts: Tokens per expert since `since`; empty while no model is known.
    """

    time: float
    sections: Mapping[str, Section]
    counts: IntArray
    since: float

    def differs(self, before: "Snapshot") -> bool:
        """Whether there is anything to tell who knows `before`, besides the time."""
        same = all(section is before.sections[name] for name, section in self.sections.items())
        return not same or self.since != before.since or not np.array_equal(self.counts, before.counts)


def difference(told: Snapshot | None, now: Snapshot) -> dict[str, object]:
    """What to tell who was told `told`: whole sections, and by how much loads grew. None: everything."""
    news: dict[str, object] = {"time": now.time}
    for name, section in now.sections.items():
        if told is None or told.sections[name] is not section:
            news[name] = section
    if told is None or told.since != now.since or told.counts.shape != now.counts.shape:
        news["loads"] = {"since": now.since, "tokens": now.counts.tolist()}
    elif not np.array_equal(told.counts, now.counts):
        news["loads"] = {"since": now.since, "added": (now.counts - told.counts).tolist()}
    return news


class _Memo:
    """What was worked out last, as long as all that it was made from is the very same."""

    def __init__(self) -> None:
        self._made_from: tuple[object, ...] | None = None
        self._value: Any = None

    def of(self, made_from: tuple[object, ...], make: Callable[[], _Value]) -> _Value:
        """What `make` returns for this."""
        known = self._made_from
        if known is None or len(known) != len(made_from) or not all(map(operator.is_, known, made_from)):
            self._made_from, self._value = made_from, make()
        value: _Value = self._value
        return value


class Snapshots:
    """Takes snapshots of one controller."""

    def __init__(self, controller: PoolController, wall: Callable[[], float] = time.time) -> None:
        self._controller = controller
        self._wall = wall
        self._last: Mapping[str, Section] = {}
        self._placed, self._moves, self._progress, self._lost = _Memo(), _Memo(), _Memo(), _Memo()

    def take(self) -> Snapshot:
        """The pool as it is."""
        controller = self._controller
        model, operations, workers = controller.model, controller.operations, controller.fleet.all()
        table = controller.keeper.table
        placement, replicas = self._placed.of((table,), lambda: _placement(table))
        lost = self._lost.of((table, model, *workers), lambda: _packed(controller.lost_experts(), model))
        made: dict[str, Section] = {
            "pool": {**_pool(controller), "lost": lost},
            "model": _model(model) if model is not None else None,
            "workers": [_worker(worker, replicas[worker.id]) for worker in workers],
            "engines": [_engine(engine) for engine in controller.engines.engines()],
            "figures": _figures(controller.figures.total()),
            "placement": placement,
            "operation": operation_json(operations.last) if operations.last is not None else None,
            "history": [operation_json(one) for one in operations.history() if one.phase.finished],
            **self._moving(operations.shown, model),
        }
        before = self._last or made
        self._last = {name: _kept(before[name], section) for name, section in made.items()}
        loads = controller.fleet.loads
        counts = loads.counts(model.layers * model.experts) if model is not None else _NOTHING
        return Snapshot(self._wall(), self._last, counts, loads.since)

    def _moving(self, shown: Waves | None, model: ModelFacts | None) -> dict[str, Section]:
        """The moves of the operation that is shown, and how far they are."""
        if shown is None or model is None:
            return {"moves": None, "progress": None}
        stands = (shown.operation, shown.current.prepared)
        return {
            "moves": self._moves.of((shown, model), lambda: moves_of(shown, model.experts)),
            "progress": self._progress.of(stands, lambda: progress_of(shown)),
        }


def _placement(table: RoutingTable | None) -> tuple[Section, Counter[str]]:
    """The placement of a table, and how many replicas each worker has in it."""
    placed = table.placement if table is not None else {}
    counted = Counter(worker for shares in placed.values() for worker in shares)
    return placement_json(placed, table.num_experts if table is not None else 0), counted


def _packed(experts: Iterable[Expert], model: ModelFacts | None) -> list[int]:
    return [layer * model.experts + index for layer, index in experts] if model is not None else []


def _kept(before: Section, now: Section) -> Section:
    return before if before is now or before == now else now


def placement_json(placement: Placement, num_experts: int) -> dict[str, object]:
    """A placement: workers by name, and for each expert `[worker, share, worker, share, …]`, workers by position."""
    names = sorted({worker for shares in placement.values() for worker in shares})
    position = {worker: number for number, worker in enumerate(names)}
    rows: list[list[float]] = [[] for _ in range(len(placement))]
    for (layer, index), shares in placement.items():
        row = rows[layer * num_experts + index]
        for worker, share in shares.items():
            row += (position[worker], round(share, 4))
    return {"workers": names, "replicas": rows}


def operation_json(operation: Operation) -> dict[str, object]:
    """A reconfiguration as it stands."""
    return {
        "id": operation.id,
        "cause": str(operation.cause),
        "phase": str(operation.phase),
        "baseEpoch": str(operation.base_epoch),
        "epoch": str(operation.epoch) if operation.epoch is not None else "",
        "startedAt": operation.started_at,
        "finishedAt": operation.finished_at,
        "movedExperts": operation.moved_experts,
        "movedBytes": operation.moved_bytes,
        "attachedExperts": operation.attached_experts,
        "message": operation.message,
        "phaseSeconds": dict(operation.phase_seconds),
        "stepSeconds": dict(operation.step_seconds),
        "wave": operation.wave,
        "predictedSeconds": operation.predicted.seconds if operation.predicted is not None else None,
    }


def _pool(controller: PoolController) -> dict[str, object]:
    spec = controller.spec
    return {
        "uid": controller.settings.pool,
        "name": spec.name if spec is not None else "",
        "namespace": spec.namespace if spec is not None else "",
        "incarnation": controller.incarnation,
        "term": controller.keeper.term,
        "epoch": str(controller.keeper.epoch),
        "message": controller.message(),
        "wantedWorkers": spec.workers if spec is not None else None,
        "wantedStandby": spec.standby_workers if spec is not None else 0,
        "wantedEngines": spec.engine_replicas if spec is not None else 0,
    }


def _model(model: ModelFacts) -> dict[str, object]:
    return {
        "source": model.source,
        "architecture": model.architecture,
        "layers": model.layers,
        "experts": model.experts,
        "expertsPerToken": model.experts_per_token,
        "expertBytes": model.expert_bytes,
    }


def _worker(worker: Worker, replicas: int) -> dict[str, object]:
    slot, state = worker.slot, worker.state if worker.live else None
    return {
        "id": worker.id,
        "state": str(worker.condition),
        "pod": slot.pod if slot is not None else "",
        "node": slot.node if slot is not None else "",
        "replicas": replicas,
        "memoryBytes": worker.state.memory_bytes if worker.state is not None else 0,
        "residentBytes": state.resident_bytes if state is not None else 0,
    }


def _figures(figures: Figures) -> dict[str, object]:
    """What was measured of requests, all of it since `since`; the page takes differences."""
    return {
        "incarnation": figures.incarnation,
        "since": figures.since,
        "streams": figures.gauge("ingress_streams"),
        "waiting": figures.gauge("ingress_waiting"),
        "histograms": {
            name: {"bounds": one.bounds, "counts": one.counts}
            for name in _HISTOGRAMS
            if (one := figures.histogram(name)).count
        },
    }


def _engine(engine: Engine) -> dict[str, object]:
    return {
        "id": engine.id,
        "state": str(engine.condition),
        "pod": engine.pod,
        "epoch": str(engine.epoch),
        "running": engine.running,
        "waiting": engine.waiting,
        "kvUse": round(engine.kv_use, 4),
        "generatedTokens": engine.generated_tokens,
    }
