"""Fills an expert's page from the files, range by range.

`Checkpoint.fill_page` calls it for each segment. Where bytes are stored as they are served they are read straight into
the page, without torch; what has to be dequantised, cast or turned goes through `dequantise`.
"""

import math
from collections.abc import Callable

from flexpert_workers.checkpoint.boxes import Assembly, Box
from flexpert_workers.checkpoint.files import unpaced
from flexpert_workers.checkpoint.layout import ITEM_BYTES, Segment
from flexpert_workers.checkpoint.weights import PlainWeight, Weights
from flexpert_workers.errors import UnsupportedArchitecture

READABLE_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
"""What expert weights may be stored as that are not quantised."""

_PIECE_ELEMENTS = 4 << 20
"""Most that is dequantised or cast at a time."""
_STORED_AS = {"Float32": "F32", "BFloat16": "BF16", "Float16": "F16"}


def fill_segment(
    weights: Weights,
    segment: Segment,
    source: Assembly,
    page: memoryview,
    pace: Callable[[int], None] = unpaced,
) -> None:
    """Copy what `source` names into the page, dequantised and cast to the segment's dtype (bf16 to fp32 is exact, the
    rest rounds). `pace` is as in `Checkpoint.fill_page`.

    Raises:
        CheckpointNotFound: A file is gone.
        CorruptCheckpoint: A file is truncated; file and tensor are named.
    """
    remaining = [box for box in source.boxes if not _read_directly(weights, segment, box, page, pace)]
    if remaining:
        from flexpert_workers.checkpoint.dequantise import copy_boxes

        pieces = [piece for box in remaining for piece in box.pieces(_PIECE_ELEMENTS)]
        copy_boxes(weights, segment, pieces, page, pace)


def check_readable(weights: Weights, source: Assembly) -> None:
    """Refuse weights that slicing, merging, concatenating, a cast and the declared scales do not give.

    Raises:
        UnsupportedArchitecture: A tensor is quantised; the message names it, its file and its dtype.
    """
    for box in source.boxes:
        weight = weights.by_name[box.tensor]
        if isinstance(weight, PlainWeight) and weight.tensor.dtype not in READABLE_DTYPES:
            raise UnsupportedArchitecture(
                f"{weights.path(weight)}: expert tensor {weight.name!r} is stored as {weight.tensor.dtype}, and the "
                f"configuration declares no quantisation that says how; give a checkpoint in BF16, F16 or F32"
            )


def _read_directly(weights: Weights, segment: Segment, box: Box, page: memoryview, pace: Callable[[int], None]) -> bool:
    """Read a box straight into the page where no cast is needed and its bytes stay together; False otherwise."""
    weight = weights.by_name[box.tensor]
    together = box.is_contiguous and box.shape[1:] == segment.shape[1:]
    as_served = isinstance(weight, PlainWeight) and weight.tensor.dtype == _STORED_AS[segment.dtype_name]
    if not as_served or not together:
        return False
    item_bytes = ITEM_BYTES[segment.dtype_name]
    row_bytes = math.prod(segment.shape[1:]) * item_bytes
    begin = segment.offset + box.at[0] * row_bytes
    rows = page[begin : begin + box.shape[0] * row_bytes]
    weights.files.read_into(weight.tensor, box.start * item_bytes, rows, pace)
    return True
