"""One memory domain: makes the `PageOwner` once the first borrower has said which pages it is about.

An owner process is up before it knows anything of the checkpoint: what its pages are made of it is told by a borrower,
who has opened the checkpoint anyway, or finds out when a file must be read.
"""

import threading
from collections.abc import Callable

from flexpert_workers.errors import CheckpointError
from flexpert_workers.memory.backend import PageBackend
from flexpert_workers.memory.limits import allow_descriptors
from flexpert_workers.memory.owner.config import OwnerConfig
from flexpert_workers.memory.owner.filling import FetchFromPeer, PageFiller
from flexpert_workers.memory.owner.pages import PageOwner
from flexpert_workers.memory.source import PageSource
from flexpert_workers.messages import owner as messages


class Domain:
    """The state of an owner process.

    Args:
        make_fetch: (pool, digest) → how pages are copied from other owners.
    """

    def __init__(
        self, config: OwnerConfig, backend: PageBackend, make_fetch: Callable[[str, str], FetchFromPeer]
    ) -> None:
        self._config = config
        self._backend = backend
        self._make_fetch = make_fetch
        self._lock = threading.Lock()
        self._identity: tuple[str, int] | None = None
        self._owner: PageOwner | None = None
        self.source = PageSource(config.source, config.dtype)
        self.transfer_endpoint = ""

    def welcome(self, hello: messages.Hello) -> PageOwner:
        """The owner of the pages that a borrower is about.

        Raises:
            CheckpointError: They are of another pool or checkpoint than those of the first borrower.
            CapacityError: This process may not have as many open files as the budget has pages.
        """
        with self._lock:
            if hello.pool != self._config.pool:
                raise CheckpointError(f"this page owner serves pool {self._config.pool}, not {hello.pool}")
            if self._owner is None:
                self._owner = self._make_owner(hello)
                self._identity = (hello.digest, hello.page_bytes)
            if self._identity != (hello.digest, hello.page_bytes):
                raise CheckpointError(
                    f"this page owner has pages of checkpoint {self._identity}, not {(hello.digest, hello.page_bytes)}"
                )
            return self._owner

    def close(self) -> None:
        """Let go of every page."""
        with self._lock:
            if self._owner is not None:
                self._owner.close()
            self.source.close()

    def _make_owner(self, hello: messages.Hello) -> PageOwner:
        padded = self._backend.footprint(hello.page_bytes)
        allow_descriptors(min(hello.num_pages, self._config.budget_bytes // padded))
        self.source.expect(hello.digest)
        filler = PageFiller(self.source.fill, self._make_fetch(hello.pool, hello.digest))
        return PageOwner(
            self._backend,
            hello.page_bytes,
            self._config.budget_bytes,
            filler,
            readers=self._config.readers,
            ahead=self._config.ahead,
        )
