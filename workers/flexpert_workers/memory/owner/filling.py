"""Fills one page: from the first peer that gives the expert intact, else from the file; then verifies and seals it.

The reader threads of `pages.PageOwner` call `PageFiller.fill`, several at once.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from flexpert_workers.errors import FlexpertError, PageError, TransferError
from flexpert_workers.memory.backend import ExpertKey, NewPage, Page
from flexpert_workers.memory.loans import Origin
from flexpert_workers.transfer import Received

_log = logging.getLogger(__name__)

FillFromFile = Callable[[ExpertKey, memoryview], None]
"""(expert, page): fills the page from the checkpoint; raises CheckpointError."""


class FetchFromPeer(Protocol):
    """How a page is copied from another owner: `PageFetcher.fetch`."""

    def __call__(self, endpoint: str, key: ExpertKey, into: memoryview, *, received: Received | None = None) -> int:
        """Copy a page and return the checksum that it has at its source; go on from what was `received` before.

        Raises:
            TransferError: It could not be copied, or not as it was.
        """


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
        try:
            return self._fill(page, key, peers)
        except PageError:
            return self._fill(page, key, ())

    def _fill(self, page: NewPage, key: ExpertKey, peers: tuple[str, ...]) -> Filled:
        """Fill a page and seal it, if its bytes are those that their source promised."""
        origin, promised = Origin.FILE, None
        started = copied = time.perf_counter()

        def write(target: memoryview) -> None:
            nonlocal origin, promised, copied
            promised = self._copy_from(peers, key, target)
            if promised is None:
                self._from_file(key, target)
            else:
                origin = Origin.PEER
            copied = time.perf_counter()

        checksum = page.fill(write)
        if promised not in (None, checksum):
            raise PageError(f"the page of expert {key} has checksum {checksum:016x}, its source promised another")
        verified = time.perf_counter()
        return Filled(page.seal(), checksum, origin, copy_s=copied - started, verify_s=verified - copied)

    def _copy_from(self, peers: tuple[str, ...], key: ExpertKey, target: memoryview) -> int | None:
        """Copy from the first peer that can, each going on from what the one before brought; None when none can."""
        received: Received | None = None
        for endpoint in peers:
            try:
                return self._from_peer(endpoint, key, target, received=received)
            except TransferError as failed:
                received = failed.received
            except (FlexpertError, OSError, ValueError) as failed:
                _log.warning("expert %s is not copied from %s: %s", key, endpoint, str(failed))  # it refers to `target`
        return None
