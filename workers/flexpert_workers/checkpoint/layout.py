"""The page of an expert: its segments, and how it is filled from the files.

Workers, page owners and the planner's byte counts all use one `ExpertLayout` a checkpoint; every expert of every layer
has a page of that layout.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from flexpert_workers.checkpoint.boxes import Assembly, Box
from flexpert_workers.checkpoint.files import CheckpointFiles
from flexpert_workers.errors import UnsupportedArchitecture

ALIGNMENT_BYTES = 64
READABLE_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""What expert weights may be stored as; anything else needs more than a cast."""


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


def fill_segment(files: CheckpointFiles, segment: Segment, source: Assembly, page: memoryview) -> None:
    """Copy what `source` names into the page, cast to the segment's dtype (bf16 to fp32 is exact, the rest rounds).

    Raises:
        CheckpointNotFound: A file is gone.
        CorruptCheckpoint: A file is truncated; file and tensor are named.
    """
    target = torch.frombuffer(page, dtype=segment.dtype, count=math.prod(segment.shape), offset=segment.offset)
    for box in source.boxes:
        if not _read_directly(files, segment, box, page):
            _copy_box(files, box, target.view(segment.shape))


def check_readable(files: CheckpointFiles, source: Assembly) -> None:
    """Refuse weights that slicing, merging, concatenating and a cast do not give.

    Raises:
        UnsupportedArchitecture: A tensor is quantised; the message names it, its file and its dtype.
    """
    for box in source.boxes:
        stored = files.tensors[box.tensor]
        if stored.torch_dtype not in READABLE_DTYPES:
            raise UnsupportedArchitecture(
                f"{files.path / stored.file}: expert tensor {stored.name!r} is stored as {stored.dtype}, a quantised "
                f"format that is not served yet; give a checkpoint in BF16, F16 or F32"
            )


def _read_directly(files: CheckpointFiles, segment: Segment, box: Box, page: memoryview) -> bool:
    """Read a box straight into the page where no cast is needed and its bytes stay together; False otherwise."""
    stored = files.tensors[box.tensor]
    together = box.is_contiguous and box.shape[1:] == segment.shape[1:]
    if stored.torch_dtype != segment.dtype or not together:
        return False
    itemsize = segment.dtype.itemsize
    row_bytes = math.prod(segment.shape[1:]) * itemsize
    begin = segment.offset + box.at[0] * row_bytes
    files.read_into(stored, box.start * itemsize, page[begin : begin + box.shape[0] * row_bytes])
    return True


def _copy_box(files: CheckpointFiles, box: Box, target: torch.Tensor) -> None:
    stored = files.tensors[box.tensor]
    dtype = stored.torch_dtype
    assert dtype is not None, "check_readable has refused what torch cannot read"
    data = files.read(stored, box.start * dtype.itemsize, box.span * dtype.itemsize)
    source = torch.frombuffer(data, dtype=dtype).as_strided(box.shape, box.strides)
    where = tuple(slice(at, at + size) for at, size in zip(box.at, box.shape, strict=True))
    target[where].copy_(source)
