"""Spans of reconfigurations: one for each, with its phases as parts. `Operations` tells of every change."""

import time
from collections.abc import Callable

from flexpert_proto.tracing import Attributes, Span, Tracing
from flexpert_workers.pool.state import Operation, Phase


class OperationSpans:
    """Spans of one controller's reconfigurations.

    Args:
        clock: That of the tracing.
    """

    def __init__(self, tracing: Tracing, clock: Callable[[], float] = time.monotonic) -> None:
        self._tracing = tracing
        self._clock = clock
        self._spans: dict[str, Span] = {}
        self._phases: dict[str, tuple[Phase, float, int]] = {}

    def note(self, operation: Operation) -> None:
        """An operation is as it is now."""
        now = self._clock()
        if operation.id not in self._spans:
            if operation.phase.finished:
                return
            attributes = {"flexpert.operation": operation.id, "flexpert.cause": operation.cause.lower()}
            self._spans[operation.id] = self._tracing.begin("reconfiguration", "", now, attributes)
            self._phases[operation.id] = (operation.phase, now, operation.wave)
            return
        span, (phase, since, wave) = self._spans[operation.id], self._phases[operation.id]
        if (phase, wave) == (operation.phase, operation.wave):
            return
        span.child(phase.lower(), since, now, {"flexpert.wave": wave})
        self._phases[operation.id] = (operation.phase, now, operation.wave)
        if operation.phase.finished:
            self._end(operation, now)

    def _end(self, operation: Operation, now: float) -> None:
        steps = {f"flexpert.{name.replace('-', '_')}_s": value for name, value in operation.step_seconds.items()}
        attributes: Attributes = {
            "flexpert.outcome": operation.phase.lower(),
            "flexpert.moved_experts": operation.moved_experts,
            "flexpert.moved_bytes": operation.moved_bytes,
            **steps,
        }
        error = "" if operation.phase is Phase.SUCCEEDED else operation.message or operation.phase.lower()
        self._spans.pop(operation.id).end(now, attributes, error)
        del self._phases[operation.id]
