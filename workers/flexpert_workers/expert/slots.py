"""Which slot of the arena holds which expert: what the compute thread reads at every dispatch.

Double-buffered: changes are staged in the table that nobody reads, and one flip makes all of them visible, in a time
that depends on neither the size of the model nor that of its experts.
"""

import threading
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from flexpert_workers.memory.backend import ExpertKey

NO_SLOT = -1


class SlotTable:
    """[layers, experts] → slot, or `NO_SLOT`. One thread, that which computes, reads and flips; any thread stages."""

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self._read = np.full((num_layers, num_experts), NO_SLOT, dtype=np.int32)
        self._staged = self._read.copy()
        self._changes: dict[ExpertKey, int] = {}  # staged, and not visible yet
        self._behind: dict[ExpertKey, int] = {}  # visible, and not in the table that nobody reads
        self._lock = threading.Lock()

    def slots(self, layer: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """[indices] slots of experts of a layer. An expert that was only staged is flipped in when it is asked for."""
        slots: npt.NDArray[np.int32] = self._read[layer, indices]
        if self._changes and (slots == NO_SLOT).any():
            self.flip()
            slots = self._read[layer, indices]
        return slots

    def stage(self, changes: Mapping[ExpertKey, int]) -> None:
        """Prepare changes for the next flip."""
        with self._lock:
            for key, slot in (self._behind | dict(changes)).items():
                self._staged[key] = slot
            self._behind = {}
            self._changes.update(changes)

    def flip(self) -> None:
        """Make what was staged visible; the other table is brought up by whoever stages next."""
        with self._lock:
            if self._changes:
                self._read, self._staged = self._staged, self._read
                self._behind, self._changes = self._changes, {}
