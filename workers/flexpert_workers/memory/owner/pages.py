"""The pages of one memory domain: who borrows them, what they take of a budget, and how they come to be.

The heart of a page owner, without sockets: `server` calls it for workers in other processes, `local` for a worker in
this one. Every public method may be called from any thread.

The life of an entry: `acquire` makes it and a reader thread fills its page (from a peer, else from the file), verifies
and seals it; it is lent to whoever wants it; released by all it is idle, and stays while there is room. An entry that
everybody released before it was filled is forgotten at once, and its page at the next chunk.
"""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Set
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from flexpert_workers import threads
from flexpert_workers.errors import CapacityError, PageError
from flexpert_workers.memory.backend import ExpertKey, NewPage, Page, PageBackend, page_checksum
from flexpert_workers.memory.loans import Loan, Origin, Want
from flexpert_workers.memory.owner.filling import Filled, PageFiller
from flexpert_workers.transfer.contract import PageMemory

_BEAT_S = 0.1
_SIGN_OF_LIFE_S = 2.0


@dataclass(eq=False)
class _Entry:
    """One expert's page, there or being made. Borrowers may be waiting for it as well as hold it."""

    key: ExpertKey
    ready: "Future[Filled]"
    borrowers: set[str]
    given_up: threading.Event = field(default_factory=threading.Event)

    @property
    def filled(self) -> Filled | None:
        """The page once it is there."""
        if not self.ready.done() or self.ready.cancelled() or self.ready.exception() is not None:
            return None
        return self.ready.result()


@dataclass(frozen=True)
class OwnerStatus:
    """What an owner has: experts, bytes in use of its budget, pages lent, pages idle."""

    experts: tuple[ExpertKey, ...]
    used_bytes: int
    budget_bytes: int
    lent: int
    idle: int


