"""One memory domain: its pages, and the copies that it makes from other domains and gives to them.

An owner process has one (`reception` makes it), and so has a worker without an owner process (`local`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq

from flexpert_workers.memory.devices import Device
from flexpert_workers.memory.owner.filling import FillFromFile, PageFiller
from flexpert_workers.memory.owner.pages import PageOwner
from flexpert_workers.transfer import FetchLimits, Identity, PageFetcher, PageServer, TokenBucket

_FETCH_LIMITS = FetchLimits(silence_s=2.0, patience_s=4.0)
"""A peer that is gone costs little: the file is always there."""
_BURST_BYTES = 4 << 20


@dataclass(frozen=True)
class DomainLimits:
    """What a domain may take.

    Attributes:
        budget_bytes: All pages together.
        readers: Pages that are filled at once.
        ahead: Empty pages made ahead of need.
        copy_bytes_per_s: Rate of what comes in, from other domains and the file, and of copies out, each; None for as
            fast as they go.
    """

    budget_bytes: int
    readers: int = 2
    ahead: int = 4
    copy_bytes_per_s: int | None = None


class PageDomain:
    """A page owner, its server for other owners and its fetcher from them.

    Args:
        device: In whose memory the pages are.
        fill: Fills a page from the checkpoint.
        bind_host: Address on which other owners may copy pages.
        socket_dir: Folder for UNIX sockets on a loopback `bind_host`; empty for TCP.
        busy: How busy serving is here, from 0 to 1: copies and fills make way for it.
        context: ZeroMQ context; a shared one when None.
    """

    def __init__(
        self,
        identity: Identity,
        page_bytes: int,
        limits: DomainLimits,
        device: Device,
        fill: FillFromFile,
        bind_host: str,
        socket_dir: str,
        busy: Callable[[], float],
        context: "zmq.Context[Any] | None" = None,
    ) -> None:
        rate = limits.copy_bytes_per_s
        incoming = _bucket(rate, busy)
        self._fetcher = PageFetcher(identity, incoming, channels=device.channels, limits=_FETCH_LIMITS, context=context)
        filler = PageFiller(fill, self._fetcher.fetch, incoming)
        self.owner = PageOwner(device.backend, page_bytes, limits.budget_bytes, filler, limits.readers, limits.ahead)
        self._server = PageServer(
            self.owner.read,
            identity,
            bind_host,
            socket_dir,
            _bucket(rate, busy),
            channels=device.channels,
            checksum_of=self.owner.checksum,
            context=context,
        )
        self._server.start()

    @property
    def transfer_endpoint(self) -> str:
        """Where other owners copy pages from."""
        return self._server.endpoint

    def close(self) -> None:
        """Stop giving and taking, and let go of every page."""
        self._server.stop()
        self._fetcher.close()
        self.owner.close()


def _bucket(rate: int | None, busy: Callable[[], float]) -> TokenBucket:
    """A bucket that holds a second's worth, a few MiB at most."""
    return TokenBucket(rate, min(_BURST_BYTES, rate or _BURST_BYTES), busy)
