"""Reconfigurations that have ended, added up. `Operations` counts, `exposition` tells."""

from collections import Counter

from flexpert_workers.pool.state import Operation


class OperationTotals:
    """Sums since the controller began.

    Attributes:
        ended: Operations by (cause, outcome).
        moved_bytes: Bytes that were copied, by cause.
        phase_seconds: Time spent in each phase.
    """

    def __init__(self) -> None:
        self.ended: Counter[tuple[str, str]] = Counter()
        self.moved_bytes: Counter[str] = Counter()
        self.phase_seconds: dict[str, float] = {}

    def add(self, operation: Operation) -> None:
        """Count an operation that has ended."""
        self.ended[operation.cause, operation.phase] += 1
        self.moved_bytes[operation.cause] += operation.moved_bytes
        for phase, seconds in operation.phase_seconds.items():
            self.phase_seconds[phase] = self.phase_seconds.get(phase, 0.0) + seconds
