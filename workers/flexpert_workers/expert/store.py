"""The experts that a worker holds: their pages, the budget they fill, what is in use, and the tokens each computed.

The compute thread borrows experts from the store, the control thread adds and drops them; the store's lock is all that
the two share. An expert that is borrowed is never freed: dropping waits.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from flexpert_workers.errors import CapacityError

ExpertKey = tuple[int, int]
"""(layer, index) of an expert, the layer 0-based among MoE layers."""


@dataclass(frozen=True, eq=False)
class ResidentExpert:
    """An expert in memory.

    Attributes:
        page: Its bytes as the checkpoint's layout lays them out.
        tensors: Views of the page by segment name, e.g. `gate_up_proj` and `down_proj`.
    """

    page: bytearray
    tensors: dict[str, torch.Tensor]


class ExpertStore:
    """Resident experts within a budget of bytes. Safe for several threads."""

    def __init__(self, num_layers: int, num_experts: int, page_bytes: int, memory_bytes: int) -> None:
        self.num_layers = num_layers
        self.num_experts = num_experts
        self.page_bytes = page_bytes
        self.memory_bytes = memory_bytes
        self._resident: dict[ExpertKey, ResidentExpert] = {}
        self._users: dict[ExpertKey, int] = {}
        self._reserved: set[ExpertKey] = set()
        self._tokens = np.zeros((num_layers, num_experts), dtype=np.int64)
        self._changed = threading.Condition()

    # ------------------------------------------------------------------ what the compute thread does

    def borrow(self, layer: int, indices: Sequence[int]) -> tuple[list[ResidentExpert], tuple[int, ...]]:
        """Borrow experts of a layer, all of them or none: (the experts, ()) or ([], the indices that are missing)."""
        keys = [(layer, index) for index in indices]
        with self._changed:
            missing = tuple(key[1] for key in keys if key not in self._resident)
            if missing:
                return [], missing
            for key in keys:
                self._users[key] = self._users.get(key, 0) + 1
            return [self._resident[key] for key in keys], ()

    def give_back(self, layer: int, indices: Sequence[int]) -> None:
        """End a `borrow` of the same experts."""
        with self._changed:
            for index in indices:
                users = self._users[layer, index] - 1
                if users:
                    self._users[layer, index] = users
                else:
                    del self._users[layer, index]
            self._changed.notify_all()

    def count(self, layer: int, indices: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]) -> None:
        """Add `tokens` computed to the counts of distinct experts of a layer."""
        self._tokens[layer, indices] += tokens

    # ------------------------------------------------------------------ what the control thread does

    def reserve(self, keys: Iterable[ExpertKey]) -> list[ExpertKey]:
        """Set memory aside for those of `keys` that are neither resident nor reserved, and return them.

        Raises:
            CapacityError: They do not fit in the budget; nothing is reserved.
        """
        with self._changed:
            wanted = [key for key in dict.fromkeys(keys) if key not in self._resident and key not in self._reserved]
            free = self.memory_bytes - self._accounted_bytes()
            if len(wanted) * self.page_bytes > free:
                raise CapacityError(
                    f"{len(wanted)} experts of {self.page_bytes} bytes do not fit in the {free} bytes left of "
                    f"{self.memory_bytes}: give the workers more memory, or use more workers"
                )
            self._reserved.update(wanted)
            return wanted

    def release(self, keys: Iterable[ExpertKey]) -> None:
        """Give reservations back that were not filled."""
        with self._changed:
            self._reserved.difference_update(keys)

    def add(self, key: ExpertKey, expert: ResidentExpert) -> None:
        """Make an expert resident in the memory reserved for it."""
        with self._changed:
            assert key in self._reserved, f"expert {key} was not reserved"
            self._reserved.remove(key)
            self._resident[key] = expert

    def drop(self, keys: Iterable[ExpertKey], timeout_s: float) -> int | None:
        """Free experts once nobody uses them; from now on nobody can borrow them.

        Returns:
            The bytes freed, or None when some were still in use after `timeout_s`: then all are as before.
        """
        with self._changed:
            removed = {key: self._resident.pop(key) for key in keys if key in self._resident}
            if self._changed.wait_for(lambda: not any(key in self._users for key in removed), timeout_s):
                return len(removed) * self.page_bytes
            self._resident.update(removed)
            return None

    def peek(self, key: ExpertKey) -> bytearray | None:
        """The page of an expert, to be copied; None when it is not resident."""
        with self._changed:
            expert = self._resident.get(key)
            return None if expert is None else expert.page

    def keys(self) -> tuple[ExpertKey, ...]:
        """The resident experts, sorted."""
        with self._changed:
            return tuple(sorted(self._resident))

    def resident_bytes(self) -> int:
        """Bytes of resident experts, and of those being prepared."""
        with self._changed:
            return self._accounted_bytes()

    def in_flight(self) -> int:
        """Borrowings that have not ended."""
        with self._changed:
            return sum(self._users.values())

    def tokens(self) -> tuple[int, ...]:
        """Tokens computed per expert since the start, packed layer * experts + index."""
        return tuple(self._tokens.reshape(-1).tolist())

    def _accounted_bytes(self) -> int:
        return (len(self._resident) + len(self._reserved)) * self.page_bytes
