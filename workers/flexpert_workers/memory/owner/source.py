"""Where a page owner gets expert bytes from: the checkpoint, opened when the first of them is asked for."""

import threading
from collections.abc import Callable

from flexpert_workers.checkpoint import Checkpoint, open_checkpoint
from flexpert_workers.errors import CheckpointError
from flexpert_workers.memory.backend import ExpertKey


class PageSource:
    """Fills pages of one checkpoint; safe for several threads.

    The borrowers have opened the checkpoint before, so its description is remembered and nothing of it is found out
    again; torch is imported only where weights are cast or dequantised.

    Args:
        source: The checkpoint, e.g. "file:///models/tiny-moe".
        dtype: What it is served in.
        digest: Which checkpoint that must be.
    """

    def __init__(self, source: str, dtype: str, digest: str) -> None:
        self._source = source
        self._dtype = dtype
        self._digest = digest
        self._lock = threading.Lock()
        self._checkpoint: Checkpoint | None = None

    def fill(self, key: ExpertKey, page: memoryview, pace: Callable[[int], None]) -> None:
        """Fill a page with an expert from the file; `pace` is called with a number of bytes before they are read.

        Raises:
            CheckpointError: The checkpoint cannot be read, or is another one by now.
        """
        with self._lock:
            checkpoint = self._checkpoint = self._checkpoint or self._open()
        checkpoint.fill_page(*key, page, pace)

    def _open(self) -> Checkpoint:
        checkpoint = open_checkpoint(self._source, self._dtype)
        if checkpoint.digest != self._digest:
            raise CheckpointError(f"{self._source} is checkpoint {checkpoint.digest} now, not {self._digest}")
        return checkpoint
