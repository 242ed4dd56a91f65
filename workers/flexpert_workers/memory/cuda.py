"""The memory of a GPU: CUDA's virtual memory, lent by file descriptor, mapped into a range of addresses.

Its pages are in `cuda_pages`, the slots in `cuda_arena`; `devices` opens it.
"""

import os
from typing import TYPE_CHECKING

from flexpert_workers.errors import PageError
from flexpert_workers.memory.cuda_arena import CudaArena, TensorAt
from flexpert_workers.memory.cuda_pages import CudaPage, NewCudaPage, footprint, sealed_identity
from flexpert_workers.memory.driver import CudaDriver, CudaError

if TYPE_CHECKING:
    import torch


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
            identity = sealed_identity(self._driver, handle, nbytes)
        except (CudaError, PageError) as error:
            self._driver.release(handle)
            os.close(descriptor)
            raise PageError(f"what was lent is no sealed page of {nbytes} bytes: {error}") from error
        return CudaPage(self._driver, handle, descriptor, nbytes, identity)

    def reserve(self, num_slots: int, page_bytes: int) -> CudaArena:
        """See `PageBackend`."""
        return CudaArena(self._driver, num_slots, self.footprint(page_bytes), self._tensor_at)


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
