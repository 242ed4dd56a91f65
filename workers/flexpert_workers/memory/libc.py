"""The memory calls of Linux that Python's `mmap` lacks: mapping at a fixed address, and advice on any range.

`host` alone calls them. Mapping keeps the interpreter's lock, since it takes microseconds and the computing thread
would otherwise wait to get the lock back; advice may take long and lets other threads run.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from functools import partial

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MADV_POPULATE_READ = 22
_MADV_DONTNEED = 4
_SLICE_BYTES = 2 << 20
"""Advice is given by slices: the kernel holds up other changes of the address space for no longer than one takes.

A slice is what one table of pages covers, from its first to its last: given up as a whole, the table goes too (Linux
6.14), and is not left for `unmap` to free.
"""

_holding = ctypes.PyDLL(None, use_errno=True)
_releasing = ctypes.CDLL(None, use_errno=True)
_holding.mmap.restype = ctypes.c_void_p
_holding.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_longlong,
]
_holding.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_releasing.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def reserve(nbytes: int) -> int:
    """Reserve addresses that nothing can be read from; returns the first. Raises OSError."""
    return _map(None, nbytes, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1)


def mapping(
    address: int, nbytes: int, descriptor: int | None = None, failed: Callable[[], None] = lambda: None
) -> Callable[[], None]:
    """A call that maps the start of a file at `address`, for reading, in place of what is there.

    Without a file it turns the range back into addresses that nothing can be read from. The arguments are converted
    here, so that the thread that makes the call does hardly more than enter the kernel. It calls `failed` before it
    raises OSError.
    """
    if descriptor is None:
        protection, flags = 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
    else:
        protection, flags = mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED
    enter = partial(
        _holding.mmap,
        ctypes.c_void_p(address),
        ctypes.c_size_t(nbytes),
        ctypes.c_int(protection),
        ctypes.c_int(flags),
        ctypes.c_int(-1 if descriptor is None else descriptor),
        ctypes.c_longlong(0),
    )

    def call() -> None:
        if enter() != address:
            failed()
            raise _error("mmap")

    return call


def unmap(address: int, nbytes: int) -> None:
    """Give addresses back. Raises OSError."""
    if _holding.munmap(address, nbytes):
        raise _error("munmap")


def populate(address: int, nbytes: int) -> None:
    """Make the page tables of a mapped range; on Linux before 5.14 the first touch does it. Raises OSError."""
    try:
        _advise(address, nbytes, _MADV_POPULATE_READ)
    except OSError as unknown:
        if unknown.errno != errno.EINVAL:
            raise


def vacate(address: int, nbytes: int) -> None:
    """Drop the page tables of a range mapped from a file; what is touched again comes back. Raises OSError."""
    _advise(address, nbytes, _MADV_DONTNEED)


def _map(address: int | None, nbytes: int, protection: int, flags: int, descriptor: int) -> int:
    found = _holding.mmap(address, nbytes, protection, flags, descriptor, 0)
    if found is None or found == ctypes.c_void_p(-1).value:
        raise _error("mmap")
    return int(found)


def _advise(address: int, nbytes: int, advice: int) -> None:
    start, end = address, address + nbytes
    while start < end:
        stop = min(end, start // _SLICE_BYTES * _SLICE_BYTES + _SLICE_BYTES)
        if _releasing.madvise(start, stop - start, advice):
            raise _error("madvise")
        start = stop


def _error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
