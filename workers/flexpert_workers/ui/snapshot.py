"""The pool as the page shows it: one frozen value, and what is another between two of them. `feed` takes them.

A snapshot is made of sections that are plain JSON. A section that is as before is the same object as before, so that
telling a watcher what changed costs a look at identities; what is large (placement, moves) is made anew only when the
table or the operation is another one. Experts are packed as layer * experts + index, as everywhere in `pool.proto`.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from flexpert_proto.measuring import Figures
from flexpert_workers.pool.controller import PoolController
from flexpert_workers.pool.loads import IntArray
from flexpert_workers.pool.state import Engine, ModelFacts, Operation, Placement, Worker
from flexpert_workers.pool.waves import Waves
from flexpert_workers.routing import RoutingTable
from flexpert_workers.ui.moves import moves_of, progress_of

Section = Mapping[str, object] | list[object] | None

_NOTHING = np.zeros(0, dtype=np.int64)
_TIMES = ("ttft_seconds", "tpot_seconds", "queue_seconds")
_HISTOGRAMS = (*(f"{who}_{time}" for who in ("ingress", "engine") for time in _TIMES), "engine_step_tokens")


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


class Snapshots:
    """Takes snapshots of one controller."""

    def __init__(self, controller: PoolController, wall: Callable[[], float] = time.time) -> None:
        self._controller = controller
        self._wall = wall
        self._last: Mapping[str, Section] = {}
        self._placed: tuple[RoutingTable | None, Section, Counter[str]] = (None, None, Counter())
        self._moving: tuple[Waves | None, Section] = (None, None)

    def take(self) -> Snapshot:
        """The pool as it is."""
        controller = self._controller
        model, operations = controller.model, controller.operations
        placement, replicas = self._placement()
        made: dict[str, Section] = {
            "pool": _pool(controller),
            "model": _model(model) if model is not None else None,
            "workers": [_worker(worker, replicas[worker.id]) for worker in controller.fleet.all()],
            "engines": [_engine(engine) for engine in controller.engines.engines()],
            "figures": _figures(controller.figures.total()),
            "placement": placement,
            "operation": operation_json(operations.last) if operations.last is not None else None,
            "history": [operation_json(one) for one in operations.history() if one.phase.finished],
            "moves": self._moves(model),
            "progress": progress_of(operations.shown) if operations.shown is not None else None,
        }
        before = self._last or made
        self._last = {name: before[name] if before[name] == section else section for name, section in made.items()}
        loads = controller.fleet.loads
        counts = loads.counts(model.layers * model.experts) if model is not None else _NOTHING
        return Snapshot(self._wall(), self._last, counts, loads.since)

    def _placement(self) -> tuple[Section, Counter[str]]:
        table = self._controller.keeper.table
        if table is not self._placed[0] or self._placed[1] is None:
            placed = table.placement if table is not None else {}
            counted = Counter(worker for shares in placed.values() for worker in shares)
            num_experts = table.num_experts if table is not None else 0
            self._placed = (table, placement_json(placed, num_experts), counted)
        return self._placed[1], self._placed[2]

    def _moves(self, model: ModelFacts | None) -> Section:
        shown = self._controller.operations.shown
        if shown is not self._moving[0] and model is not None and shown is not None:
            self._moving = (shown, moves_of(shown, model.experts))
        return self._moving[1]


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
    spec, model = controller.spec, controller.model
    experts = model.experts if model is not None else 0
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
        "lost": [layer * experts + index for layer, index in controller.lost_experts()],
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
