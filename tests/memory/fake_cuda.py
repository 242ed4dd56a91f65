"""CUDA's driver for pages, played on the host's memory: strict about arguments and about the order of calls.

It stands in for `cuda.bindings.driver`. Memory is a memory file, a mapping is a mapping of it, so that descriptors pass
between processes as they do with CUDA. What CUDA leaves undefined is an error here.
"""

import ctypes
import enum
import functools
import mmap
import os
import secrets
import threading
from types import SimpleNamespace

import torch

from flexpert_workers.memory.cuda import CudaBackend
from flexpert_workers.memory.devices import Device, open_device
from flexpert_workers.memory.driver import CudaDriver

GRANULARITY = 64 << 10
_FIXED = 0x10
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class CUresult(enum.Enum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NOT_SUPPORTED = 801


OK = CUresult.CUDA_SUCCESS
INVALID = CUresult.CUDA_ERROR_INVALID_VALUE
_NAMES = SimpleNamespace


class FakeCuda:
    """One device. Attributes: `calls` in order; `capacity_bytes` of physical memory."""

    CUresult = CUresult
    CUmemAllocationProp = _NAMES
    CUmemAccessDesc = _NAMES
    CUmemLocation = _NAMES
    CUmemAllocationType = _NAMES(CU_MEM_ALLOCATION_TYPE_PINNED="pinned")
    CUmemLocationType = _NAMES(CU_MEM_LOCATION_TYPE_DEVICE="device")
    CUmemAllocationHandleType = _NAMES(CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR="posix")
    CUmemAllocationGranularity_flags = _NAMES(CU_MEM_ALLOC_GRANULARITY_MINIMUM="minimum")
    CUmemAccess_flags = _NAMES(CU_MEM_ACCESS_FLAGS_PROT_READWRITE="read-write")

    def __init__(self, capacity_bytes=1 << 30):
        self.calls = []
        self.capacity_bytes = capacity_bytes
        self.retained = 0
        self._started = False
        self._lock = threading.RLock()
        self._thread = threading.local()
        self._next_handle = 1000
        self._handles = {}
        self._ranges = {}
        self._mapped = {}
        self._allowed = set()

    # ------------------------------------------------------------------ what tests ask

    def leaked(self):
        """What was taken and not given back."""
        return {"handles": len(self._handles), "ranges": len(self._ranges), "mappings": len(self._mapped)}

    def names(self):
        """Calls by name, without those that only make a context current."""
        return [name for name, *_ in self.calls if name != "cuCtxSetCurrent"]

    # ------------------------------------------------------------------ device and context

    def cuInit(self, flags):  # noqa: N802
        self._note("cuInit", flags)
        self._started = True
        return (OK,)

    def cuDeviceGet(self, ordinal):  # noqa: N802
        assert self._started
        self._note("cuDeviceGet", ordinal)
        return OK, ordinal

    def cuDeviceGetCount(self):  # noqa: N802
        return OK, 2

    def cuDeviceGetUuid(self, device):  # noqa: N802
        return OK, SimpleNamespace(bytes=bytes([device]) * 16)

    def cuDevicePrimaryCtxRetain(self, device):  # noqa: N802
        self._note("cuDevicePrimaryCtxRetain", device)
        self.retained += 1
        return OK, "context"

    def cuDevicePrimaryCtxRelease(self, device):  # noqa: N802
        self.retained -= 1
        return (OK,)

    def cuCtxSetCurrent(self, context):  # noqa: N802
        assert context == "context"
        assert self.retained
        self._thread.context = context
        self._note("cuCtxSetCurrent", context)
        return (OK,)

    def cuStreamSynchronize(self, stream):  # noqa: N802
        self._note("cuStreamSynchronize", stream)
        return (OK,)

    # ------------------------------------------------------------------ memory

    def cuMemGetAllocationGranularity(self, properties, option):  # noqa: N802
        assert option == "minimum"
        self._check(properties)
        return OK, GRANULARITY

    def cuMemCreate(self, size, properties, flags):  # noqa: N802
        self._in_context("cuMemCreate", size, flags)
        self._check(properties)
        assert (size % GRANULARITY, flags) == (0, 0)
        if sum(os.fstat(each).st_size for each in self._handles.values()) + size > self.capacity_bytes:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        descriptor = os.memfd_create("fake-device-memory", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, size)
        os.pwrite(descriptor, secrets.token_bytes(4096), size - 4096)  # CUDA's memory is not cleared
        return OK, self._new_handle(descriptor)

    def cuMemRelease(self, handle):  # noqa: N802
        self._in_context("cuMemRelease", handle)
        os.close(self._handles.pop(handle))
        return (OK,)

    def cuMemExportToShareableHandle(self, handle, kind, flags):  # noqa: N802
        self._in_context("cuMemExportToShareableHandle", handle)
        assert (kind, flags) == ("posix", 0)
        return OK, os.dup(self._handles[handle])

    def cuMemImportFromShareableHandle(self, descriptor, kind):  # noqa: N802
        self._in_context("cuMemImportFromShareableHandle", descriptor)
        assert kind == "posix"
        if "fake-device-memory" not in os.readlink(f"/proc/self/fd/{descriptor}"):
            return INVALID, None
        return OK, self._new_handle(os.dup(descriptor))

    def cuMemAddressReserve(self, size, alignment, address, flags):  # noqa: N802
        self._in_context("cuMemAddressReserve", size)
        assert (size % GRANULARITY, alignment % GRANULARITY, address, flags) == (0, 0, 0, 0)
        found = self._mmap(None, size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, -1)
        if found is None:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        self._ranges[found] = size
        return OK, found

    def cuMemAddressFree(self, address, size):  # noqa: N802
        self._in_context("cuMemAddressFree", size)
        assert self._ranges.pop(address) == size, "a range is given back whole"
        assert not any(address <= each < address + size for each in self._mapped), "something is mapped there"
        assert _libc.munmap(address, size) == 0
        return (OK,)

    def cuMemMap(self, address, size, offset, handle, flags):  # noqa: N802
        self._in_context("cuMemMap", address, size, handle)
        assert (offset, flags, size % GRANULARITY) == (0, 0, 0)
        assert any(start <= address and address + size <= start + length for start, length in self._ranges.items())
        assert not self._overlapping(address, size), "something is mapped there"
        descriptor = self._handles[handle]
        if os.fstat(descriptor).st_size != size:
            return (INVALID,)
        self._mmap(address, size, 0, mmap.MAP_SHARED | _FIXED, descriptor)
        self._mapped[address] = size
        return (OK,)

    def cuMemSetAccess(self, address, size, descriptions, count):  # noqa: N802
        self._in_context("cuMemSetAccess", address, size)
        assert count == len(descriptions) == 1
        assert descriptions[0].flags == "read-write"
        assert (descriptions[0].location.type, descriptions[0].location.id) == ("device", 1)
        inside = self._overlapping(address, size)
        assert sum(self._mapped[each] for each in inside) == size, "the range must be mapped throughout"
        assert _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), 3) == 0
        self._allowed.update(inside)
        return (OK,)

    def cuMemUnmap(self, address, size):  # noqa: N802
        self._in_context("cuMemUnmap", address, size)
        assert self._mapped.pop(address) == size, "a mapping is taken away whole"
        self._allowed.discard(address)
        self._mmap(address, size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _FIXED | 0x4000, -1)
        return (OK,)

    def cuMemcpyHtoD(self, address, data, size):  # noqa: N802
        self._in_context("cuMemcpyHtoD", address, size)
        self._check_touch(address, size)
        ctypes.memmove(address, bytes(data), size)
        return (OK,)

    def cuMemcpyDtoH(self, data, address, size):  # noqa: N802
        self._in_context("cuMemcpyDtoH", address, size)
        self._check_touch(address, size)
        data[:] = ctypes.string_at(address, size)
        return (OK,)

    # ------------------------------------------------------------------ checks

    def _note(self, *call):
        self.calls.append(call)

    def _in_context(self, *call):
        assert getattr(self._thread, "context", None) == "context", "no context is current in this thread"
        self._note(*call)

    def _check(self, properties):
        assert (properties.type, properties.requestedHandleTypes) == ("pinned", "posix")
        assert (properties.location.type, properties.location.id) == ("device", 1)

    def _check_touch(self, address, size):
        touched = self._overlapping(address, size)
        assert touched, "nothing is mapped there"
        assert self._allowed.issuperset(touched), "an illegal memory access"

    def _overlapping(self, address, size):
        return [start for start, length in self._mapped.items() if start < address + size and address < start + length]

    def _new_handle(self, descriptor):
        self._next_handle += 1
        self._handles[self._next_handle] = descriptor
        return self._next_handle

    def _mmap(self, address, size, protection, flags, descriptor):
        found = _libc.mmap(address, size, protection, flags, descriptor, 0)
        return None if found == ctypes.c_void_p(-1).value else found


def _one_at_a_time(call):
    @functools.wraps(call)
    def locked(self, *arguments):
        with self._lock:
            return call(self, *arguments)

    return locked


for _name, _call in list(vars(FakeCuda).items()):
    if _name.startswith("cu"):
        setattr(FakeCuda, _name, _one_at_a_time(_call))


def open_fake(cuda):
    """What opens devices, with CUDA's played by `cuda`; torch computes on the host all the same."""

    def opener(name, *, computes, copies):
        if name == "cuda:1":
            return Device(CudaBackend(CudaDriver(1, cuda), tensor_at))
        return open_device(name, computes=computes, copies=copies)

    return opener


def tensor_at(address, nbytes):
    """What CuPy and DLPack do for a device."""
    return torch.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype=torch.uint8)
