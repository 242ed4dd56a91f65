"""How long dispatches take, per MoE layer, over the last few thousand of them."""

import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
_WINDOW = 4096


@dataclass(frozen=True)
class LayerStatistics:
    """Times of the recent dispatches of a MoE layer, in microseconds.

    Attributes:
        num_dispatches: How many the times are of.
        dispatch_us_p50: From the call of `dispatch` to its return.
        compute_us_p50: Computing on the slowest worker of a dispatch.
        overhead_us_p50: The former minus the latter, of each dispatch.
    """

    layer: int
    num_dispatches: int
    dispatch_us_p50: float
    dispatch_us_p99: float
    compute_us_p50: float
    compute_us_p99: float
    overhead_us_p50: float
    overhead_us_p99: float


class DispatchTimes:
    """Collects times; written by the dispatching thread, read by any.

    Attributes:
        total_s: Of all dispatches since the start; the dispatching thread reads it.
        kept: Each dispatch until somebody takes it out: (layer, when it ended by time.monotonic, dispatch_us,
            compute_us); None: none is kept.
    """

    def __init__(self) -> None:
        self.total_s = 0.0
        self.kept: list[tuple[int, float, float, int]] | None = None
        self._times: dict[int, deque[tuple[float, int]]] = {}
        self._lock = threading.Lock()

    def add(self, layer: int, dispatch_us: float, compute_us: int) -> None:
        """Count one dispatch."""
        self.total_s += dispatch_us / 1e6
        if self.kept is not None:
            self.kept.append((layer, time.monotonic(), dispatch_us, compute_us))
        with self._lock:
            self._times.setdefault(layer, deque(maxlen=_WINDOW)).append((dispatch_us, compute_us))

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._times.clear()

    def summary(self) -> tuple[LayerStatistics, ...]:
        """The layers that were dispatched, in order."""
        with self._lock:
            times = {layer: np.array(entries) for layer, entries in sorted(self._times.items())}
        return tuple(_summarise(layer, entries[:, 0], entries[:, 1]) for layer, entries in times.items())


def _summarise(layer: int, dispatch_us: FloatArray, compute_us: FloatArray) -> LayerStatistics:
    quantiles = [np.percentile(values, (50, 99)) for values in (dispatch_us, compute_us, dispatch_us - compute_us)]
    return LayerStatistics(layer, len(dispatch_us), *(float(value) for pair in quantiles for value in pair))
