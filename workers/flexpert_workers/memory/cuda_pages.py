"""Pages of a GPU's memory, and the mappings through which they are filled, copied and read; `cuda` makes them.

A page is exportable physical memory. CUDA knows no seals and no read-only mappings: that a page is not written after
`seal` is kept by us alone. `seal` writes a trailer behind the expert's bytes, by which a borrower knows that it has a
sealed page of the right size, and by which two descriptors of one page are known to be the same memory.
"""

import os
import secrets
import struct
import weakref
from collections.abc import Callable

from flexpert_workers.errors import CapacityError, PageError
from flexpert_workers.memory.backend import padded_bytes, page_checksum
from flexpert_workers.memory.driver import CudaDriver, CudaError

_TRAILER = struct.Struct("<8sQQQ")
"""A mark, the expert's bytes in number, and 128 random bits: the last bytes of a page's memory."""
_MARK = b"flexpert"


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


def sealed_identity(driver: CudaDriver, handle: int, nbytes: int) -> tuple[int, int]:
    """What tells a sealed page of `nbytes` from all others.

    Raises:
        PageError: It is none.
        CudaError: Its memory cannot be read.
    """
    total = footprint(nbytes, driver.granularity)
    mapping = _Mapping(driver, handle, total)
    try:
        trailer = CudaMemory(driver, mapping, total).read(total - _TRAILER.size, total)
    finally:
        mapping.close()
    mark, found, high, low = _TRAILER.unpack(trailer)
    if mark != _MARK or found != nbytes:
        raise PageError("it has no trailer of ours" if mark != _MARK else f"it has {found} bytes")
    return high, low


def footprint(nbytes: int, granularity: int) -> int:
    """Device memory that a page of `nbytes` takes: its trailer and padding included."""
    return padded_bytes(nbytes + _TRAILER.size, granularity)


def _unmap(driver: CudaDriver, address: int, nbytes: int) -> None:
    driver.unmap(address, nbytes)
    driver.unreserve(address, nbytes)
