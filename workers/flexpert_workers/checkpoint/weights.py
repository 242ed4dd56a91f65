"""The weights that a checkpoint's files hold, whatever they are stored as: one entry a weight, its scales joined to it.

`conversion` matches them with a model's parameters by name and shape; `dequantise` reads them. Nothing here reads a
byte.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flexpert_workers.checkpoint.boxes import Assembly
from flexpert_workers.checkpoint.files import CheckpointFiles, StoredTensor
from flexpert_workers.checkpoint.quantisation import BlockFp8, Quantisation
from flexpert_workers.errors import CorruptCheckpoint

SCALE_SUFFIX = "_scale_inv"
BLOCKS_SUFFIX, SCALES_SUFFIX = "_blocks", "_scales"
MXFP4_BLOCK_BYTES = 16
MXFP4_BLOCK = 2 * MXFP4_BLOCK_BYTES
"""Values that share a scale."""

_SCALE_DTYPES = frozenset({"F32", "BF16", "F16", "F8_E8M0", "U8"})
"""What scales of FP8 blocks are stored as; a byte (U8) is an exponent (E8M0)."""


@dataclass(frozen=True)
class _InOrder:
    """A weight whose values are stored under its own name and in its own order."""

    tensor: StoredTensor

    @property
    def name(self) -> str:
        """The weight's name."""
        return self.tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return self.tensor.shape

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The same."""
        return self.tensor.shape

    def assembly(self) -> Assembly:
        """The whole weight, in elements as they are stored."""
        return Assembly.stored(self.name, self.stored_shape)


@dataclass(frozen=True)
class PlainWeight(_InOrder):
    """A weight that is stored as it is."""


@dataclass(frozen=True)
class BlockScaledWeight(_InOrder):
    """FP8 values `[…, rows, columns]` and a scale for each block of them.

    Attributes:
        scales: `[…, ceil(rows / block[0]), ceil(columns / block[1])]`; blocks at the end may be partial.
        block: Rows and columns of a block.
    """

    scales: StoredTensor
    block: tuple[int, int]


@dataclass(frozen=True)
class Mxfp4Weight:
    """FP4 values, packed, with a power of two for every 32 neighbours in a row.

    Attributes:
        name: The weight's name: that of the stored tensors without their suffix.
        tensor: `[experts, rows, groups, 16]`, two values a byte, the lower half first.
        scales: `[experts, rows, groups]`, an exponent a byte (E8M0).
    """

    name: str
    tensor: StoredTensor
    scales: StoredTensor

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """[experts, rows, columns], in the order in which values are stored."""
        experts, rows, groups, _ = self.tensor.shape
        return experts, rows, groups * MXFP4_BLOCK

    @property
    def shape(self) -> tuple[int, ...]:
        """[experts, columns, rows]: the model has it transposed."""
        experts, rows, columns = self.stored_shape
        return experts, columns, rows

    def assembly(self) -> Assembly:
        """The whole weight, in elements as they are stored."""
        return Assembly.stored(self.name, self.stored_shape).transpose(1, 2)


Weight = PlainWeight | BlockScaledWeight | Mxfp4Weight


@dataclass(frozen=True)
class Weights:
    """All weights of a checkpoint, by name."""

    files: CheckpointFiles
    by_name: Mapping[str, Weight]

    def path(self, weight: Weight) -> Path:
        """The file that holds a weight."""
        return self.files.path / weight.tensor.file


def find_weights(files: CheckpointFiles, quantisation: Quantisation | None) -> Weights:
    """Join the stored tensors that make one weight.

    Raises:
        CorruptCheckpoint: Scales are missing, superfluous or misshapen; file and tensor are named.
    """
    match quantisation:
        case None:
            weights: list[Weight] = [PlainWeight(tensor) for tensor in files.tensors.values()]
        case BlockFp8(block):
            weights = _block_scaled(files, block)
        case _:
            weights = _microscaled(files)
    return Weights(files, {weight.name: weight for weight in weights})


def _block_scaled(files: CheckpointFiles, block: tuple[int, int]) -> list[Weight]:
    weights: list[Weight] = []
    for tensor in files.tensors.values():
        scales = files.tensors.get(tensor.name + SCALE_SUFFIX)
        if tensor.dtype == "F8_E4M3":
            weights.append(_block_scaled_weight(files, tensor, scales, block))
        elif scales is not None:
            raise _corrupt(files, tensor, f"is stored as {tensor.dtype}, but has FP8 scales {scales.name!r}")
        elif tensor.name.removesuffix(SCALE_SUFFIX) not in files.tensors or not tensor.name.endswith(SCALE_SUFFIX):
            weights.append(PlainWeight(tensor))
    return weights


def _block_scaled_weight(
    files: CheckpointFiles, tensor: StoredTensor, scales: StoredTensor | None, block: tuple[int, int]
) -> BlockScaledWeight:
    if scales is None:
        raise _corrupt(
            files, tensor, f"is stored as F8_E4M3, but its scales {tensor.name + SCALE_SUFFIX!r} are missing"
        )
    if len(tensor.shape) < 2:
        raise _corrupt(files, tensor, f"of shape {list(tensor.shape)} has no blocks of {list(block)}")
    if scales.dtype not in _SCALE_DTYPES:
        raise _corrupt(files, scales, f"holds scales as {scales.dtype}, which is none of {sorted(_SCALE_DTYPES)}")
    *leading, rows, columns = tensor.shape
    expected = (*leading, -(-rows // block[0]), -(-columns // block[1]))
    if scales.shape != expected:
        raise _corrupt(
            files,
            scales,
            f"has shape {list(scales.shape)}, but {tensor.name!r} of shape {list(tensor.shape)} in blocks of "
            f"{list(block)} needs {list(expected)}",
        )
    return BlockScaledWeight(tensor, scales, block)


def _microscaled(files: CheckpointFiles) -> list[Weight]:
    weights: list[Weight] = []
    for tensor in files.tensors.values():
        if tensor.name.endswith(BLOCKS_SUFFIX):
            weights.append(_microscaled_weight(files, tensor))
        elif tensor.name.removesuffix(SCALES_SUFFIX) + BLOCKS_SUFFIX not in files.tensors:
            weights.append(PlainWeight(tensor))
    return weights


def _microscaled_weight(files: CheckpointFiles, blocks: StoredTensor) -> Mxfp4Weight:
    name = blocks.name.removesuffix(BLOCKS_SUFFIX)
    scales = files.tensors.get(name + SCALES_SUFFIX)
    if scales is None:
        raise _corrupt(files, blocks, f"holds mxfp4 blocks, but its scales {name + SCALES_SUFFIX!r} are missing")
    for tensor in (blocks, scales):
        if tensor.dtype != "U8":
            raise _corrupt(files, tensor, f"is stored as {tensor.dtype}, not as the U8 of mxfp4")
    if len(blocks.shape) != 4 or blocks.shape[-1] != MXFP4_BLOCK_BYTES:
        raise _corrupt(
            files, blocks, f"has shape {list(blocks.shape)}, not [experts, rows, groups, {MXFP4_BLOCK_BYTES}]"
        )
    if scales.shape != blocks.shape[:-1]:
        raise _corrupt(
            files, scales, f"has shape {list(scales.shape)}, but {blocks.name!r} needs {list(blocks.shape[:-1])}"
        )
    return Mxfp4Weight(name, blocks, scales)


def _corrupt(files: CheckpointFiles, tensor: StoredTensor, reason: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(f"{files.path / tensor.file}: tensor {tensor.name!r} {reason}")
