"""Receives the borrowers of an owner process; the first of them says which pages it is about.

An owner process is up before it knows anything of the checkpoint: what it must know to lend is told by a borrower, who
has opened the checkpoint anyway; it opens the checkpoint itself when a file must be read.
"""

import threading

from flexpert_workers.errors import CheckpointError, PageError
from flexpert_workers.memory.devices import Device
from flexpert_workers.memory.limits import allow_descriptors
from flexpert_workers.memory.owner.config import OwnerConfig
from flexpert_workers.memory.owner.domain import DomainLimits, PageDomain
from flexpert_workers.memory.owner.serving import ServingLoad
from flexpert_workers.memory.owner.source import PageSource
from flexpert_workers.messages.owner import Hello
from flexpert_workers.transfer import Identity


class Reception:
    """Makes the domain of an owner process, once.

    Attributes:
        config: The owner's.
        serving: How busy its borrowers are.
    """

    def __init__(self, config: OwnerConfig, device: Device) -> None:
        self.config = config
        self.serving = ServingLoad()
        self._device = device
        self._lock = threading.Lock()
        self._about: tuple[str, int] | None = None
        self._domain: PageDomain | None = None

    def welcome(self, hello: Hello) -> PageDomain:
        """The domain that a borrower may borrow from.

        Raises:
            CheckpointError: Its pages are of another pool or checkpoint than the borrower's.
            PageError: Its pages are in another memory than the borrower's.
            CapacityError: This process may not have as many open files as the budget has pages.
        """
        memory = self._device.backend.name
        if hello.memory != memory:
            raise PageError(f"this page owner's pages are in {memory}, not in {hello.memory}: give both one device")
        if hello.pool != self.config.pool:
            raise CheckpointError(f"this page owner serves pool {self.config.pool}, not {hello.pool}")
        about = (hello.digest, hello.page_bytes)
        with self._lock:
            if self._domain is None:
                self._domain, self._about = self._make_domain(hello), about
            if self._about != about:
                raise CheckpointError(f"this page owner has pages of checkpoint {self._about}, not {about}")
            return self._domain

    def close(self) -> None:
        """Let go of every page."""
        with self._lock:
            if self._domain is not None:
                self._domain.close()

    def _make_domain(self, hello: Hello) -> PageDomain:
        config = self.config
        footprint = self._device.backend.footprint(hello.page_bytes)
        allow_descriptors(min(hello.num_pages, config.budget_bytes // footprint))
        return PageDomain(
            Identity(hello.pool, hello.digest),
            hello.page_bytes,
            DomainLimits(config.budget_bytes, config.readers, config.ahead, config.copy_bytes_per_s),
            self._device,
            PageSource(config.source, config.dtype, hello.digest).fill,
            config.bind_host,
            config.socket_dir,
            self.serving.busy,
        )
