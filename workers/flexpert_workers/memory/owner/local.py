"""A page owner inside the worker that borrows from it: for a worker that is started without an owner process."""

import os
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace

from flexpert_workers.memory.backend import ExpertKey, Page, PageBackend
from flexpert_workers.memory.loans import Loan, Want
from flexpert_workers.memory.owner.domain import PageDomain


class LocalLender:
    """The one borrower of an owner in the same process; see `PageLender`.

    Args:
        domain: Is closed with this lender.
        borrower: The worker.
    """

    def __init__(self, domain: PageDomain, backend: PageBackend, borrower: str) -> None:
        self._domain = domain
        self._owner = domain.owner
        self._backend = backend
        self._borrower = borrower
        self._held: dict[ExpertKey, Page] = {}
        self._lock = threading.Lock()

    @property
    def domain(self) -> str:
        """See `PageLender`: none, since nobody else can attach."""
        return ""

    @property
    def transfer_endpoint(self) -> str:
        """See `PageLender`."""
        return self._domain.transfer_endpoint

    def acquire(
        self, wants: Sequence[Want], cancelled: Callable[[], bool] = lambda: False
    ) -> Generator[Loan, None, None]:
        """See `PageLender`."""
        for loans in self._owner.acquire(self._borrower, wants, at_once=1, wanted=lambda: not cancelled()):
            for loan in loans:
                page = self._backend.adopt(os.dup(loan.page.descriptor()), loan.page.nbytes)
                with self._lock:
                    self._held[loan.key] = page
                yield replace(loan, page=page)

    def release(self, keys: Iterable[ExpertKey]) -> None:
        """See `PageLender`."""
        released = list(keys)
        with self._lock:
            for page in [self._held.pop(key) for key in released if key in self._held]:
                page.close()
        self._owner.release(self._borrower, released)

    def close(self) -> None:
        """See `PageLender`; the owner ends too."""
        self.release(list(self._held))
        self._domain.close()
