"""What a remote checkpoint consists of, and how its bytes are read. `hub` and `stores` implement the protocol."""

import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Protocol

from flexpert_workers.checkpoint.files import INDEX_FILE, SINGLE_FILE
from flexpert_workers.errors import CheckpointNotFound, CorruptCheckpoint

WEIGHTS_SUFFIX = ".safetensors"
_SMALL_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
_LARGEST_SMALL_BYTES = 256 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file of a remote checkpoint.

    Attributes:
        checksum: "sha256:…", "git-sha1:…" (of a blob) or "md5:…" in hexadecimal; "version:…" is a name of this state of
            the file that says nothing of its bytes.
    """

    name: str
    size: int
    checksum: str


@dataclass(frozen=True)
class Listing:
    """The files of a remote checkpoint's folder, at one revision."""

    revision: str
    files: tuple[RemoteFile, ...]

    def find(self, name: str) -> RemoteFile | None:
        """The file of that name."""
        return next((file for file in self.files if file.name == name), None)


class RemoteFiles(Protocol):
    """Reads a remote checkpoint at one revision. All methods raise `errors.CheckpointError`; all may be called by
    several threads.
    """

    def listing(self) -> Listing:
        """What there is now; the revision asked for is resolved."""

    def read(self, file: RemoteFile, start: int, num_bytes: int) -> bytes:
        """That many bytes of a file."""

    def append(self, file: RemoteFile, target: BinaryIO, done: int) -> None:
        """Write a file's bytes from `done` on to `target`, which stands behind those before.

        Raises:
            OSError: `target` cannot be written.
        """

    def unchanged(self, listing: Listing) -> bool:
        """Whether what was listed is still there, so that bytes read since belong together."""


def small_files(listing: Listing) -> tuple[RemoteFile, ...]:
    """Configuration, index and tokenizer: everything that is served but the weights."""
    return tuple(
        file
        for file in listing.files
        if _is_plain(file.name) and file.name.endswith(_SMALL_SUFFIXES) and file.size <= _LARGEST_SMALL_BYTES
    )


def weight_files(listing: Listing, index: bytes | None, source: str) -> tuple[RemoteFile, ...]:
    """The safetensors files that hold the weights, in the order of their names; nothing else is ever fetched.

    Args:
        listing: Of the checkpoint.
        index: Content of its `model.safetensors.index.json`, if it has one.
        source: For messages.

    Raises:
        CheckpointNotFound: There is none, or one that the index names is missing.
        CorruptCheckpoint: The index is not one.
    """
    names = _indexed(index, source) if index is not None else [SINGLE_FILE]
    found = {name: listing.find(name) for name in names}
    for name, file in found.items():
        if not _is_plain(name) or not name.endswith(WEIGHTS_SUFFIX):
            raise CheckpointNotFound(f"{source}: {INDEX_FILE} names {name}; only safetensors files are opened")
        if file is None:
            raise CheckpointNotFound(_missing(listing, name, source))
    return tuple(file for file in found.values() if file is not None)


def _missing(listing: Listing, name: str, source: str) -> str:
    pickled = sorted(file.name for file in listing.files if file.name.endswith(_PICKLED_SUFFIXES))
    if pickled:
        return (
            f"{source} has no {name}, but pickled weights ({', '.join(pickled[:3])}): those are never opened; name a "
            f"revision with safetensors, or convert it with transformers' save_pretrained"
        )
    there = ", ".join(sorted(file.name for file in listing.files)[:5]) or "nothing"
    return f"{source} has no {name} (there is {there}): name a folder with a checkpoint in safetensors"


def _indexed(index: bytes, source: str) -> list[str]:
    try:
        placed = json.loads(index)["weight_map"]
        return sorted({str(name) for name in placed.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpoint(f"{source}: {INDEX_FILE} has no weight_map: {error}") from error


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file directly in the folder, on any system."""
    return PurePosixPath(name).name == name and not name.startswith(".") and "\\" not in name and "\0" not in name
