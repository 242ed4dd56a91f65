"""Channels by NCCL, through CuPy: the only module of this package that touches CUDA.

A page owner on a GPU gives an `NcclTransport` to its page server and its page fetcher. Importing this module needs
neither CuPy nor a GPU; making a transport does.
"""

import warnings
from typing import Any

_NUM_RANKS = 2


class NcclTransport:
    """Makes NCCL communicators of two ranks on one device.

    Args:
        device: Index of the device among those that this process sees.
        cupy: The CuPy module; imported when None.

    Raises:
        RuntimeError: There is no CuPy, or it has no NCCL; the message says what to install.
    """

    def __init__(self, device: int = 0, cupy: Any = None) -> None:
        self._device = device
        self._cupy = cupy if cupy is not None else _import_cupy()
        self._nccl = self._cupy.cuda.nccl

    def new_meeting(self) -> bytes:
        """See `ChannelTransport`: NCCL's unique id."""
        return bytes(each & 0xFF for each in self._nccl.get_unique_id())

    def communicator(self, meeting: bytes, rank: int) -> "NcclCommunicator":
        """See `ChannelTransport`."""
        self._cupy.cuda.Device(self._device).use()
        unique_id = tuple(each - 256 if each > 127 else each for each in meeting)
        communicator = self._nccl.NcclCommunicator(_NUM_RANKS, unique_id, rank)
        return NcclCommunicator(self._cupy, communicator, rank, peer=_NUM_RANKS - 1 - rank)


class NcclCommunicator:
    """One rank and its peer, with a stream of its own that waits for no other.

    Args:
        cupy: The CuPy module.
        communicator: CuPy's.
        rank: This end's.
        peer: The other end's; the same one to send to oneself, in a group of NCCL's calls.
    """

    def __init__(self, cupy: Any, communicator: Any, rank: int, peer: int) -> None:
        self._communicator = communicator
        self._rank = rank
        self._peer = peer
        self._bytes = cupy.cuda.nccl.NCCL_UINT8
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._scratch = cupy.zeros(1, dtype="uint8")

    def warm(self) -> None:
        """See `Communicator`."""
        if self._rank == 0:
            self.send(self._scratch.data.ptr, 1)
        else:
            self.receive(self._scratch.data.ptr, 1)

    def send(self, address: int, nbytes: int) -> None:
        """See `Communicator`."""
        self._communicator.send(address, nbytes, self._bytes, self._peer, self._stream.ptr)

    def receive(self, address: int, nbytes: int) -> None:
        """See `Communicator`."""
        self._communicator.recv(address, nbytes, self._bytes, self._peer, self._stream.ptr)

    def done(self) -> bool:
        """See `Communicator`."""
        self._communicator.check_async_error()
        return bool(self._stream.done)

    def abort(self) -> None:
        """See `Communicator`: CuPy then has nothing to destroy, which could wait for the other end for ever."""
        self._communicator.abort()


def _import_cupy() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CuPy warns where a library is missing; we raise
            import cupy
            import cupy.cuda.nccl
    except ImportError as error:
        raise RuntimeError(f"NCCL needs CuPy: install flexpert[cuda] ({error})") from error
    if not cupy.cuda.nccl.available:
        raise RuntimeError("CuPy found no NCCL: install nvidia-nccl-cu13")
    return cupy
