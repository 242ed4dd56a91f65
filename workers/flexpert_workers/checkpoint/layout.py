"""The page of an expert: its segments, and how it is filled from the files.

Workers, page owners and the planner's byte counts all use one `ExpertLayout` a checkpoint; every expert of every layer
has a page of that layout.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from flexpert_workers.checkpoint.boxes import Assembly, Box
from flexpert_workers.checkpoint.dequantise import read_elements
from flexpert_workers.checkpoint.weights import PlainWeight, Weights
from flexpert_workers.errors import UnsupportedArchitecture

ALIGNMENT_BYTES = 64
READABLE_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""What expert weights may be stored as that are not quantised."""


@dataclass(frozen=True)
class Segment:
    """One parameter of one expert inside its page.

    Attributes:
        name: The parameter's name in the experts class, e.g. "gate_up_proj".
        shape: Its shape without the leading dimension of experts.
        offset: First byte in the page, a multiple of 64.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    nbytes: int


@dataclass(frozen=True)
class ExpertLayout:
    """The segments of a page in order, and its size, a multiple of 64 bytes."""

    segments: tuple[Segment, ...]
    page_bytes: int

    def views(self, page: bytearray | memoryview) -> dict[str, torch.Tensor]:
        """Segment name → a tensor that shares the page's memory.

        Args:
            page: A writable buffer of at least `page_bytes` bytes; the tensors keep it alive.
        """
        return {
            segment.name: torch.frombuffer(
                page, dtype=segment.dtype, count=math.prod(segment.shape), offset=segment.offset
            ).view(segment.shape)
            for segment in self.segments
        }


def make_layout(shapes: Iterable[tuple[str, tuple[int, ...]]], dtype: torch.dtype) -> ExpertLayout:
    """Lay (name, shape) pairs out one behind the other, each aligned to 64 bytes."""
    segments: list[Segment] = []
    position = 0
    for name, shape in shapes:
        nbytes = math.prod(shape) * dtype.itemsize
        segments.append(Segment(name, shape, dtype, position, nbytes))
        position += -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return ExpertLayout(tuple(segments), position)


def fill_segment(weights: Weights, segment: Segment, source: Assembly, page: memoryview) -> None:
    """Copy what `source` names into the page, dequantised and cast to the segment's dtype (bf16 to fp32 is exact, the
    rest rounds).

    Raises:
        CheckpointNotFound: A file is gone.
        CorruptCheckpoint: A file is truncated; file and tensor are named.
    """
    target = torch.frombuffer(page, dtype=segment.dtype, count=math.prod(segment.shape), offset=segment.offset)
    for box in source.boxes:
        if not _read_directly(weights, segment, box, page):
            _copy_box(weights, box, target.view(segment.shape))


def check_readable(weights: Weights, source: Assembly) -> None:
    """Refuse weights that slicing, merging, concatenating, a cast and the declared scales do not give.

    Raises:
        UnsupportedArchitecture: A tensor is quantised; the message names it, its file and its dtype.
    """
    for box in source.boxes:
        weight = weights.by_name[box.tensor]
        if isinstance(weight, PlainWeight) and weight.tensor.torch_dtype not in READABLE_DTYPES:
            raise UnsupportedArchitecture(
                f"{weights.path(weight)}: expert tensor {weight.name!r} is stored as {weight.tensor.dtype}, and the "
                f"configuration declares no quantisation that says how; give a checkpoint in BF16, F16 or F32"
            )


def _read_directly(weights: Weights, segment: Segment, box: Box, page: memoryview) -> bool:
    """Read a box straight into the page where no cast is needed and its bytes stay together; False otherwise."""
    weight = weights.by_name[box.tensor]
    together = box.is_contiguous and box.shape[1:] == segment.shape[1:]
    if not isinstance(weight, PlainWeight) or weight.tensor.torch_dtype != segment.dtype or not together:
        return False
    itemsize = segment.dtype.itemsize
    row_bytes = math.prod(segment.shape[1:]) * itemsize
    begin = segment.offset + box.at[0] * row_bytes
    weights.files.read_into(weight.tensor, box.start * itemsize, page[begin : begin + box.shape[0] * row_bytes])
    return True


def _copy_box(weights: Weights, box: Box, target: torch.Tensor) -> None:
    elements = read_elements(weights, weights.by_name[box.tensor], box.start, box.span, target.dtype)
    where = tuple(slice(at, at + size) for at, size in zip(box.at, box.shape, strict=True))
    target[where].copy_(elements.as_strided(box.shape, box.strides))
