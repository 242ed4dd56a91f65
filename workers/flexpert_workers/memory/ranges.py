"""What a checkpoint's pages are made of, as plain numbers: ranges of files, to be copied into a page as they are.

A worker derives them from the checkpoint that it has opened and tells its page owner, which so reads expert pages
without opening the checkpoint (and importing what that takes) itself.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from flexpert_workers.errors import CheckpointError, CheckpointNotFound, CorruptCheckpoint
from flexpert_workers.memory.backend import ExpertKey


class Range(msgspec.Struct, frozen=True, array_like=True):
    """`nbytes` bytes of a file, from its byte `start` on, that belong into a page from byte `at` on."""

    file: int
    start: int
    nbytes: int
    at: int


class PageRanges(msgspec.Struct, frozen=True):
    """The pages of a checkpoint.

    Attributes:
        digest: Of the checkpoint.
        num_experts: In each MoE layer.
        files: Names in the checkpoint's folder.
        pages: Per expert, packed layer * num_experts + index, its ranges; empty where some page needs more than
            copying (a cast, a transposition, scales).
    """

    digest: str
    num_experts: int
    files: tuple[str, ...]
    pages: tuple[tuple[Range, ...], ...]


class RangeReader:
    """Fills pages by ranges; safe for several threads.

    Args:
        folder: Of the checkpoint.

    Raises:
        CheckpointNotFound: A file is missing.
        CheckpointError: The ranges name a file outside the folder.
    """

    def __init__(self, folder: Path, ranges: PageRanges) -> None:
        self._folder = folder
        self._ranges = ranges
        self._descriptors: list[int] = []
        try:
            self._descriptors.extend(_open(folder, name) for name in ranges.files)
        except BaseException:
            self.close()
            raise

    def fill(self, key: ExpertKey, page: memoryview) -> None:
        """Fill a page with an expert.

        Raises:
            CorruptCheckpoint: A file has become shorter.
        """
        layer, index = key
        for part in self._ranges.pages[layer * self._ranges.num_experts + index]:
            self._read(part, page[part.at : part.at + part.nbytes])

    def close(self) -> None:
        """Close the files."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _read(self, part: Range, target: memoryview) -> None:
        done = 0
        while done < part.nbytes:
            count = os.preadv(self._descriptors[part.file], [target[done:]], part.start + done)
            if count == 0:
                path = self._folder / self._ranges.files[part.file]
                raise CorruptCheckpoint(f"{path} is truncated: it ends before byte {part.start + part.nbytes}")
            done += count


def plain_ranges(digest: str, num_experts: int, pages: Sequence[Sequence[tuple[str, int, int, int]]]) -> PageRanges:
    """Ranges with file names, (file, start, nbytes, at), as `PageRanges`."""
    files = tuple(sorted({part[0] for page in pages for part in page}))
    position = {name: number for number, name in enumerate(files)}
    packed = tuple(tuple(Range(position[name], *rest) for name, *rest in page) for page in pages)
    return PageRanges(digest, num_experts, files, packed)


def _open(folder: Path, name: str) -> int:
    if Path(name).name != name:
        raise CheckpointError(f"{name!r} is not the name of a file in {folder}")
    try:
        return os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointNotFound(f"{folder / name} cannot be opened: {error.strerror}") from error
