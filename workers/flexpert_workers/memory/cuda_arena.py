"""Slots in a range of device addresses, in which a worker maps a GPU's pages; `cuda` reserves them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from flexpert_workers.memory.backend import Page
from flexpert_workers.memory.cuda_pages import CudaPage
from flexpert_workers.memory.driver import CudaDriver
from flexpert_workers.memory.slots import Slots

if TYPE_CHECKING:
    import torch

TensorAt = Callable[[int, int], "torch.Tensor"]
"""(address, bytes) → a uint8 tensor over device memory."""


class CudaArena(Slots):
    """Slots in a reserved range of device addresses.

    Args:
        slot_bytes: What a page of the arena takes, its trailer included.
        tensor_at: Makes the tensors over the slots.
    """

    def __init__(self, driver: CudaDriver, num_slots: int, slot_bytes: int, tensor_at: TensorAt) -> None:
        super().__init__(driver.reserve(num_slots * slot_bytes), num_slots, slot_bytes)
        self._driver = driver
        try:
            self._tensors = self._make_tensors(tensor_at)
        except BaseException:
            driver.unreserve(self._base, num_slots * slot_bytes)
            raise

    def map(self, slot: int, page: Page) -> None:
        """See `Arena`."""
        self.map_all({slot: page})

    def mapping(self, slot: int, page: Page) -> Callable[[], None]:
        """See `Arena`."""
        return partial(self.map, slot, page)

    def map_all(self, pages: Mapping[int, Page]) -> None:
        """Put pages into slots that are free; slots that are neighbours cost one call for access together."""
        for slot, page in sorted(pages.items()):
            assert slot not in self._mapped, f"slot {slot} is taken"
            assert isinstance(page, CudaPage), "a page of another kind of memory"
            self._driver.map(self._address(slot), self._slot_bytes, page.handle)
            self._mapped.add(slot)
        for first, count in _runs(sorted(pages)):
            self._driver.allow(self._address(first), count * self._slot_bytes)

    def populate(self, slot: int) -> None:
        """See `Arena`: on a device what is mapped is reachable."""

    def vacate(self, slot: int) -> None:
        """See `Arena`: `unmap` takes the same time whatever the size."""

    def unmap(self, slot: int) -> None:
        """See `Arena`."""
        self._mapped.remove(slot)
        self._driver.unmap(self._address(slot), self._slot_bytes)

    def unmapping(self, slot: int) -> Callable[[], None]:
        """See `Arena`."""
        return partial(self.unmap, slot)

    def tensor(self, slot: int) -> "torch.Tensor":
        """See `Arena`."""
        self._address(slot)
        return self._tensors[slot]

    def close(self) -> None:
        """See `Arena`."""
        if self._base:
            for slot in list(self._mapped):
                self.unmap(slot)
            self._tensors.clear()
            self._driver.unreserve(self._base, self._num_slots * self._slot_bytes)
            self._base = 0

    def _make_tensors(self, tensor_at: TensorAt) -> "list[torch.Tensor]":
        """Tensors over all slots. What makes them may ask CUDA about an address, so there is memory meanwhile."""
        with _some_memory(self._driver) as handle:
            return [self._tensor_over(slot, handle, tensor_at) for slot in range(self._num_slots)]

    def _tensor_over(self, slot: int, handle: int, tensor_at: TensorAt) -> "torch.Tensor":
        address, granularity = self._address(slot), self._driver.granularity
        self._driver.map(address, granularity, handle)
        try:
            self._driver.allow(address, granularity)
            return tensor_at(address, self._slot_bytes)
        finally:
            self._driver.unmap(address, granularity)


@contextmanager
def _some_memory(driver: CudaDriver) -> Iterator[int]:
    handle = driver.create(driver.granularity)
    try:
        yield handle
    finally:
        driver.release(handle)


def _runs(slots: list[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of the runs of neighbours in sorted numbers."""
    start = 0
    for end in range(1, len(slots) + 1):
        if end == len(slots) or slots[end] != slots[end - 1] + 1:
            yield slots[start], end - start
            start = end
