"""Pages in a host's RAM: sealed memory files, lent read-only, mapped into a reserved range of addresses.

A page is a `memfd`. Its maker fills it through a mapping, takes the mapping away and seals the file, so that nobody can
write it, or change its size, ever again; what is lent is a second descriptor, opened for reading.
"""

import contextlib
import ctypes
import fcntl
import mmap
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from flexpert_workers.errors import CapacityError, PageError
from flexpert_workers.memory import libc
from flexpert_workers.memory.backend import Page, padded_bytes, page_checksum
from flexpert_workers.memory.slots import Slots

if TYPE_CHECKING:
    import torch

_F_ADD_SEALS = 1033
_F_GET_SEALS = 1034
SEALS = 0x01 | 0x02 | 0x04 | 0x10
"""F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_FUTURE_WRITE."""
_MAP_POPULATE = 0x8000


class HostPage:
    """A sealed page under a descriptor that can only read."""

    def __init__(self, descriptor: int, nbytes: int) -> None:
        self._descriptor = descriptor
        self._nbytes = nbytes

    @property
    def nbytes(self) -> int:
        """See `Page`."""
        return self._nbytes

    def descriptor(self) -> int:
        """See `Page`."""
        if self._descriptor < 0:
            raise ValueError("this page is closed")
        return self._descriptor

    def identity(self) -> tuple[int, int]:
        """See `Page`."""
        status = os.fstat(self.descriptor())
        return status.st_dev, status.st_ino

    def view(self) -> memoryview:
        """See `Page`; the mapping goes with the last view of it."""
        return memoryview(mmap.mmap(self.descriptor(), self._nbytes, prot=mmap.PROT_READ))

    def memory(self) -> memoryview:
        """See `Page`."""
        return self.view()

    def close(self) -> None:
        """See `Page`."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class NewHostPage:
    """A memory file that is mapped for writing."""

    def __init__(self, nbytes: int, total: int) -> None:
        self._nbytes = nbytes
        self._descriptor = os.memfd_create("flexpert-page", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(self._descriptor, 0, total)
            self._mapping = mmap.mmap(self._descriptor, total, flags=mmap.MAP_SHARED | _MAP_POPULATE)
        except OSError:
            os.close(self._descriptor)
            raise

    @property
    def nbytes(self) -> int:
        """See `NewPage`."""
        return self._nbytes

    def fill(self, write: Callable[[memoryview], None]) -> int:
        """See `NewPage`; `write` fills the memory file itself."""
        page = self.memory()
        try:
            write(page)
            return page_checksum(page)
        finally:
            with contextlib.suppress(BufferError):  # who wrote still refers to a part of it
                page.release()

    def memory(self) -> memoryview:
        """See `NewPage`."""
        return memoryview(self._mapping)[: self._nbytes]

    def checksum(self) -> int:
        """See `NewPage`."""
        return page_checksum(self.memory())

    def seal(self) -> HostPage:
        """See `NewPage`."""
        self._mapping.close()
        fcntl.fcntl(self._descriptor, _F_ADD_SEALS, SEALS)
        readable = os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        os.close(self._descriptor)
        return HostPage(readable, self._nbytes)

    def close(self) -> None:
        """See `NewPage`."""
        with contextlib.suppress(BufferError):  # an exception still refers to what it was writing: it goes with it
            self._mapping.close()
        os.close(self._descriptor)


class HostArena(Slots):
    """Slots in a reserved range of addresses."""

    def __init__(self, num_slots: int, slot_bytes: int) -> None:
        super().__init__(libc.reserve(num_slots * slot_bytes), num_slots, slot_bytes)

    def map(self, slot: int, page: Page) -> None:
        """See `Arena`."""
        self.mapping(slot, page)()

    def mapping(self, slot: int, page: Page) -> Callable[[], None]:
        """See `Arena`."""
        assert slot not in self._mapped, f"slot {slot} is taken"
        discard = partial(self._mapped.discard, slot)
        call = libc.mapping(self._address(slot), self._slot_bytes, page.descriptor(), discard)
        self._mapped.add(slot)
        return call

    def populate(self, slot: int) -> None:
        """See `Arena`."""
        libc.populate(self._address(slot), self._slot_bytes)

    def vacate(self, slot: int) -> None:
        """See `Arena`."""
        libc.vacate(self._address(slot), self._slot_bytes)

    def unmap(self, slot: int) -> None:
        """See `Arena`."""
        self.unmapping(slot)()

    def unmapping(self, slot: int) -> Callable[[], None]:
        """See `Arena`."""
        self._mapped.remove(slot)
        return libc.mapping(self._address(slot), self._slot_bytes)

    def tensor(self, slot: int) -> "torch.Tensor":
        """See `Arena`."""
        import torch

        memory = (ctypes.c_uint8 * self._slot_bytes).from_address(self._address(slot))
        return torch.frombuffer(memory, dtype=torch.uint8)

    def close(self) -> None:
        """See `Arena`."""
        if self._base:
            libc.unmap(self._base, self._num_slots * self._slot_bytes)
            self._base = 0
            self._mapped.clear()


class HostBackend:
    """Pages in the RAM of this host."""

    @property
    def name(self) -> str:
        """See `PageBackend`."""
        return "host"

    @property
    def granularity(self) -> int:
        """See `PageBackend`."""
        return mmap.PAGESIZE

    def footprint(self, nbytes: int) -> int:
        """See `PageBackend`."""
        return padded_bytes(nbytes, self.granularity)

    def create(self, nbytes: int) -> NewHostPage:
        """See `PageBackend`."""
        total = self.footprint(nbytes)
        available = _available_bytes()
        if total > available:  # the kernel would rather kill a process than refuse a memory file
            raise CapacityError(f"no page of {total} bytes can be made: this host has {available} bytes left")
        try:
            return NewHostPage(nbytes, total)
        except OSError as error:
            raise CapacityError(f"no page of {total} bytes can be made: {error.strerror}") from error

    def adopt(self, descriptor: int, nbytes: int) -> HostPage:
        """See `PageBackend`."""
        page = HostPage(descriptor, nbytes)
        try:
            _check_sealed(descriptor, nbytes)
        except PageError:
            page.close()
            raise
        return page

    def reserve(self, num_slots: int, page_bytes: int) -> HostArena:
        """See `PageBackend`."""
        slot_bytes = self.footprint(page_bytes)
        try:
            return HostArena(num_slots, slot_bytes)
        except OSError as error:
            raise CapacityError(f"no room for {num_slots} slots of {slot_bytes} bytes: {error.strerror}") from error


def _available_bytes() -> int:
    """Memory that this host can still give without swapping, as Linux estimates it."""
    with open("/proc/meminfo", "rb") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(b"MemAvailable:"))


def _check_sealed(descriptor: int, nbytes: int) -> None:
    """Refuse what its lender, or anybody else, could still write or cut short.

    Raises:
        PageError: The message says what is missing.
    """
    try:
        seals = fcntl.fcntl(descriptor, _F_GET_SEALS)
    except OSError as error:
        raise PageError(f"what was lent is no memory file: {error.strerror}") from error
    if seals & SEALS != SEALS:
        raise PageError(f"a page was lent with seals {seals:#x} instead of {SEALS:#x}: it could still change")
    size = os.fstat(descriptor).st_size
    if size < nbytes:
        raise PageError(f"a page of {size} bytes was lent where {nbytes} were expected")
