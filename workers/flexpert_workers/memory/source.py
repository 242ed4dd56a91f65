"""Where a page owner gets expert bytes from: ranges of files that a borrower told it, else the checkpoint itself."""

import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from flexpert_proto import names
from flexpert_workers import threads
from flexpert_workers.errors import CheckpointError, CheckpointNotFound
from flexpert_workers.memory.backend import ExpertKey
from flexpert_workers.memory.ranges import PageRanges, RangeReader


class PageSource:
    """Fills pages of one checkpoint; safe for several threads.

    Args:
        source: The checkpoint, e.g. "file:///models/tiny-moe".
        dtype: What it is served in.
    """

    def __init__(self, source: str, dtype: str) -> None:
        self._source = source
        self._dtype = dtype
        self._lock = threading.Lock()
        self._digest = ""
        self._reader: RangeReader | None = None
        self._open: Callable[[int, int, memoryview], None] | None = None
        self._told = False

    @property
    def needs_ranges(self) -> bool:
        """Whether nobody has said yet what pages are made of."""
        return not self._told

    def expect(self, digest: str) -> None:
        """Fill pages of the checkpoint with this digest, and of no other."""
        self._digest = digest

    def learn(self, encoded: bytes) -> None:
        """Be told the ranges of every page (`PageRanges`), or that pages need more than copying.

        Raises:
            CheckpointError: They are of another checkpoint, or its files are not here.
        """
        try:
            ranges = msgspec.msgpack.decode(encoded, type=PageRanges)
        except msgspec.MsgspecError as error:
            raise CheckpointError(f"these are no ranges of pages: {error}") from error
        if ranges.digest != self._digest:
            raise CheckpointError(f"ranges of checkpoint {ranges.digest} were told, not of {self._digest}")
        with self._lock:
            if ranges.pages and self._reader is None:
                self._reader = RangeReader(self._folder(), ranges)
            self._told = True

    def fill(self, key: ExpertKey, page: memoryview) -> None:
        """Fill a page with an expert from the file.

        Raises:
            CheckpointError: The checkpoint cannot be read, or is another one by now.
        """
        if self._reader is not None:
            self._reader.fill(key, page)
            return
        with self._lock:
            self._open = self._open or self._open_checkpoint()
        self._open(*key, page)

    def close(self) -> None:
        """Close the files."""
        if self._reader is not None:
            self._reader.close()

    def _folder(self) -> Path:
        try:
            return names.model_path(self._source)
        except names.ModelSourceError as error:
            raise CheckpointNotFound(str(error)) from error

    def _open_checkpoint(self) -> Callable[[int, int, memoryview], None]:
        threads.configure(1)
        from flexpert_workers.checkpoint import open_checkpoint

        checkpoint = open_checkpoint(self._source, self._dtype)
        if checkpoint.digest != self._digest:
            raise CheckpointError(f"{self._source} is checkpoint {checkpoint.digest} now, not {self._digest}")
        return checkpoint.fill_page
