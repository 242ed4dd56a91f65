"""Copies pages of experts from other owners: what a page owner calls to fill a page that a peer has.

Several threads may fetch at once; between this fetcher and one source at most one page is on its way at a time.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import zmq

from flexpert_workers.errors import TransferCancelled
from flexpert_workers.transfer.bucket import TokenBucket
from flexpert_workers.transfer.channel import ChannelTransport
from flexpert_workers.transfer.contract import ExpertKey, FetchLimits, Identity, PageMemory, Received
from flexpert_workers.transfer.fetch import Fetch
from flexpert_workers.transfer.link import Link
from flexpert_workers.transfer.places import place_of

_LIMITS = FetchLimits()
_BEAT_S = 0.1


class PageFetcher:
    """Fetches pages.

    Args:
        identity: Sources of another pool or checkpoint are refused, by themselves.
        bucket: The rate at which this owner takes bytes in; None for as fast as they come.
        channels: Of this owner's device; None for all bytes to go over the host.
        context: ZeroMQ context; a shared one when None.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        identity: Identity,
        bucket: TokenBucket | None = None,
        *,
        channels: ChannelTransport | None = None,
        limits: FetchLimits = _LIMITS,
        context: "zmq.Context[Any] | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identity = identity
        self._bucket = bucket or TokenBucket(None)
        self._channels = channels
        self._limits = limits
        self._context: zmq.Context[Any] = context or zmq.Context.instance()
        self._clock = clock
        self._links: dict[str, Link] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def fetch(
        self,
        endpoint: str,
        key: ExpertKey,
        into: PageMemory,
        *,
        received: Received | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> int:
        """Copy a page into `into`, verify it and return its checksum (`page_checksum` of its bytes).

        A connection that breaks, or a source that hangs or is restarted, is tried again until no chunk has arrived for
        `limits.patience_s`; chunks that arrived intact are not asked for again.

        Args:
            endpoint: Of the peer's page server.
            key: The expert.
            into: Of the page's size in bytes; host memory must be writable and contiguous. What is in it after an
                error must not be used, except to go on with `received`.
            received: What an earlier fetch into the same bytes brought (`TransferError.received`).
            cancelled: Asked several times a second; when true the fetch ends.

        Raises:
            SourceLost, PageNotHeld, IdentityMismatch, CorruptPage, TransferCancelled: See `TransferError`.
            ValueError: `received` is of another size than `into`.
        """
        link = self._link(endpoint)

        def unwanted() -> bool:
            return self._closed.is_set() or cancelled()

        while not link.lock.acquire(timeout=_BEAT_S):  # whoever has it gives up after `patience_s` without progress
            if unwanted():
                raise TransferCancelled(f"the copy of expert {key} was cancelled", received)
        try:
            fetch = Fetch(
                link, self._identity, key, place_of(into), self._bucket, self._channels, self._limits, self._clock
            )
            return fetch.run(received, unwanted)
        finally:
            link.lock.release()

    def close(self) -> None:
        """End fetches under way (with `TransferCancelled`) and close all connections."""
        self._closed.set()
        with self._lock:
            links = list(self._links.values())
            self._links.clear()
        for link in links:
            with link.lock:
                link.reset()

    def _link(self, endpoint: str) -> Link:
        with self._lock:
            if self._closed.is_set():
                raise TransferCancelled("this fetcher is closed")
            return self._links.setdefault(endpoint, Link(endpoint, self._context, self._limits.chunk_bytes))
