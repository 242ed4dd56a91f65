"""The experts that a worker holds: pages mapped into slots, the budget they fill, and the tokens each computed.

The compute thread borrows experts, the control and the preparing thread add and drop them. The compute thread alone
maps, unmaps and flips (`turns`), so an expert is never taken away under a dispatch, and a dispatch takes no lock.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from flexpert_workers.checkpoint import ExpertLayout
from flexpert_workers.errors import CapacityError, PageError
from flexpert_workers.expert.slots import NO_SLOT, SlotTable
from flexpert_workers.expert.turns import ComputeTurns
from flexpert_workers.memory.backend import Arena, ExpertKey
from flexpert_workers.memory.loans import Loan

_UNMAPPED_IN_A_TURN = 4


@dataclass(frozen=True, eq=False)
class ResidentExpert:
    """An expert in memory: views of its slot by segment name, e.g. `gate_up_proj` and `down_proj`."""

    tensors: dict[str, torch.Tensor]


class HoldSeconds(NamedTuple):
    """What it took to hold an expert: the compute thread stood still to `map` it; the rest was done beside it."""

    map: float
    populate: float
    try_out: float


class ExpertStore:
    """Resident experts within a budget. Safe for several threads.

    Args:
        arena: Has one slot more than there may be experts, so that a move finds a free one.
        turns: Of the thread that computes.
        release: Gives pages back to their owner once they are unmapped.
        try_out: Computes from an expert that nobody dispatches to yet; raises when it is of no use.
    """

    def __init__(
        self,
        num_layers: int,
        num_experts: int,
        layout: ExpertLayout,
        arena: Arena,
        turns: ComputeTurns,
        release: Callable[[Iterable[ExpertKey]], None],
        try_out: Callable[[ResidentExpert], None],
    ) -> None:
        self.num_layers = num_layers
        self.num_experts = num_experts
        self.page_bytes = layout.page_bytes
        self.capacity = arena.num_slots - 1
        self._layout = layout
        self._arena = arena
        self._turns = turns
        self._release = release
        self._try_out = try_out
        self._table = SlotTable(num_layers, num_experts)
        self._experts: list[ResidentExpert | None] = [None] * arena.num_slots
        self._in_flight = 0
        self._tokens = np.zeros((num_layers, num_experts), dtype=np.int64)
        self._lock = threading.Lock()  # of what follows
        self._mapped: dict[ExpertKey, tuple[int, Loan]] = {}
        self._reserved: set[ExpertKey] = set()
        self._num_retiring = 0
        self._free = list(range(arena.num_slots))

    # ------------------------------------------------------------------ what the compute thread does

    def borrow(self, layer: int, indices: npt.NDArray[np.int64]) -> tuple[list[ResidentExpert], tuple[int, ...]]:
        """Borrow experts of a layer, all of them or none: (the experts, ()) or ([], the indices that are missing)."""
        slots = self._table.slots(layer, indices)
        missing = indices[slots == NO_SLOT]
        if len(missing):
            return [], tuple(missing.tolist())
        self._in_flight = len(slots)
        return [self._expert(slot) for slot in slots.tolist()], ()

    def give_back(self) -> None:
        """End the last `borrow`."""
        self._in_flight = 0

    def count(self, layer: int, indices: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]) -> None:
        """Add `tokens` computed to the counts of distinct experts of a layer."""
        self._tokens[layer, indices] += tokens

    # ------------------------------------------------------------------ what the other threads do

    def reserve(self, keys: Iterable[ExpertKey]) -> list[ExpertKey]:
        """Set slots aside for those of `keys` that are neither resident nor reserved, and return them.

        Raises:
            CapacityError: They do not fit; nothing is reserved.
        """
        with self._lock:
            wanted = [key for key in dict.fromkeys(keys) if key not in self._mapped and key not in self._reserved]
            free = self.capacity - self._num_accounted()
            if len(wanted) > free:
                raise CapacityError(
                    f"{len(wanted)} experts of {self.page_bytes} bytes do not fit: this worker has room for {free} "
                    f"more, {self.capacity} in all; give the workers more memory, or use more workers"
                )
            self._reserved.update(wanted)
            return wanted

    def unreserve(self, keys: Iterable[ExpertKey]) -> None:
        """Give reservations back that were not filled."""
        with self._lock:
            self._reserved.difference_update(keys)

    def hold(self, loan: Loan) -> HoldSeconds:
        """Map and populate a page in a slot reserved for it, try it out and stage it: `flip` has dispatches see it.

        Raises:
            OSError: It cannot be mapped.
            PageError: What it computes is no number.
        """
        with self._lock:
            assert loan.key in self._reserved, f"expert {loan.key} was not reserved"
            slot = self._free.pop()
        try:
            seconds = self._bring_up(slot, loan)
        except BaseException:
            with self._lock:
                self._free.append(slot)
            raise
        with self._lock:
            self._reserved.remove(loan.key)
            self._mapped[loan.key] = slot, loan
        self._table.stage({loan.key: slot})
        return seconds

    def flip(self, timeout_s: float) -> float:
        """Make what was held since the last flip visible to dispatches; seconds that the compute thread stood still.

        Raises:
            TimeoutError: The compute thread is busy. Nothing is lost by it: a dispatch that needs an expert that is
                only staged flips it in.
        """
        return self._turns.run(self._table.flip, timeout_s)

    def drop(self, keys: Iterable[ExpertKey], timeout_s: float) -> int | None:
        """Free experts between two dispatches; from then on nobody can borrow them.

        Returns:
            The bytes freed, or None when the compute thread was busy for `timeout_s`: then all are as before.
        """
        with self._lock:
            dropped = {key: self._mapped.pop(key) for key in keys if key in self._mapped}
            self._num_retiring += len(dropped)
        self._table.stage(dict.fromkeys(dropped, NO_SLOT))
        try:
            self._turns.run(self._table.flip, timeout_s)
        except TimeoutError:
            self._table.stage({key: slot for key, (slot, _) in dropped.items()})
            with self._lock:
                self._mapped.update(dropped)
                self._num_retiring -= len(dropped)
            return None
        self._unmap([slot for slot, _ in dropped.values()])
        self._release(dropped)
        with self._lock:
            self._free.extend(slot for slot, _ in dropped.values())
            self._num_retiring -= len(dropped)
        return len(dropped) * self.page_bytes

    def keys(self) -> tuple[ExpertKey, ...]:
        """The resident experts, sorted."""
        with self._lock:
            return tuple(sorted(self._mapped))

    def resident_bytes(self) -> int:
        """Bytes of resident experts, of those being prepared and of those being freed."""
        with self._lock:
            return self._num_accounted() * self.page_bytes

    def in_flight(self) -> int:
        """Experts of the dispatch that is being computed."""
        return self._in_flight

    def tokens(self) -> tuple[int, ...]:
        """Tokens computed per expert since the start, packed layer * experts + index."""
        return tuple(self._tokens.reshape(-1).tolist())

    # ------------------------------------------------------------------

    def _num_accounted(self) -> int:
        return len(self._mapped) + len(self._reserved) + self._num_retiring

    def _bring_up(self, slot: int, loan: Loan) -> HoldSeconds:
        """Map, populate and try out; a slot that fails is unmapped again."""
        map_s = self._turns.run(self._arena.mapping(slot, loan.page))
        try:
            started = time.perf_counter()
            self._arena.populate(slot)
            populated = time.perf_counter()
            self._try_out(self._expert(slot))
            return HoldSeconds(map_s, populated - started, time.perf_counter() - populated)
        except PageError as useless:
            self._unmap([slot])
            raise PageError(f"layer {loan.key[0]} expert {loan.key[1]}: {useless}") from useless
        except BaseException:
            self._unmap([slot])
            raise

    def _unmap(self, slots: list[int]) -> None:
        """Unmap, a few slots a turn; what takes time with the size is done here, beside the compute thread."""
        for start in range(0, len(slots), _UNMAPPED_IN_A_TURN):
            batch = slots[start : start + _UNMAPPED_IN_A_TURN]
            for slot in batch:
                self._arena.vacate(slot)
            self._turns.run(partial(_call_all, [self._arena.unmapping(slot) for slot in batch]))

    def _expert(self, slot: int) -> ResidentExpert:
        """The views of a slot, made at its first use: their addresses never change."""
        expert = self._experts[slot]
        if expert is None:
            expert = self._experts[slot] = ResidentExpert(_views(self._layout, self._arena.tensor(slot)))
        return expert


def _call_all(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _views(layout: ExpertLayout, page: torch.Tensor) -> dict[str, torch.Tensor]:
    """Segment name → a tensor over its bytes in the page."""
    return {
        segment.name: page[segment.offset : segment.offset + math.prod(segment.shape) * segment.dtype.itemsize]
        .view(segment.dtype)
        .view(segment.shape)
        for segment in layout.segments
    }
