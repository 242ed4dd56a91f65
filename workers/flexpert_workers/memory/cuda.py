"""Pages in the memory of a GPU: CUDA's virtual memory, lent by file descriptor, mapped into a range of addresses.

A page is exportable physical memory. CUDA knows no seals and no read-only mappings: that a page is not written after
`seal` is kept by us alone. `seal` writes a trailer behind the expert's bytes, by which a borrower knows that it has a
sealed page of the right size, and by which two descriptors of one page are known to be the same memory.
"""

import os
import secrets
import struct
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from flexpert_workers.errors import CapacityError, PageError
from flexpert_workers.memory.backend import Page, padded_bytes, page_checksum
from flexpert_workers.memory.driver import CudaDriver, CudaError

if TYPE_CHECKING:
    import torch

_TRAILER = struct.Struct("<8sQQQ")
"""A mark, the expert's bytes in number, and 128 random bits: the last bytes of a page's memory."""
_MARK = b"flexpert"

TensorAt = Callable[[int, int], "torch.Tensor"]
"""(address, bytes) → a uint8 tensor over device memory."""


class CudaMemory:
    """A range of device memory, as copies between devices see it (`flexpert_workers.transfer.DeviceMemory`).

    Args:
        mapping: Is referred to for as long as the range is.
    """

    def __init__(self, driver: CudaDriver, mapping: "_Mapping", nbytes: int) -> None:
        self._driver = driver
        self._mapping = mapping
        self.address = mapping.address
        self.nbytes = nbytes

    def read(self, start: int, end: int) -> memoryview:
        """A copy of the bytes [start, end)."""
        data = memoryview(bytearray(end - start))
        if data.nbytes:
            self._driver.to_host(data, self.address + start)
        return data

    def write(self, start: int, data: memoryview) -> None:
        """Put bytes at `start`; they are there when this returns."""
        if data.nbytes:
            self._driver.to_device(self.address + start, data)


class _Mapping:
    """A page's memory at addresses of its own, for as long as this object lives."""

    def __init__(self, driver: CudaDriver, handle: int, total: int) -> None:
        self.address = driver.reserve(total)
        try:
            driver.map(self.address, total, handle)
        except CudaError:
            driver.unreserve(self.address, total)
            raise
        self.close = weakref.finalize(self, _unmap, driver, self.address, total)
        self.close.atexit = False  # it ends with the process anyway
        try:
            driver.allow(self.address, total)
        except CudaError:
            self.close()
            raise


class CudaPage:
    """A sealed page: a handle, and the descriptor under which it is lent."""

    def __init__(
        self, driver: CudaDriver, handle: int, descriptor: int, nbytes: int, identity: tuple[int, int]
    ) -> None:
        self._driver = driver
        self._handle = handle
        self._descriptor = descriptor
        self._nbytes = nbytes
        self._identity = identity
        self._mapping: _Mapping | None = None

    @property
    def nbytes(self) -> int:
        """See `Page`."""
        return self._nbytes

    @property
    def handle(self) -> int:
        """The driver's handle, for an arena to map."""
        self.descriptor()
        return self._handle

    def descriptor(self) -> int:
        """See `Page`."""
        if self._descriptor < 0:
            raise ValueError("this page is closed")
        return self._descriptor

    def identity(self) -> tuple[int, int]:
        """See `Page`."""
        return self._identity

    def view(self) -> memoryview:
        """See `Page`: a copy in the host's memory."""
        return self.memory().read(0, self._nbytes).toreadonly()

    def memory(self) -> CudaMemory:
        """See `Page`: on the device."""
        if self._mapping is None:
            self._mapping = _Mapping(self._driver, self.handle, footprint(self._nbytes, self._driver.granularity))
        return CudaMemory(self._driver, self._mapping, self._nbytes)

    def close(self) -> None:
        """See `Page`."""
        if self._descriptor < 0:
            return
        self._mapping = None  # ends when nobody sends from it any more
        os.close(self._descriptor)
        self._descriptor = -1
        self._driver.release(self._handle)


class NewCudaPage:
    """Physical memory that is mapped for writing."""

    def __init__(self, driver: CudaDriver, nbytes: int) -> None:
        self._driver = driver
        self._nbytes = nbytes
        self._total = footprint(nbytes, driver.granularity)
        self._handle = driver.create(self._total)
        try:
            self._mapping = _Mapping(driver, self._handle, self._total)
        except (CudaError, CapacityError):
            driver.release(self._handle)
            raise

    @property
    def nbytes(self) -> int:
        """See `NewPage`."""
        return self._nbytes

    def fill(self, write: Callable[[memoryview], None]) -> int:
        """See `NewPage`; `write` fills a buffer of the host, which is then copied."""
        staging = memoryview(bytearray(self._nbytes))
        write(staging)
        checksum = page_checksum(staging)
        self.memory().write(0, staging)
        return checksum

    def memory(self) -> CudaMemory:
        """See `NewPage`: on the device."""
        return CudaMemory(self._driver, self._mapping, self._nbytes)

    def checksum(self) -> int:
        """See `NewPage`."""
        return page_checksum(self.memory().read(0, self._nbytes))

    def seal(self) -> CudaPage:
        """See `NewPage`."""
        identity = secrets.randbits(64), secrets.randbits(64)
        trailer = memoryview(_TRAILER.pack(_MARK, self._nbytes, *identity))
        self._driver.to_device(self._mapping.address + self._total - _TRAILER.size, trailer)
        descriptor = self._driver.export(self._handle)
        os.set_inheritable(descriptor, False)
        self._mapping.close()
        return CudaPage(self._driver, self._handle, descriptor, self._nbytes, identity)

    def close(self) -> None:
        """See `NewPage`."""
        self._mapping.close()
        self._driver.release(self._handle)