class PageOwner:
    """Owns the pages of one domain.

    Args:
        page_bytes: Of every page, without padding.
        budget_bytes: All pages together take no more, padding included.
        filler: Fills them.
        readers: Pages that are filled at once.
        ahead: Empty pages made ahead of need, while there is room.
    """

    def __init__(
        self,
        backend: PageBackend,
        page_bytes: int,
        budget_bytes: int,
        filler: PageFiller,
        readers: int = 2,
        ahead: int = 4,
    ) -> None:
        self.page_bytes = page_bytes
        self._backend = backend
        self._footprint = backend.footprint(page_bytes)
        self._budget_bytes = budget_bytes
        self._filler = filler
        self._ahead = ahead
        self._lock = threading.RLock()
        self._entries: dict[ExpertKey, _Entry] = {}
        self._abandoned: set[_Entry] = set()  # not wanted any more while their pages were being filled
        self._idle: dict[ExpertKey, None] = {}  # the one idle for longest first
        self._strays: set[tuple[str, ExpertKey]] = set()
        self._stock: list[NewPage] = []
        self._promised = 0  # entries whose filling has not begun
        self._making = 0  # pages being made ahead of need
        self._num_waiting = 0
        self._made = threading.Condition(self._lock)
        self._closed = False
        self._readers = ThreadPoolExecutor(readers, "page-reader", threads.yield_to_serving)
        self._readers.submit(self._restock)

    # ------------------------------------------------------------------ lending

    def acquire(
        self,
        borrower: str,
        wants: Sequence[Want],
        at_once: int = 250,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Generator[list[Loan], None, None]:
        """Lend pages, see `PageLender.acquire`; the pages of the loans stay the owner's own.

        While none becomes ready an empty list is yielded now and then, as a sign of life.

        Args:
            borrower: Whose leases these are; a name that is never used again.
            wants: What is wanted.
            at_once: Yield no more loans together; what is ready together is yielded together.
            wanted: Asked several times a second while nothing is ready; when false the rest is not brought.
        """
        ready: queue.SimpleQueue[tuple[_Entry, bool]] = queue.SimpleQueue()
        pending: set[ExpertKey] = set()
        told_at = time.monotonic()
        try:
            for found in self._begin(borrower, wants):
                pending.add(found[0].key)
                found[0].ready.add_done_callback(lambda _, found=found: ready.put(found))  # type: ignore[misc]
            while pending:
                found_ready = list(_take(ready, at_once))
                if not wanted():
                    return
                loans = [_loan(*found) for found in found_ready]
                pending.difference_update(loan.key for loan in loans)
                if loans or time.monotonic() - told_at > _SIGN_OF_LIFE_S:
                    yield loans
                    told_at = time.monotonic()
        finally:
            self.release(borrower, pending)

    def release(self, borrower: str, keys: Iterable[ExpertKey]) -> None:
        """End leases of a borrower; what nobody waits for any more is not brought."""
        with self._lock:
            for key in keys:
                self._strays.discard((borrower, key))
                entry = self._entries.get(key)
                if entry is None or borrower not in entry.borrowers:
                    continue
                entry.borrowers.remove(borrower)
                if not entry.borrowers:
                    self._leave(entry)

    def end(self, borrower: str) -> None:
        """End all leases of a borrower that is gone."""
        with self._lock:
            lent = [key for key, entry in self._entries.items() if borrower in entry.borrowers]
            self.release(borrower, [*lent, *(key for name, key in self._strays if name == borrower)])

    def adopt(self, borrower: str, key: ExpertKey, descriptor: int, checksum: int) -> bool:
        """Take a page over that a borrower of an earlier owner still maps; the descriptor is closed or kept.

        Returns:
            Whether the page is this owner's now. When it has the expert in other memory already the borrower keeps
            its own, which counts against the budget until it is released.

        Raises:
            PageError: It is no sealed page, or its bytes are not those that were verified.
        """
        page = self._backend.adopt(descriptor, self.page_bytes)
        with self._lock:
            known = self._known(borrower, key, page)
        if known is not None:
            page.close()
            return known
        if page_checksum(page.view()) != checksum:
            page.close()
            raise PageError(f"the page of expert {key} that {borrower} hands back is damaged")
        with self._lock:
            known = self._known(borrower, key, page)
            if known is not None:
                page.close()
                return known
            entry = self._entries[key] = _Entry(key, Future(), {borrower})
            entry.ready.set_result(Filled(page, checksum, Origin.ATTACHED, 0.0, 0.0))
            return True

    # ------------------------------------------------------------------ what others ask

    def read(self, key: ExpertKey) -> PageMemory | None:
        """The bytes of an expert, for as long as they are referred to; None when they are not here."""
        with self._lock:
            entry = self._entries.get(key)
            filled = None if entry is None else entry.filled
            return None if filled is None else filled.page.memory()

    def checksum(self, key: ExpertKey) -> int | None:
        """The checksum under which an expert's page was sealed; None when it is not here."""
        with self._lock:
            entry = self._entries.get(key)
            filled = None if entry is None else entry.filled
            return None if filled is None else filled.checksum

    def drop_idle(self) -> int:
        """Drop every page that nobody borrows; returns the bytes freed."""
        with self._lock:
            before = self._used_bytes()
            for key in list(self._idle):
                self._drop(key)
            while self._stock:
                self._stock.pop().close()
            return before - self._used_bytes()

    def status(self) -> OwnerStatus:
        """What the owner has."""
        with self._lock:
            lent = sum(bool(entry.borrowers) for entry in self._entries.values())
            return OwnerStatus(
                tuple(sorted(self._entries)), self._used_bytes(), self._budget_bytes, lent, idle=len(self._idle)
            )

    def close(self) -> None:
        """Let go of every page; those that are mapped live on with their borrowers."""
        with self._lock:
            self._closed = True
        self._readers.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for entry in self._entries.values():
                if entry.filled is not None:
                    entry.filled.page.close()
            self._entries.clear()
            self._idle.clear()
            while self._stock:
                self._stock.pop().close()

    # ------------------------------------------------------------------ the budget

    def _begin(self, borrower: str, wants: Sequence[Want]) -> list[tuple[_Entry, bool]]:
        """Enter `borrower` for every expert wanted: (entry, whether it is made for this), all of them or none."""
        wanted = {want.key: want for want in wants}
        with self._lock:
            if self._closed:
                raise ConnectionError("this page owner has ended")
            self._wait_for_makers(len(wanted))
            missing = [want for key, want in wanted.items() if key not in self._entries]
            self._make_room(len(missing), keep=wanted.keys())
            known = [self._entries[key] for key in wanted if key in self._entries]
            for entry in known:
                entry.borrowers.add(borrower)
                self._idle.pop(entry.key, None)
            new = [self._begin_one(borrower, want) for want in missing]
            return [*((entry, False) for entry in known), *((entry, True) for entry in new)]

    def _begin_one(self, borrower: str, want: Want) -> _Entry:
        self._promised += 1
        given_up = threading.Event()
        entry = _Entry(want.key, self._readers.submit(self._bring, want, given_up), {borrower}, given_up)
        self._entries[want.key] = entry
        entry.ready.add_done_callback(lambda _: self._settle(entry))
        return entry

    def _wait_for_makers(self, num_pages: int) -> None:
        """A page that is being made, or given up, counts, but can be used or dropped only once it is made or gone."""
        self._num_waiting += 1
        self._made.wait_for(lambda: not (self._making or self._abandoned) or not self._lacking(num_pages))
        self._num_waiting -= 1

    def _make_room(self, num_pages: int, keep: Set[ExpertKey]) -> None:
        """Drop empty pages and then idle ones, as few as possible, so that `num_pages` more fit; all or nothing."""
        idle = [key for key in self._idle if key not in keep]
        useless = min(len(self._stock), max(0, len(self._stock) + self._making - self._promised - num_pages))
        if self._lacking(num_pages) > useless + len(idle):
            raise CapacityError(
                f"{num_pages} experts of {self._footprint} bytes do not fit: the page owner uses {self._used_bytes()} "
                f"of its {self._budget_bytes} bytes and can free {(useless + len(idle)) * self._footprint}"
            )
        for _ in range(min(useless, self._lacking(num_pages))):
            self._stock.pop().close()
        for key in idle[: self._lacking(num_pages)]:
            self._drop(key)

    def _lacking(self, more: int) -> int:
        """Pages that must go before `more` can be promised."""
        return max(0, self._num_pages(more) - self._budget_bytes // self._footprint)

    def _num_pages(self, more: int = 0, more_ahead: int = 0) -> int:
        """Pages that are there or promised, with so many more promised, or made ahead of need.

        What is promised is filled into pages that were made ahead of need, as far as there are any.
        """
        ahead = len(self._stock) + self._making + more_ahead
        there = len(self._entries) + len(self._abandoned) + len(self._strays)
        return there - self._promised + max(self._promised + more, ahead)

    def _used_bytes(self) -> int:
        return self._num_pages() * self._footprint

    def _drop(self, key: ExpertKey) -> None:
        del self._idle[key]
        self._entries.pop(key).ready.result().page.close()

    def _known(self, borrower: str, key: ExpertKey, page: Page) -> bool | None:
        """Enter a borrower for an expert that is here: whether its page is ours; None when the expert is not here."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.filled is not None and entry.filled.page.identity() == page.identity():
            entry.borrowers.add(borrower)
            self._idle.pop(key, None)
            return True
        self._strays.add((borrower, key))
        return False

    # ------------------------------------------------------------------ the readers

    def _bring(self, want: Want, given_up: threading.Event) -> Filled:
        return self._filler.fill(
            self._empty_page(), want.key, want.peers, unwanted=lambda: given_up.is_set() or self._closed
        )

    def _leave(self, entry: _Entry) -> None:
        """Nobody wants an entry: what is there is idle, what is being filled is given up."""
        if entry.filled is not None:
            self._idle[entry.key] = None
        elif not entry.ready.cancel():
            entry.given_up.set()
            del self._entries[entry.key]
            self._abandoned.add(entry)

    def _empty_page(self) -> NewPage:
        """A page for what was promised: one made ahead of need, or else a new one."""
        with self._lock:
            self._made.wait_for(lambda: self._stock or self._making < self._promised)
            self._promised -= 1
            if self._stock:
                return self._stock.pop()
        return self._backend.create(self.page_bytes)

    def _settle(self, entry: _Entry) -> None:
        """An entry's page is there; or it failed or is not wanted any more, and is forgotten."""
        with self._lock:
            self._abandoned.discard(entry)
            if entry.filled is None:
                if self._entries.get(entry.key) is entry:
                    del self._entries[entry.key]
                self._promised -= entry.ready.cancelled()
            elif self._entries.setdefault(entry.key, entry) is not entry:
                entry.filled.page.close()  # it was given up too late, and is wanted again
            elif not entry.borrowers:
                self._idle[entry.key] = None
            self._made.notify_all()
            if not self._closed:
                self._readers.submit(self._restock)

    def _restock(self) -> None:
        """Make empty pages ahead of need, while nothing has to make way for them."""
        while self._may_make_one():
            made: list[NewPage] = []
            try:
                made.append(self._backend.create(self.page_bytes))
            except CapacityError:
                return  # there is none to spare; whoever needs one is told
            finally:
                with self._lock:
                    self._making -= 1
                    self._stock += made
                    self._made.notify_all()

    def _may_make_one(self) -> bool:
        with self._lock:
            enough = len(self._stock) + self._making >= self._ahead
            fits = self._num_pages(more_ahead=1) <= self._budget_bytes // self._footprint
            if self._closed or self._num_waiting or enough or not fits:
                return False
            self._making += 1
            return True


def _take(ready: "queue.SimpleQueue[tuple[_Entry, bool]]", at_most: int) -> Iterator[tuple[_Entry, bool]]:
    """Wait a little for one, then take what else is there."""
    try:
        yield ready.get(timeout=_BEAT_S)
    except queue.Empty:
        return
    for _ in range(at_most - 1):
        try:
            yield ready.get_nowait()
        except queue.Empty:
            return


def _loan(entry: _Entry, is_new: bool) -> Loan:
    """The loan of a page that is there; what went wrong with it is raised."""
    try:
        filled = entry.ready.result()
    except CancelledError:
        raise ConnectionError("this page owner has ended") from None
    if not is_new:
        return Loan(entry.key, filled.page, filled.checksum, Origin.ATTACHED)
    return Loan(entry.key, filled.page, filled.checksum, filled.origin, filled.copy_s, filled.verify_s)
