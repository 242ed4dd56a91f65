"""Reads parts of weights from the files, dequantised where they are quantised, as numbers of torch.

`pages.fill_segment` copies an expert's boxes through it, and the engine's dense loader whole weights. Quantised
weights are computed in float32 from the stored values and scales and rounded once, to the dtype asked for, as their
publishers' own kernels and transformers do.

Source of the formats: DeepSeek-V3's `weight_dequant` (inference/kernel.py) for FP8 with block scales; the OCP
Microscaling Formats specification 1.0 and transformers' `convert_moe_packed_tensors` for mxfp4.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import torch

from flexpert_workers.checkpoint.boxes import Box
from flexpert_workers.checkpoint.dtypes import STORED
from flexpert_workers.checkpoint.files import CheckpointFiles, StoredTensor, unpaced
from flexpert_workers.checkpoint.layout import Segment
from flexpert_workers.checkpoint.weights import (
    MXFP4_BLOCK,
    BlockScaledWeight,
    Mxfp4Weight,
    PlainWeight,
    Weight,
    Weights,
)

_FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_CHUNK_GROUPS = 1 << 13
"""Groups of mxfp4 values that are dequantised at a time, so that what lies between stays in the cache."""


def copy_boxes(
    weights: Weights,
    segment: Segment,
    boxes: Iterable[Box],
    page: memoryview,
    pace: Callable[[int], None] = unpaced,
) -> None:
    """Copy boxes into their places in a segment of a page, dequantised, cast and turned as need be.

    `pace` is called with the bytes that a box takes in the page, before each.

    Raises:
        CheckpointNotFound: A file is gone.
        CorruptCheckpoint: A file is truncated; file and tensor are named.
    """
    dtype, count = segment.dtype, math.prod(segment.shape)
    target = torch.frombuffer(page, dtype=dtype, count=count, offset=segment.offset).view(segment.shape)
    for box in boxes:
        pace(math.prod(box.shape) * dtype.itemsize)
        elements = read_elements(weights, weights.by_name[box.tensor], box.start, box.span, dtype)
        where = tuple(slice(at, at + size) for at, size in zip(box.at, box.shape, strict=True))
        target[where].copy_(elements.as_strided(box.shape, box.strides))


def read_weight(weights: Weights, weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    """A whole weight; quantised ones in `dtype`, others as they are stored."""
    assembly = weight.assembly()
    (box,) = assembly.boxes
    elements = read_elements(weights, weight, 0, math.prod(assembly.shape), dtype)
    return elements.as_strided(box.shape, box.strides).contiguous()


def read_elements(weights: Weights, weight: Weight, start: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """`count` elements of a weight from element `start` on, in the order in which they are stored.

    Returns:
        [count], quantised weights in `dtype`, others as they are stored.

    Raises:
        CheckpointNotFound: A file is gone.
        CorruptCheckpoint: A file is truncated; file and tensor are named.
    """
    if isinstance(weight, PlainWeight):
        return _read(weights.files, weight.tensor, start, count)
    columns = weight.stored_shape[-1]
    first, last = start // columns, -(-(start + count) // columns)
    rows = torch.empty((last - first, columns), dtype=dtype)
    if isinstance(weight, BlockScaledWeight):
        _block_scaled_rows(weights.files, weight, first, rows)
    else:
        _mxfp4_rows(weights.files, weight, first, rows)
    return rows.view(-1)[start - first * columns :][:count]


def _block_scaled_rows(files: CheckpointFiles, weight: BlockScaledWeight, first: int, out: torch.Tensor) -> None:
    """Rows from `first` on, counted over all matrices of the weight, one row of blocks at a time."""
    last, columns = first + out.shape[0], out.shape[1]
    stored = files.read(weight.tensor, first * columns, out.numel())
    pairs = torch.frombuffer(stored + bytes(len(stored) % 2), dtype=torch.uint16)
    values = _fp8_pairs()
    blocks = list(_rows_of_blocks(first, last, weight.shape[-2], weight.block[0]))
    per_row = weight.scales.shape[-1]
    first_blocks, last_blocks = blocks[0][2], blocks[-1][2] + 1
    scales = _read_scales(files, weight.scales, first_blocks * per_row, (last_blocks - first_blocks) * per_row)
    for begin, end, block_row in blocks:
        row = scales.view(-1, per_row)[block_row - first_blocks].repeat_interleave(weight.block[1])[:columns]
        start, stop = (begin - first) * columns, (end - first) * columns
        decoded = values.index_select(0, pairs[start // 2 : -(-stop // 2)].int()).view(torch.float32)
        out[begin - first : end - first] = decoded[start % 2 :][: stop - start].view(-1, columns).mul_(row)


def _rows_of_blocks(first: int, last: int, rows: int, block_rows: int) -> Iterator[tuple[int, int, int]]:
    """(first row, row behind the last, row of scales) of each run of rows that share their scales; matrices of `rows`
    rows lie one behind the other, and a row of blocks ends with its matrix.
    """
    while first < last:
        matrix, within = divmod(first, rows)
        block = within // block_rows
        end = min(last, matrix * rows + min(rows, (block + 1) * block_rows))
        yield first, end, matrix * -(-rows // block_rows) + block
        first = end


def _mxfp4_rows(files: CheckpointFiles, weight: Mxfp4Weight, first: int, out: torch.Tensor) -> None:
    """Rows from `first` on, counted over all experts, some at a time."""
    columns = out.shape[1]
    packed = _read(files, weight.tensor, first * columns // 2, out.numel() // 2)
    scales = _read_scales(files, weight.scales, first * columns // MXFP4_BLOCK, out.numel() // MXFP4_BLOCK)
    pairs = _fp4_pairs()
    target = out.view(-1, MXFP4_BLOCK)
    for begin in range(0, len(scales), _CHUNK_GROUPS):
        end = begin + _CHUNK_GROUPS
        halves = packed[begin * MXFP4_BLOCK // 2 : end * MXFP4_BLOCK // 2].int()
        values = pairs.index_select(0, halves).view(torch.float32).view(-1, MXFP4_BLOCK)
        target[begin:end] = values.mul_(scales[begin:end, None])


def _fp8_pairs() -> torch.Tensor:
    """[65536] the two float32 values of every two bytes, the lower one's first, as one element of eight bytes.

    Looking pairs up takes a quarter of the time of torch's conversion from FP8.
    """
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    return torch.stack([values.repeat(256), values.repeat_interleave(256)], dim=1).view(torch.float64).view(-1)


def _fp4_pairs() -> torch.Tensor:
    """[256] the two float32 values of every byte, the lower half's first, as one element of eight bytes."""
    values = torch.tensor(_FP4_VALUES)
    byte = torch.arange(256)
    return torch.stack([values[byte & 15], values[byte >> 4]], dim=1).view(torch.float64).view(-1)


def _read_scales(files: CheckpointFiles, scales: StoredTensor, start: int, count: int) -> torch.Tensor:
    """Scales in float32; bytes are exponents."""
    stored = _read(files, scales, start, count)
    return (stored.view(torch.float8_e8m0fnu) if stored.dtype == torch.uint8 else stored).float()


def _read(files: CheckpointFiles, tensor: StoredTensor, start: int, count: int) -> torch.Tensor:
    dtype = STORED[tensor.dtype]
    data = files.read(tensor, start * dtype.itemsize, count * dtype.itemsize)
    return torch.frombuffer(data, dtype=dtype)