class CudaArena:
    """Slots in a reserved range of device addresses.

    Args:
        slot_bytes: What a page of the arena takes, its trailer included.
        tensor_at: Makes the tensors over the slots.
    """

    def __init__(self, driver: CudaDriver, num_slots: int, slot_bytes: int, tensor_at: TensorAt) -> None:
        self._driver = driver
        self._num_slots = num_slots
        self._slot_bytes = slot_bytes
        self._mapped: set[int] = set()
        self._base = driver.reserve(num_slots * slot_bytes)
        try:
            self._tensors = self._make_tensors(tensor_at)
        except BaseException:
            driver.unreserve(self._base, num_slots * slot_bytes)
            raise

    @property
    def num_slots(self) -> int:
        """See `Arena`."""
        return self._num_slots

    @property
    def slot_bytes(self) -> int:
        """See `Arena`."""
        return self._slot_bytes

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

    def _address(self, slot: int) -> int:
        assert 0 <= slot < self._num_slots, f"there is no slot {slot}"
        assert self._base, "the arena is closed"
        return self._base + slot * self._slot_bytes


class CudaBackend:
    """Pages in the memory of one GPU.

    Args:
        tensor_at: Makes tensors; by CuPy and DLPack when None.
    """

    def __init__(self, driver: CudaDriver, tensor_at: TensorAt | None = None) -> None:
        self._driver = driver
        self._tensor_at = tensor_at or (lambda address, nbytes: tensor_over(address, nbytes, driver.ordinal))

    @property
    def name(self) -> str:
        """See `PageBackend`."""
        return self._driver.uuid

    @property
    def granularity(self) -> int:
        """See `PageBackend`."""
        return self._driver.granularity

    def footprint(self, nbytes: int) -> int:
        """See `PageBackend`."""
        return footprint(nbytes, self.granularity)

    def create(self, nbytes: int) -> NewCudaPage:
        """See `PageBackend`."""
        return NewCudaPage(self._driver, nbytes)

    def adopt(self, descriptor: int, nbytes: int) -> CudaPage:
        """See `PageBackend`."""
        try:
            handle = self._driver.import_(descriptor)
        except CudaError as error:
            os.close(descriptor)
            raise PageError(f"what was lent is no memory of a device: {error}") from error
        try:
            identity = self._sealed_identity(handle, nbytes)
        except (CudaError, PageError) as error:
            self._driver.release(handle)
            os.close(descriptor)
            raise PageError(f"what was lent is no sealed page of {nbytes} bytes: {error}") from error
        return CudaPage(self._driver, handle, descriptor, nbytes, identity)

    def reserve(self, num_slots: int, page_bytes: int) -> CudaArena:
        """See `PageBackend`."""
        return CudaArena(self._driver, num_slots, self.footprint(page_bytes), self._tensor_at)

    def _sealed_identity(self, handle: int, nbytes: int) -> tuple[int, int]:
        total = self.footprint(nbytes)
        mapping = _Mapping(self._driver, handle, total)
        try:
            trailer = CudaMemory(self._driver, mapping, total).read(total - _TRAILER.size, total)
        finally:
            mapping.close()
        mark, found, high, low = _TRAILER.unpack(trailer)
        if mark != _MARK or found != nbytes:
            raise PageError("it has no trailer of ours" if mark != _MARK else f"it has {found} bytes")
        return high, low


def footprint(nbytes: int, granularity: int) -> int:
    """Device memory that a page of `nbytes` takes: its trailer and padding included."""
    return padded_bytes(nbytes + _TRAILER.size, granularity)


def open_cuda(ordinal: int = 0, *, computes: bool) -> CudaBackend:
    """The backend for a device of this machine.

    Args:
        ordinal: The device's number among those that this process sees.
        computes: Whether torch computes from the memory in this process. Torch's context is then made first, so that
            ours is the same.

    Raises:
        CudaError: There is no such device, or no CUDA.
    """
    if computes:
        _make_torch_context(ordinal)
    return CudaBackend(CudaDriver(ordinal))


def _make_torch_context(ordinal: int) -> None:
    import torch

    if not torch.cuda.is_available():
        raise CudaError("torch sees no CUDA device: it was built without CUDA, or the driver is missing or too old")
    if ordinal >= torch.cuda.device_count():
        raise CudaError(f"torch sees {torch.cuda.device_count()} CUDA devices, and none is number {ordinal}")
    torch.zeros(1, device=torch.device("cuda", ordinal))


def tensor_over(address: int, nbytes: int, ordinal: int) -> "torch.Tensor":
    """Device memory as [nbytes] uint8, without a copy; nothing of it is freed with the tensor."""
    import cupy
    from torch.utils.dlpack import from_dlpack

    memory = cupy.cuda.UnownedMemory(address, nbytes, None, device_id=ordinal)
    with cupy.cuda.Device(ordinal):
        array = cupy.ndarray((nbytes,), dtype=cupy.uint8, memptr=cupy.cuda.MemoryPointer(memory, 0))
        return from_dlpack(array)


@contextmanager
def _some_memory(driver: CudaDriver) -> Iterator[int]:
    handle = driver.create(driver.granularity)
    try:
        yield handle
    finally:
        driver.release(handle)


def _unmap(driver: CudaDriver, address: int, nbytes: int) -> None:
    driver.unmap(address, nbytes)
    driver.unreserve(address, nbytes)


def _runs(slots: list[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of the runs of neighbours in sorted numbers."""
    start = 0
    for end in range(1, len(slots) + 1):
        if end == len(slots) or slots[end] != slots[end - 1] + 1:
            yield slots[start], end - start
            start = end
