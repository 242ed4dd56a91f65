"""Which memory pages are in, and what computes from it: chosen by name, here alone.

An expert worker and its page owner are started with the name of one device each, the same one. CUDA's modules are
imported only when it is asked for.
"""

import logging
from dataclasses import dataclass
from typing import Protocol

from flexpert_workers.errors import DeviceUnavailable
from flexpert_workers.memory.backend import PageBackend
from flexpert_workers.memory.host import HostBackend
from flexpert_workers.transfer.channel import ChannelTransport

_log = logging.getLogger(__name__)

CPU = "cpu"
_CUDA = "cuda"


@dataclass(frozen=True)
class Device:
    """A device that was opened.

    Attributes:
        backend: Makes and maps its pages.
        torch_device: Computes from them, as torch calls it.
        channels: Over which pages go straight to another device; None when they go over the host.
    """

    backend: PageBackend
    torch_device: str = CPU
    channels: ChannelTransport | None = None


class DeviceOpener(Protocol):
    """`open_device`, or what stands in for it."""

    def __call__(self, name: str, *, computes: bool, copies: bool) -> Device:
        """See `open_device`."""


def cuda_device(number: int) -> str:
    """Name of the GPU with that number among those that a process sees."""
    return f"{_CUDA}:{number}"


def open_device(name: str, *, computes: bool, copies: bool) -> Device:
    """Open a device.

    Args:
        name: "cpu"; or "cuda:N", the Nth GPU that this process sees; or "cuda:UUID", as `nvidia-smi -L` writes it.
        computes: Whether torch computes from its pages in this process.
        copies: Whether pages are copied from it and to it in this process.

    Raises:
        DeviceUnavailable: There is no such device here.
    """
    if name == CPU:
        return Device(HostBackend())
    kind, _, which = name.partition(":")
    if kind != _CUDA or not which:
        raise DeviceUnavailable(f'there is no device {name!r}: give "cpu", "cuda:N" or "cuda:UUID"')
    return _open_cuda(which, computes, copies)


def _open_cuda(which: str, computes: bool, copies: bool) -> Device:
    from flexpert_workers.memory.cuda import open_cuda
    from flexpert_workers.memory.driver import CudaError, ordinal_of

    try:
        ordinal = int(which) if which.isdigit() else ordinal_of(which)
        backend = open_cuda(ordinal, computes=computes)
    except (CudaError, RuntimeError) as error:
        raise DeviceUnavailable(
            f"device {_CUDA}:{which} was asked for, and this process cannot use it: {error}; ask for a GPU in the "
            f"pod's resources, or set the device to cpu"
        ) from error
    return Device(backend, cuda_device(ordinal), _channels(ordinal) if copies else None)


def _channels(ordinal: int) -> ChannelTransport | None:
    from flexpert_workers.transfer.nccl import NcclTransport

    try:
        return NcclTransport(ordinal)
    except RuntimeError as missing:
        _log.warning("pages are copied over the host: %s", missing)
        return None
