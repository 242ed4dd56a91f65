"""Fills one page: from the first peer that gives the expert intact, else from the file; then verifies and seals it.

The reader threads of `pages.PageOwner` call `PageFiller.fill`, several at once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from flexpert_workers.errors import PageError, TransferError
from flexpert_workers.memory.backend import ExpertKey, NewPage, Page
from flexpert_workers.memory.loans import Origin
from flexpert_workers.transfer import Received

FillFromFile = Callable[[ExpertKey, memoryview], None]
"""(expert, page): fills the page from the checkpoint; raises CheckpointError."""


class FetchFromPeer(Protocol):
    """`PageFetcher.fetch`: copies a page from a peer and returns its checksum, or raises TransferError."""

    def __call__(self, endpoint: str, key: ExpertKey, into: memoryview, *, received: Received | None = None) -> int:
        """`received` is what an earlier peer gave of the page."""


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
        left = list(peers)
        while left:
            try:
                return _fill(page, lambda target: self._bring(key, left, target))
            except PageError:
                continue  # a peer's bytes; those of the file promise nothing that they could break
        return _fill(page, lambda target: self._bring(key, left, target))

    def _bring(self, key: ExpertKey, left: list[str], target: memoryview) -> tuple[Origin, int | None]:
        """Write the page from the first of `left` that gives it, going on from what those before gave of it.

        Returns:
            Where it came from, and the checksum that was promised, if any.
        """
        received: Received | None = None
        while left:
            try:
                return Origin.PEER, self._from_peer(left.pop(0), key, target, received=received)
            except TransferError as error:
                received = error.received or received
        self._from_file(key, target)
        return Origin.FILE, None


def _fill(page: NewPage, copy: Callable[[memoryview], tuple[Origin, int | None]]) -> Filled:
    """Have `copy` write the page, compare with what it promised, and seal."""
    origin, promised = Origin.FILE, None
    started = copied = time.perf_counter()

    def write(target: memoryview) -> None:
        nonlocal origin, promised, copied
        origin, promised = copy(target)
        copied = time.perf_counter()

    checksum = page.fill(write)
    if promised is not None and checksum != promised:
        raise PageError(f"a page has checksum {checksum:016x}, its source promised {promised:016x}")
    verified = time.perf_counter()
    return Filled(page.seal(), checksum, origin, copy_s=copied - started, verify_s=verified - copied)
