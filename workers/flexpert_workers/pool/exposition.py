"""What a pool controller tells Prometheus: what engines and workers measured, and how the pool stands.

`pool/metrics_server.py` serves it. Labels are the MoEDeployment's namespace and name, and few
others with few values; the loads of single experts are told by `GetPool`. Ingresses have a `/metrics` of their own, so
nothing of theirs is here.
"""

from collections.abc import Iterator

from prometheus_client.core import Metric

from flexpert_proto.metrics import ENGINE, WORKER
from flexpert_workers.exposition import Labels, Values, counters, families_of, gauge, gauges
from flexpert_workers.pool.controller import PoolController
from flexpert_workers.pool.state import Cause, Condition, Phase

CAUSES = tuple(cause for cause in Cause if cause is not Cause.UNSPECIFIED)
OUTCOMES = tuple(phase for phase in Phase if phase.finished)


def families(controller: PoolController) -> Iterator[Metric]:
    """Every family of a pool; nothing before the operator has said which pool it is."""
    if controller.spec is None:
        return
    labels = {"namespace": controller.spec.namespace, "name": controller.spec.name}
    yield from families_of(controller.figures.total(), (*ENGINE, *WORKER), labels)
    yield from _members(controller, labels)
    yield from _placement(controller, labels)
    yield from _reconfigurations(controller, labels)


def _members(controller: PoolController, labels: Labels) -> Iterator[Metric]:
    workers, engines = controller.fleet.all(), controller.engines.engines()
    members = (
        ("flexpert_pool_workers", "Expert workers, by state", [worker.condition for worker in workers]),
        ("flexpert_pool_engines", "Engines, by state", [engine.condition for engine in engines]),
    )
    for name, meaning, conditions in members:
        values: Values = {(state.lower(),): float(conditions.count(state)) for state in Condition}
        yield gauges(name, meaning, labels, ("state",), values)
    live = [worker.state for worker in workers if worker.state is not None and worker.live]
    resident, room = sum(one.resident_bytes for one in live), sum(one.memory_bytes for one in live)
    yield gauge("flexpert_pool_resident_bytes", "Memory of workers that experts fill", labels, resident)
    yield gauge("flexpert_pool_expert_memory_bytes", "Memory of workers that experts may fill", labels, room)


def _placement(controller: PoolController, labels: Labels) -> Iterator[Metric]:
    table, epoch = controller.keeper.table, controller.keeper.epoch
    placed = 0 if table is None else sum(len(one) for layer in table.replicas for one in layer)
    yield gauge("flexpert_pool_replicas", "Live copies of experts in the routing table", labels, placed)
    lost = len(controller.lost_experts())
    yield gauge("flexpert_pool_lost_experts", "Experts without a live copy", labels, lost)
    yield gauge("flexpert_pool_epoch", "Sequence of the newest routing table within its term", labels, epoch.sequence)
    yield gauge("flexpert_pool_term", "Term of the newest routing table", labels, epoch.term)
    layers: Values = {(str(layer),): value for layer, value in enumerate(controller.layer_imbalance())}
    meaning = "Busiest worker's tokens over the average in the last minute, by MoE layer"
    yield gauges("flexpert_layer_imbalance_ratio", meaning, labels, ("layer",), layers)


def _reconfigurations(controller: PoolController, labels: Labels) -> Iterator[Metric]:
    totals = controller.operations.totals
    ended: Values = {
        (cause.lower(), end.lower()): float(totals.ended[cause, end]) for cause in CAUSES for end in OUTCOMES
    }
    meaning = "Reconfigurations that have ended, by cause and outcome"
    yield counters("flexpert_pool_reconfigurations", meaning, labels, ("cause", "outcome"), ended)
    moved: Values = {(cause.lower(),): float(totals.moved_bytes[cause]) for cause in CAUSES}
    yield counters("flexpert_pool_moved_bytes", "Bytes of experts copied, by cause", labels, ("cause",), moved)
    phases: Values = {(phase,): seconds for phase, seconds in totals.phase_seconds.items()}
    meaning = "Time of reconfigurations, by phase"
    yield counters("flexpert_pool_reconfiguration_seconds", meaning, labels, ("phase",), phases)
    running = float(controller.operations.running is not None)
    yield gauge("flexpert_pool_reconfiguring", "1 while a reconfiguration runs", labels, running)
