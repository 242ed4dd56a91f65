"""Fills one page: from the first peer that gives the expert intact, else from the file; then verifies and seals it.

The reader threads of `pages.PageOwner` call `PageFiller.fill`, several at once. A page that nobody wants any more is
given up at the next chunk.
"""

import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from flexpert_workers.errors import CheckpointError, FlexpertError, TransferCancelled, TransferError
from flexpert_workers.memory.backend import ExpertKey, NewPage, Page
from flexpert_workers.memory.loans import Origin
from flexpert_workers.transfer import Received, TokenBucket
from flexpert_workers.transfer.contract import PageMemory

_log = logging.getLogger(__name__)

_BEAT_S = 0.1

FillFromFile = Callable[[ExpertKey, memoryview, Callable[[int], None]], None]
"""(expert, page, pace): fills the page from the checkpoint; raises CheckpointError, and what `pace` raises, which is
called with a number of bytes before they are read."""


class FetchFromPeer(Protocol):
    """How a page is copied from another owner: `PageFetcher.fetch`."""

    def __call__(
        self,
        endpoint: str,
        key: ExpertKey,
        into: PageMemory,
        *,
        received: Received | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> int:
        """Copy a page and return the checksum that it has at its source; go on from what was `received` before.

        Raises:
            TransferError: It could not be copied, or not as it was, or was `cancelled`.
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
    """Fills pages of one checkpoint.

    Args:
        from_file: Reads the checkpoint.
        from_peer: Copies from another owner, at a rate of its own.
        bucket: The rate at which the file is read; None for as fast as it goes.
    """

    def __init__(self, from_file: FillFromFile, from_peer: FetchFromPeer, bucket: TokenBucket | None = None) -> None:
        self._from_file = from_file
        self._from_peer = from_peer
        self._bucket = bucket or TokenBucket(None)

    def fill(
        self,
        page: NewPage,
        key: ExpertKey,
        peers: tuple[str, ...],
        unwanted: Callable[[], bool] = lambda: False,
    ) -> Filled:
        """Fill an empty page and seal it; a page that cannot be filled is thrown away.

        Args:
            page: To be filled.
            key: The expert.
            peers: Endpoints of owners to ask before the file is read, in order.
            unwanted: Asked at every chunk; when true the page is given up.

        Raises:
            CheckpointError: No peer gave the expert and the file cannot be read.
            TransferCancelled: It was not wanted any more.
        """
        try:
            return self._from_any(page, key, peers, unwanted)
        except BaseException as error:
            _let_go(error)
            page.close()
            raise

    def _from_any(self, page: NewPage, key: ExpertKey, peers: tuple[str, ...], unwanted: Callable[[], bool]) -> Filled:
        started = time.perf_counter()
        refusals: list[str] = []
        promised = self._copy_from(peers, key, page, unwanted, refusals)
        if promised is not None:
            copied, checksum = time.perf_counter(), page.checksum()
            if checksum == promised:
                return _sealed(page, checksum, Origin.PEER, started, copied)
            refusals.append("what a peer gave is damaged")
            _log.warning("expert %s was copied and is damaged; it is read from the file", key)
        try:
            copied, checksum = self._read(page, key, unwanted)
        except CheckpointError as unreadable:
            if not refusals:
                raise
            raise CheckpointError(f"{unreadable}; and from no peer: {'; '.join(refusals)}") from unreadable
        return _sealed(page, checksum, Origin.FILE, started, copied)

    def _read(self, page: NewPage, key: ExpertKey, unwanted: Callable[[], bool]) -> tuple[float, int]:
        """Read a page from the file: (when it had been read, its checksum)."""
        read_at = 0.0

        pace = _Pace(self._bucket, key, unwanted)

        def write(target: memoryview) -> None:
            nonlocal read_at
            self._from_file(key, target, pace)
            read_at = time.perf_counter()

        checksum = page.fill(write)
        pace.end()
        return read_at, checksum

    def _copy_from(
        self,
        peers: tuple[str, ...],
        key: ExpertKey,
        page: NewPage,
        unwanted: Callable[[], bool],
        refusals: list[str],
    ) -> int | None:
        """Copy from the first peer that can, each going on from what the one before brought; None when none can.

        Why a peer cannot is added to `refusals`.
        """
        received: Received | None = None
        for endpoint in peers:
            try:
                return self._from_peer(endpoint, key, page.memory(), received=received, cancelled=unwanted)
            except TransferCancelled:
                raise
            except TransferError as failed:
                received = failed.received
                refusals.append(str(failed))
            except (FlexpertError, OSError, ValueError) as failed:
                _log.warning("expert %s is not copied from %s: %s", key, endpoint, str(failed))  # it refers to the page
                refusals.append(str(failed))
        return None


class _Pace:
    """Makes the reading of one page wait for its bucket, which is told how long the reading took."""

    def __init__(self, bucket: TokenBucket, key: ExpertKey, unwanted: Callable[[], bool]) -> None:
        self._bucket = bucket
        self._key = key
        self._unwanted = unwanted
        self._began: float | None = None

    def __call__(self, num_bytes: int) -> None:
        """Wait until so many bytes may be read."""
        self.end()
        while not self._unwanted():
            wait_s = self._bucket.take(num_bytes)
            if not wait_s:
                self._began = time.perf_counter()
                return
            time.sleep(min(wait_s, _BEAT_S))
        raise TransferCancelled(f"the page of expert {self._key} is not wanted any more")

    def end(self) -> None:
        """What was last let through has been read."""
        if self._began is not None:
            self._bucket.worked(time.perf_counter() - self._began)
            self._began = None


def _let_go(error: BaseException) -> None:
    """Clear the frames that an error came through: they refer to the page, whose memory is to be free at once."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__context__


def _sealed(page: NewPage, checksum: int, origin: Origin, started: float, copied: float) -> Filled:
    verified = time.perf_counter()
    return Filled(page.seal(), checksum, origin, copy_s=copied - started, verify_s=verified - copied)
