"""Fills one page: from the first peer that gives the expert intact, else from the file; then verifies and seals it.

The reader threads of `pages.PageOwner` call `PageFiller.fill`, several at once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from flexpert_workers.errors import FlexpertError, PageError
from flexpert_workers.memory.backend import ExpertKey, NewPage, Page
from flexpert_workers.memory.loans import Origin

FillFromFile = Callable[[ExpertKey, memoryview], None]
"""(expert, page): fills the page from the checkpoint; raises CheckpointError."""
FetchFromPeer = Callable[[str, ExpertKey, memoryview], int | None]
"""(endpoint, expert, page) → the page's checksum, as the peer has it, if it says; raises FlexpertError or OSError."""


@dataclass(frozen=True)
class Filled:
    """A page that is there, and what it took; `checksum` is the `page_checksum` of its bytes."""

    page: Page
    checksum: int
    origin: Origin
    copy_s: float
    verify_s: float


class PageFiller:
    """Fills pages of one checkpoint."""

    def __init__(self, from_file: FillFromFile, from_peer: FetchFromPeer) -> None:
        self._from_file = from_file
        self._from_peer = from_peer

    def fill(self, page: NewPage, key: ExpertKey, peers: tuple[str, ...]) -> Filled:
        """Fill an empty page and seal it; a page that cannot be filled is thrown away.

        Raises:
            CheckpointError: No peer gave the expert and the file cannot be read.
        """
        try:
            return self._from_any(page, key, peers)
        except BaseException:
            page.close()
            raise

    def _from_any(self, page: NewPage, key: ExpertKey, peers: tuple[str, ...]) -> Filled:
        for endpoint in peers:
            try:
                return _fill(page, Origin.PEER, lambda target, peer=endpoint: self._from_peer(peer, key, target))  # type: ignore[misc]
            except (FlexpertError, OSError):
                continue
        return _fill(page, Origin.FILE, lambda target: self._from_file(key, target))


def _fill(page: NewPage, origin: Origin, copy: Callable[[memoryview], int | None]) -> Filled:
    """Have `copy` write the page; what it returns, if anything, is the checksum that the page must have."""
    promised: int | None = None
    started = copied = time.perf_counter()

    def write(target: memoryview) -> None:
        nonlocal promised, copied
        promised = copy(target)
        copied = time.perf_counter()

    checksum = page.fill(write)
    if promised is not None and checksum != promised:
        raise PageError(f"a page has checksum {checksum:016x}, its source promised {promised:016x}")
    verified = time.perf_counter()
    return Filled(page.seal(), checksum, origin, copy_s=copied - started, verify_s=verified - copied)
