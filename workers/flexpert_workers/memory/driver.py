"""CUDA's driver, as far as expert memory needs it: the only module that calls `cuda.bindings`; `cuda` alone uses it.

Importing it needs neither CUDA nor its bindings; making a `CudaDriver` does. Its methods may be called from any thread:
each makes the device's primary context, which torch and CuPy use too, current in the thread that calls.
"""

from typing import Any

from flexpert_workers.errors import CapacityError


class CudaError(RuntimeError):
    """A call of the driver failed, or there is none; the message names the call and CUDA's name of the error."""


class CudaDriver:
    """Physical memory, addresses and mappings of one device.

    Args:
        ordinal: The device's number among those that this process sees (`ordinal_of` finds it by UUID).
        bindings: `cuda.bindings.driver`; imported when None.

    Attributes:
        granularity: Memory and mappings take a multiple of so many bytes.
        uuid: The device's, "GPU-" and 32 hexadecimal digits with dashes.

    Raises:
        CudaError: There are no bindings, no driver, or no such device.
    """

    def __init__(self, ordinal: int = 0, bindings: Any = None) -> None:
        self.ordinal = ordinal
        self._cuda = bindings if bindings is not None else _import_bindings()
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", ordinal)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._properties = self._page_properties()
        self._access = self._access_of_this_device()
        flag = self._cuda.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        self.granularity = int(self._call("cuMemGetAllocationGranularity", self._properties, flag))
        self.uuid = _as_text(self._call("cuDeviceGetUuid", self._device))

    def create(self, nbytes: int) -> int:
        """Take `nbytes` (a multiple of the granularity) of physical memory that can be exported; returns its handle.

        Raises:
            CapacityError: The device has not so much memory left.
        """
        return int(self._in_context("cuMemCreate", nbytes, self._properties, 0))

    def release(self, handle: int) -> None:
        """Give a handle back; the memory is free once it is mapped and exported nowhere."""
        self._in_context("cuMemRelease", handle)

    def export(self, handle: int) -> int:
        """A file descriptor for the memory, the caller's own."""
        return int(self._in_context("cuMemExportToShareableHandle", handle, self._posix, 0))

    def import_(self, descriptor: int) -> int:
        """A handle for memory that another process exported; the descriptor stays the caller's."""
        return int(self._in_context("cuMemImportFromShareableHandle", descriptor, self._posix))

    def reserve(self, nbytes: int) -> int:
        """Reserve addresses; returns the first.

        Raises:
            CapacityError: There are not so many.
        """
        return int(self._in_context("cuMemAddressReserve", nbytes, self.granularity, 0, 0))

    def unreserve(self, address: int, nbytes: int) -> None:
        """Give addresses back that nothing is mapped at."""
        self._in_context("cuMemAddressFree", address, nbytes)

    def map(self, address: int, nbytes: int, handle: int) -> None:
        """Map memory at reserved addresses; it can be touched after `allow`."""
        self._in_context("cuMemMap", address, nbytes, 0, handle, 0)

    def allow(self, address: int, nbytes: int) -> None:
        """Let the device touch a range that is mapped throughout; one call for a long range costs little more than
        one for a short one.
        """
        self._in_context("cuMemSetAccess", address, nbytes, [self._access], 1)

    def unmap(self, address: int, nbytes: int) -> None:
        """Take away what is mapped in a range; nothing on the device may touch it any more."""
        self._in_context("cuMemUnmap", address, nbytes)

    def to_device(self, address: int, data: memoryview) -> None:
        """Copy host bytes to the device; they are there when this returns."""
        self._in_context("cuMemcpyHtoD", address, data, data.nbytes)
        self._call("cuStreamSynchronize", 0)  # the copy returns when the host's bytes may change, not when it is over

    def to_host(self, data: memoryview, address: int) -> None:
        """Fill host bytes from the device."""
        self._in_context("cuMemcpyDtoH", data, address, data.nbytes)

    def close(self) -> None:
        """Let go of the primary context."""
        self._call("cuDevicePrimaryCtxRelease", self._device)

    @property
    def _posix(self) -> Any:
        return self._cuda.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR

    def _page_properties(self) -> Any:
        properties = self._cuda.CUmemAllocationProp()
        properties.type = self._cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.location = self._location()
        properties.requestedHandleTypes = self._posix
        return properties

    def _access_of_this_device(self) -> Any:
        access = self._cuda.CUmemAccessDesc()
        access.location = self._location()
        access.flags = self._cuda.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE  # CUDA has no read-only pages
        return access

    def _location(self) -> Any:
        location = self._cuda.CUmemLocation()
        location.type = self._cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        location.id = int(self._device)
        return location

    def _in_context(self, name: str, *arguments: Any) -> Any:
        self._call("cuCtxSetCurrent", self._context)
        return self._call(name, *arguments)

    def _call(self, name: str, *arguments: Any) -> Any:
        return _checked(self._cuda, name, *arguments)


def ordinal_of(uuid: str, bindings: Any = None) -> int:
    """The number of a device among those that this process sees.

    Args:
        uuid: As `nvidia-smi -L` writes it: "GPU-" and 32 hexadecimal digits with dashes.
        bindings: `cuda.bindings.driver`; imported when None.

    Raises:
        CudaError: There is no such device here.
    """
    cuda = bindings if bindings is not None else _import_bindings()
    wanted = "GPU-" + uuid.removeprefix("GPU-").lower()
    _checked(cuda, "cuInit", 0)
    count = _checked(cuda, "cuDeviceGetCount")
    for ordinal in range(count):
        if _as_text(_checked(cuda, "cuDeviceGetUuid", ordinal)) == wanted:
            return ordinal
    raise CudaError(f"this process sees {count} CUDA devices, and none is {uuid}")


def _as_text(uuid: Any) -> str:
    """A device's UUID as `nvidia-smi -L` writes it."""
    digits = bytes(uuid.bytes).hex()
    return "GPU-" + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _checked(cuda: Any, name: str, *arguments: Any) -> Any:
    """Call the driver; what it returns beside the error, if anything."""
    try:
        error, *values = getattr(cuda, name)(*arguments)
    except (ImportError, RuntimeError) as missing:
        raise CudaError(f"this machine has no CUDA driver: {missing}") from missing
    if error == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise CapacityError(f"{name}: the device has not so much memory left")
    if error != cuda.CUresult.CUDA_SUCCESS:
        raise CudaError(f"{name} failed with {error}")
    return values[0] if values else None


def _import_bindings() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise CudaError(f"expert memory on a GPU needs CUDA's bindings: install flexpert[cuda] ({error})") from error
    return driver
