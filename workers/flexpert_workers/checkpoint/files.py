"""The safetensors files of a checkpoint: their headers, read strictly, and byte ranges out of them.

`checkpoint.open_checkpoint` reads every header once; expert pages are then filled by `read_into` and `read`, range by
range, so no tensor is ever loaded that is not asked for. Nothing but safetensors is opened: no pickle.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexpert_workers.errors import CheckpointNotFound, CorruptCheckpoint

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format itself."""

_BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U64": 64,
    "U32": 32,
    "U16": 16,
    "U8": 8,
    "C64": 64,
    "BOOL": 8,
}
"""Bits of an element, by the format's names."""
CHUNK_BYTES = 4 << 20
"""Read at a time."""
SAMPLE_BYTES = 4096
_SAMPLES = 16


def unpaced(num_bytes: int) -> None:
    """A pace that waits for nothing."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a file's header describes it.

    Attributes:
        dtype: The format's own name, e.g. "BF16".
        start: First byte, counted from the start of the file.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class ShardFile:
    """One safetensors file: its header as stored, where its data begin, and its size in bytes."""

    name: str
    header: bytes
    data_start: int
    size: int


@dataclass(frozen=True)
class CheckpointFiles:
    """All tensors of a checkpoint folder, by name, and the files that hold them (sorted by name)."""

    path: Path
    shards: tuple[ShardFile, ...]
    tensors: Mapping[str, StoredTensor]

    def read(self, tensor: StoredTensor, offset: int, nbytes: int) -> bytearray:
        """`nbytes` bytes of a tensor from its byte `offset` on.

        Raises:
            CorruptCheckpoint: The file ends before them.
        """
        buffer = bytearray(nbytes)
        self.read_into(tensor, offset, memoryview(buffer))
        return buffer

    def read_into(
        self,
        tensor: StoredTensor,
        offset: int,
        target: memoryview,
        pace: Callable[[int], None] = unpaced,
    ) -> None:
        """Fill `target` with the bytes of a tensor from its byte `offset` on.

        Args:
            tensor: What is read.
            offset: In bytes.
            target: Where to.
            pace: Called with a number of bytes, at most `CHUNK_BYTES`, before they are read; what it raises ends this.

        Raises:
            CheckpointNotFound: The file is gone.
            CorruptCheckpoint: The file ends before them.
        """
        path = self.path / tensor.file
        with _open(path) as descriptor:
            done = 0
            while done < len(target):
                chunk = target[done : done + CHUNK_BYTES]
                pace(len(chunk))
                count = os.preadv(descriptor.fileno, [chunk], tensor.start + offset + done)
                if count == 0:
                    raise CorruptCheckpoint(f"{path} is truncated: tensor {tensor.name!r} ends before its last byte")
                done += count

    def fingerprint(self) -> bytes:
        """Identity of what the files hold.

        It covers every file's name, size and whole header (tensor names, dtypes, shapes, offsets), and 16 evenly spaced
        samples of 4 KiB of each file's data, so that two fine-tunings of one model differ. It does not read every byte:
        a flipped bit elsewhere goes unseen.
        """
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"\0{shard.name}\0{shard.size}\0".encode())
            digest.update(shard.header)
            with _open(self.path / shard.name) as descriptor:
                for start in sample_offsets(shard.data_start, shard.size):
                    digest.update(os.pread(descriptor.fileno, SAMPLE_BYTES, start))
        return digest.digest()


class _open:  # noqa: N801 - used as a function
    """A read-only descriptor for a `with` statement, whose absence is told in our words."""

    def __init__(self, path: Path) -> None:
        try:
            self.fileno = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise CheckpointNotFound(f"{path} is missing from the checkpoint; download it again") from error
        except OSError as error:
            raise CheckpointNotFound(f"{path} cannot be opened: {error.strerror}") from error

    def __enter__(self) -> "_open":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fileno)


def sample_offsets(data_start: int, size: int) -> range:
    """Where in a file the samples of a fingerprint begin; each has `SAMPLE_BYTES`, or what is left of the file."""
    step = max((size - data_start) // _SAMPLES, SAMPLE_BYTES)
    return range(data_start, size, step)


def open_files(path: Path) -> CheckpointFiles:
    """Read the headers of all safetensors files of a checkpoint folder.

    Raises:
        CheckpointNotFound: No folder, no safetensors in it, or a file that the index names is missing.
        CorruptCheckpoint: A header or the index contradicts itself or the files.
    """
    shards: list[ShardFile] = []
    tensors: dict[str, StoredTensor] = {}
    placed = _shard_names(path)
    for name in sorted(set(placed) or {SINGLE_FILE}):
        shard, stored = _read_header(path / name)
        shards.append(shard)
        for tensor in stored:
            if tensor.name in tensors:
                first = tensors[tensor.name].file
                raise CorruptCheckpoint(f"{path}: tensor {tensor.name!r} is both in {first} and in {name}")
            tensors[tensor.name] = tensor
    for name, names in placed.items():
        for missing in (tensor for tensor in names if tensor not in tensors or tensors[tensor].file != name):
            raise CorruptCheckpoint(f"{path / name} lacks tensor {missing!r}, which {INDEX_FILE} says it holds")
    return CheckpointFiles(path, tuple(shards), tensors)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointNotFound: There is no such file.
        CorruptCheckpoint: It is not a JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointNotFound(f"{path} is missing; a checkpoint folder holds it beside its weights") from error
    except OSError as error:
        raise CheckpointNotFound(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CorruptCheckpoint(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptCheckpoint(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def _shard_names(path: Path) -> dict[str, list[str]]:
    """File name → names of the tensors that the index places in it; empty for a checkpoint of one file."""
    if not path.is_dir():
        raise CheckpointNotFound(f"{path} is not a folder; give the folder that holds {CONFIG_FILE} and the weights")
    if (path / SINGLE_FILE).exists():
        return {}
    if not (path / INDEX_FILE).exists():
        raise CheckpointNotFound(_no_weights(path))
    weight_map = read_json(path / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptCheckpoint(f"{path / INDEX_FILE} has no weight_map")
    placed: dict[str, list[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or (name not in placed and Path(name).name != name):
            raise CorruptCheckpoint(f"{path / INDEX_FILE} places tensor {tensor!r} in {name!r}, which is no file name")
        placed.setdefault(name, []).append(tensor)
    return placed


def _no_weights(path: Path) -> str:
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
    if pickled:
        return (
            f"{path} holds {pickled[0]} but no safetensors, and only safetensors is loaded: convert it with "
            f"save_pretrained, or download the safetensors revision"
        )
    return f"{path} holds neither {SINGLE_FILE} nor {INDEX_FILE}"


def _read_header(path: Path) -> tuple[ShardFile, list[StoredTensor]]:
    with _open(path) as descriptor:
        size = os.fstat(descriptor.fileno).st_size
        prefix = os.pread(descriptor.fileno, 8, 0)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > MAX_HEADER_BYTES:
            raise CorruptCheckpoint(f"{path} is not a safetensors file: it does not begin with a header's length")
        header = os.pread(descriptor.fileno, length, 8)
    if len(header) < length:
        raise CorruptCheckpoint(f"{path} is truncated inside its header ({size} bytes)")
    shard = ShardFile(path.name, header, 8 + length, size)
    return shard, _parse_header(path, shard)


def _parse_header(path: Path, shard: ShardFile) -> list[StoredTensor]:
    try:
        entries = json.loads(shard.header)
    except ValueError as error:
        raise CorruptCheckpoint(f"{path}: its header is not valid JSON: {error}") from error
    if not isinstance(entries, dict):
        raise CorruptCheckpoint(f"{path}: its header is not a JSON object")
    tensors = [_parse_entry(path, shard, name, entry) for name, entry in entries.items() if name != "__metadata__"]
    tensors.sort(key=lambda tensor: tensor.start)
    _check_coverage(path, shard, tensors)
    return tensors


def _parse_entry(path: Path, shard: ShardFile, name: str, entry: object) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if all(
            isinstance(size, int) and size >= 0 for size in shape
        ):
            pass
        case _:
            raise CorruptCheckpoint(f"{path}: tensor {name!r} has a malformed header entry: {entry!r}")
    if dtype not in _BITS:
        raise CorruptCheckpoint(f"{path}: tensor {name!r} has dtype {dtype!r}, which this version does not know")
    count = 1
    for size in shape:
        count *= size
    if begin < 0 or (end - begin) * 8 != count * _BITS[dtype]:
        raise CorruptCheckpoint(
            f"{path}: tensor {name!r} of shape {shape} and dtype {dtype} cannot take bytes {begin} to {end}"
        )
    if shard.data_start + end > shard.size:
        raise CorruptCheckpoint(
            f"{path} is truncated: tensor {name!r} ends at byte {shard.data_start + end} of {shard.size}"
        )
    return StoredTensor(name, shard.name, dtype, tuple(shape), shard.data_start + begin, end - begin)


def _check_coverage(path: Path, shard: ShardFile, tensors: list[StoredTensor]) -> None:
    """The format wants every byte behind the header to belong to exactly one tensor."""
    position = shard.data_start
    for tensor in tensors:
        if tensor.start != position:
            kind = "overlaps the one before it" if tensor.start < position else "leaves a hole before it"
            raise CorruptCheckpoint(f"{path}: tensor {tensor.name!r} {kind}")
        position += tensor.nbytes
    if position != shard.size:
        raise CorruptCheckpoint(f"{path} has {shard.size - position} bytes behind its last tensor")
