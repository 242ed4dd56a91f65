"""The page of an expert: its segments, and views of it.

Workers, page owners and the planner's byte counts all use one `ExpertLayout` a checkpoint; every expert of every layer
has a page of that layout. Only who asks for tensors or torch's dtypes imports torch.
"""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import torch

ALIGNMENT_BYTES = 64

ITEM_BYTES: Mapping[str, int] = {"Float32": 4, "BFloat16": 2, "Float16": 2}
"""What weights can be served in, by the names of a spec's `model.dtype`, and the bytes of an element."""


class Segment(msgspec.Struct, frozen=True):
    """One parameter of one expert inside its page.

    Attributes:
        name: The parameter's name in the experts class, e.g. "gate_up_proj".
        shape: Its shape without the leading dimension of experts.
        dtype_name: What its elements are, e.g. "BFloat16".
        offset: First byte in the page, a multiple of 64.
    """

    name: str
    shape: tuple[int, ...]
    dtype_name: str
    offset: int
    nbytes: int

    @property
    def dtype(self) -> "torch.dtype":
        """What its elements are, in torch."""
        from flexpert_workers.checkpoint.dtypes import SERVED

        return SERVED[self.dtype_name]


class ExpertLayout(msgspec.Struct, frozen=True):
    """The segments of a page in order, and its size, a multiple of 64 bytes."""

    segments: tuple[Segment, ...]
    page_bytes: int

    def views(self, page: bytearray | memoryview) -> "dict[str, torch.Tensor]":
        """Segment name → a tensor that shares the page's memory.

        Args:
            page: A writable buffer of at least `page_bytes` bytes; the tensors keep it alive.
        """
        import torch

        return {
            segment.name: torch.frombuffer(
                page, dtype=segment.dtype, count=math.prod(segment.shape), offset=segment.offset
            ).view(segment.shape)
            for segment in self.segments
        }


def make_layout(shapes: Iterable[tuple[str, tuple[int, ...]]], dtype: str) -> ExpertLayout:
    """Lay (name, shape) pairs of a dtype ("Float32", …) out one behind the other, each aligned to 64 bytes."""
    segments: list[Segment] = []
    position = 0
    for name, shape in shapes:
        nbytes = math.prod(shape) * ITEM_BYTES[dtype]
        segments.append(Segment(name, shape, dtype, position, nbytes))
        position += -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return ExpertLayout(tuple(segments), position)
