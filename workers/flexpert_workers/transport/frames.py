"""Tensors as message frames and back, without a copy: bytes are what is sent, also for bfloat16, which NumPy lacks."""

import torch

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """The name by which a message calls `dtype`.

    Raises:
        KeyError: The type does not travel: not one of float32, bfloat16 and float16.
    """
    return _NAMES[dtype]


def dtype_named(name: str) -> torch.dtype:
    """The type that a message calls `name`.

    Raises:
        KeyError: There is none.
    """
    return _DTYPES[name]


def as_frame(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, which must not change until they are sent."""
    return tensor.detach().view(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def from_frame(frame: bytes | bytearray | memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor over the bytes of a frame, to be read only.

    Raises:
        ValueError: The frame does not have the bytes that `shape` needs.
    """
    needed = dtype.itemsize
    for size in shape:
        needed *= size
    if len(frame) != needed:
        raise ValueError(f"a frame of {len(frame)} bytes does not hold {list(shape)} of {dtype}")
    return torch.frombuffer(frame, dtype=dtype).view(shape) if needed else torch.empty(shape, dtype=dtype)
