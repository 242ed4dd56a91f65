"""The operator's Prometheus metrics. Reconcilers write them, `__main__` serves them at /metrics.

A metric of a MoEDeployment carries its namespace and name; what was deleted is no longer told. Histograms are of the
whole operator: a thousand objects would make some fifteen thousand series of one.
"""

import threading
from collections.abc import Callable
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from flexpert_operator.decide.observation import Operation
from flexpert_operator.decide.rebalancing import Decision

LABELS = ("namespace", "name")


class Metrics:
    """All metrics, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._imbalance = self._gauge("expert_imbalance_ratio", "Busiest worker's load over the average, now")
        self._drift = self._gauge("expert_load_drift_ratio", "Part of the load that moved between experts lately")
        self._rebalancing = self._gauge("rebalancing", "1 while experts are moved for balance, round by round")
        self._gain = self._gauge("rebalance_gain_ratio", "Reduction of the makespan that the last look predicted")
        self._benefit = self._gauge("rebalance_benefit_seconds", "Serving time that it would gain over the hold")
        self._hold = self._gauge("rebalance_hold_seconds", "Time for which the gain is expected to last")
        self._cost = self._gauge("rebalance_cost_seconds", "Serving time that the moves would cost")
        self._cost_bytes = self._gauge("rebalance_cost_bytes", "Bytes that the moves would copy")
        self._leaving = self._gauge("leaving_pods", "Expert pods that are about to go")
        self._decisions = Counter(
            "flexpert_rebalance_decisions",
            "Looks at whether moving experts pays, by outcome",
            (*LABELS, "action", "reason"),
            registry=self.registry,
        )
        self._reconfigurations = Counter(
            "flexpert_reconfigurations",
            "Reconfigurations that have ended, by cause and outcome",
            (*LABELS, "cause", "phase"),
            registry=self.registry,
        )
        self._moved_bytes = Counter(
            "flexpert_moved_bytes", "Bytes of experts copied, by cause", (*LABELS, "cause"), registry=self.registry
        )
        self._errors = Counter(
            "flexpert_reconcile_errors",
            "Reconciliations that came to nothing and are tried again, by reason",
            (*LABELS, "reason"),
            registry=self.registry,
        )
        self._waiting = Gauge(
            "flexpert_queue_depth", "MoEDeployments that wait to be reconciled", registry=self.registry
        )
        self._restarts = Counter(
            "flexpert_watch_restarts", "Watches that broke, by resource", ("resource",), registry=self.registry
        )
        self._reconciled = Counter(
            "flexpert_reconciliations", "Reconciliations, whatever came of them", LABELS, registry=self.registry
        )
        self._reconcile_s = Histogram("flexpert_reconcile_seconds", "Time of a reconciliation", registry=self.registry)

    def _gauge(self, name: str, documentation: str) -> Gauge:
        return Gauge(f"flexpert_{name}", documentation, LABELS, registry=self.registry)

    def note_reconciled(self, namespace: str, name: str, seconds: float) -> None:
        """A reconciliation has ended."""
        self._reconciled.labels(namespace, name).inc()
        self._reconcile_s.observe(seconds)

    def note_error(self, namespace: str, name: str, reason: str) -> None:
        """A reconciliation came to nothing."""
        self._errors.labels(namespace, name, reason).inc()

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Ask `depth` how many objects wait, whenever somebody wants to know."""
        self._waiting.set_function(depth)

    def note_watch_restart(self, resource: str) -> None:
        """A watch broke and is started again."""
        self._restarts.labels(resource).inc()

    def note_loads(self, namespace: str, name: str, imbalance: float, drift: float, leaving: int) -> None:
        """What was observed: busiest over average load, drift of the loads, pods about to go."""
        self._imbalance.labels(namespace, name).set(imbalance)
        self._drift.labels(namespace, name).set(drift)
        self._leaving.labels(namespace, name).set(leaving)

    def note_decision(self, namespace: str, name: str, decision: Decision) -> None:
        """A look at whether moving experts pays."""
        self._decisions.labels(namespace, name, decision.action, decision.reason).inc()
        self._rebalancing.labels(namespace, name).set(decision.active)
        if decision.gain_percent is not None:
            self._gain.labels(namespace, name).set(decision.gain_percent / 100)
        for gauge, value in (
            (self._benefit, decision.benefit_s),
            (self._hold, decision.hold_s),
            (self._cost, decision.cost_s),
            (self._cost_bytes, decision.cost_bytes),
        ):
            if value is not None:
                gauge.labels(namespace, name).set(value)

    def note_operation(self, namespace: str, name: str, operation: Operation) -> None:
        """A reconfiguration has ended."""
        self._reconfigurations.labels(namespace, name, operation.cause, operation.phase).inc()
        self._moved_bytes.labels(namespace, name, operation.cause).inc(operation.moved_bytes)

    def forget(self, namespace: str, name: str) -> None:
        """A MoEDeployment is gone."""
        for metric in (
            *(self._imbalance, self._drift, self._rebalancing, self._gain, self._benefit, self._hold, self._cost),
            *(self._cost_bytes, self._leaving, self._decisions, self._reconfigurations, self._moved_bytes),
            *(self._reconciled, self._errors),
        ):
            metric.remove_by_labels({"namespace": namespace, "name": name})

    def serve(self, host: str, port: int) -> tuple[WSGIServer, threading.Thread]:
        """Serve them over HTTP, in a thread; port 0 takes a free one, which the server knows (`server_port`)."""
        return start_http_server(port, host, self.registry)
