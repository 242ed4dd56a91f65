"""What a worker asks of a page owner and gets: the values, and the protocol that both kinds of owner offer.

A worker is given a `PageLender`: an owner of its own (`owner.local`), or a connection to one that serves several
(`client`).
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from flexpert_workers.memory.backend import ExpertKey, Page


class Origin(StrEnum):
    """Where the bytes of a loan came from."""

    ATTACHED = "attached"
    """The owner had them: nothing was copied."""
    PEER = "peer"
    FILE = "file"


@dataclass(frozen=True)
class Want:
    """An expert that is wanted, and the peers that may be asked for it, in order, before the file is read."""

    key: ExpertKey
    peers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loan:
    """A page that was lent; it is closed when the expert is released.

    Attributes:
        checksum: `page_checksum` of the page, to be told to a new owner.
        copy_s: Seconds that copying took; 0 when the owner had it.
        verify_s: Seconds that verifying took; likewise.
    """

    key: ExpertKey
    page: Page
    checksum: int
    origin: Origin
    copy_s: float = 0.0
    verify_s: float = 0.0


class PageLender(Protocol):
    """A page owner as one borrower sees it. The lease of every page lasts until it is released, or the borrower dies.

    Attributes:
        domain: The owner's id: experts of one domain are attached, not copied.
        transfer_endpoint: Where other owners copy pages from; empty when they cannot.
    """

    @property
    def domain(self) -> str:
        """See above."""

    @property
    def transfer_endpoint(self) -> str:
        """See above."""

    def acquire(
        self, wants: Sequence[Want], cancelled: Callable[[], bool] = lambda: False
    ) -> Generator[Loan, None, None]:
        """Borrow pages; they come as they get ready, and those that the owner has at once come first.

        Whoever stops early gets no more; what is not wanted by anybody else is not brought. `cancelled` is asked
        several times a second while pages are waited for: when true they are given up where they stand.

        Raises:
            CapacityError: They do not fit in the owner's budget; nothing was lent.
            CheckpointError: The file cannot be read.
            ConnectionError: The owner is gone.
        """

    def release(self, keys: Iterable[ExpertKey]) -> None:
        """Close pages that are not mapped any more and end their leases; returns at once."""

    def close(self) -> None:
        """End every lease."""
