"""A page owner without sockets: who borrows what, the budget, what is brought and what is kept."""

import os
import threading

import memory_pages
import pytest
from memory_pages import wants

from flexpert_workers.errors import CapacityError, CorruptCheckpoint, PageError, SourceLost, TransferCancelled
from flexpert_workers.memory.backend import page_checksum
from flexpert_workers.memory.host import HostBackend
from flexpert_workers.memory.loans import Origin, Want
from flexpert_workers.memory.owner.filling import PageFiller
from flexpert_workers.memory.owner.pages import PageOwner
from flexpert_workers.transfer import Received

PADDED = 20_480


@pytest.fixture
def files():
    return memory_pages.Files()


def nobody(endpoint, key, page, **_):
    raise SourceLost(endpoint)


@pytest.fixture
def start(files):
    """Starts owners; `start(pages)` gives one with room for so many."""
    owners = []

    def one(pages=16, fill=files.fill, fetch=nobody, ahead=0):
        owner = PageOwner(HostBackend(), files.nbytes, pages * PADDED, PageFiller(fill, fetch), readers=2, ahead=ahead)
        owners.append(owner)
        return owner

    yield one
    for owner in owners:
        owner.close()


def acquire(owner, borrower, *keys):
    loans = [loan for batch in owner.acquire(borrower, wants(*keys)) for loan in batch]
    return {loan.key: loan for loan in loans}


def test_pages_are_filled_once_and_attached_afterwards(start, files):
    owner = start()
    first = acquire(owner, "a", *files.keys[:3])
    second = acquire(owner, "b", *files.keys[:4])
    assert [loan.origin for loan in first.values()] == [Origin.FILE] * 3
    assert [second[key].origin for key in files.keys[:4]] == [Origin.ATTACHED] * 3 + [Origin.FILE]
    assert sorted(files.filled) == files.keys[:4]
    for key, loan in second.items():
        assert bytes(loan.page.view()) == files.pages[key]
        assert loan.checksum == page_checksum(files.pages[key])
    assert owner.status().lent == 4


def test_released_pages_stay_while_there_is_room_and_go_when_it_is_needed(start, files):
    owner = start(pages=4)
    acquire(owner, "a", *files.keys[:4])
    owner.release("a", files.keys[:3])
    assert owner.status().idle == 3
    assert acquire(owner, "a", files.keys[0])[files.keys[0]].origin is Origin.ATTACHED
    acquire(owner, "a", files.keys[5])
    status = owner.status()
    assert (status.used_bytes, status.idle) == (4 * PADDED, 1)
    assert files.keys[1] not in status.experts
    assert owner.drop_idle() == PADDED


def test_what_does_not_fit_is_refused_and_nothing_is_lent_or_dropped(start, files):
    owner = start(pages=4)
    acquire(owner, "a", *files.keys[:3])
    owner.release("a", files.keys[:1])
    before = owner.status()
    with pytest.raises(CapacityError, match="do not fit"):
        acquire(owner, "b", *files.keys[1:6])
    assert owner.status() == before
    assert len(acquire(owner, "b", *files.keys[1:5])) == 4
    assert owner.status().used_bytes == owner.status().budget_bytes


def test_pages_made_ahead_of_need_count_and_make_way(start, files):
    owner = start(pages=4, ahead=3)
    memory_pages.until(lambda: owner.status().used_bytes == 3 * PADDED)
    acquire(owner, "a", *files.keys[:4])
    assert owner.status().used_bytes == 4 * PADDED


def test_the_leases_of_a_borrower_end_together(start, files):
    owner = start()
    acquire(owner, "a", *files.keys[:4])
    acquire(owner, "b", files.keys[0])
    owner.end("a")
    assert (owner.status().lent, owner.status().idle) == (1, 3)


def test_two_borrowers_who_want_the_same_at_once_share_one_copy(start, files):
    gate = threading.Event()

    def slowly(key, page, pace):
        gate.wait(30)
        files.fill(key, page)

    owner = start(fill=slowly)
    results = {}
    threads = [
        threading.Thread(target=lambda name=name: results.update({name: acquire(owner, name, *files.keys[:2])}))
        for name in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    memory_pages.until(lambda: len(owner.status().experts) == 2)
    gate.set()
    for thread in threads:
        thread.join()
    assert len(files.filled) == 2
    assert results["a"][files.keys[0]].page.identity() == results["b"][files.keys[0]].page.identity()


def test_who_stops_early_gets_no_more_and_the_rest_is_not_brought(start, files):
    gate = threading.Event()

    def one_by_one(key, page, pace):
        if files.filled:
            gate.wait(30)
        files.fill(key, page)

    owner = start(fill=one_by_one)
    batches = owner.acquire("a", wants(*files.keys), at_once=1)
    (loan,) = next(filter(None, batches))
    batches.close()
    gate.set()
    memory_pages.until(lambda: len(owner.status().experts) == owner.status().idle + 1)
    assert owner.status().lent == 1
    assert len(files.filled) <= 4
    owner.release("a", [loan.key])


class Chunked:
    """Fills pages from a file in chunks; after the first of a page in `held` only once `go_on` is set."""

    def __init__(self, files, *held):
        self.files = files
        self.held = set(held)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, key, page, pace):
        pace(len(page) // 2)
        if key in self.held:
            self.begun.set()
            self.go_on.wait(30)
        pace(len(page) // 2)
        self.files.fill(key, page)


def test_a_page_that_nobody_wants_any_more_is_given_up_at_the_next_chunk(start, files):
    fill = Chunked(files, files.keys[0])
    owner = start(pages=2, fill=fill)
    descriptors, mappings = memory_pages.num_descriptors(), memory_pages.num_page_mappings()
    wanted = threading.Event()
    wanted.set()
    thread = threading.Thread(target=lambda: list(owner.acquire("a", wants(files.keys[0]), wanted=wanted.is_set)))
    thread.start()
    assert fill.begun.wait(30)
    wanted.clear()
    thread.join(30)
    assert not thread.is_alive(), "it ends while its page is still being read"
    assert owner.status().experts == ()
    assert owner.status().used_bytes == PADDED, "its memory counts until the reader lets go of it"
    fill.held.clear()
    fill.go_on.set()
    loans = acquire(owner, "b", *files.keys[:2])
    assert {loan.origin for loan in loans.values()} == {Origin.FILE}
    assert bytes(loans[files.keys[0]].page.view()) == files.pages[files.keys[0]]
    assert sorted(files.filled) == files.keys[:2], "what was given up was not read to its end"
    loans.clear()
    owner.end("b")
    owner.drop_idle()
    memory_pages.until(lambda: memory_pages.num_page_mappings() == mappings)
    memory_pages.until(lambda: memory_pages.num_descriptors() <= descriptors)


def test_a_page_that_another_wants_again_while_it_is_given_up_is_filled_anew(start, files):
    fill = Chunked(files, files.keys[0])
    owner = start(pages=2, fill=fill)
    batches = owner.acquire("a", wants(files.keys[0]), wanted=lambda: not fill.begun.is_set())
    assert list(batches) == []
    fill.held.clear()
    loan = acquire(owner, "b", files.keys[0])[files.keys[0]]
    fill.go_on.set()
    assert bytes(loan.page.view()) == files.pages[files.keys[0]]
    memory_pages.until(lambda: owner.status().used_bytes == PADDED)
    assert (owner.status().lent, owner.status().idle) == (1, 0)


def test_a_copy_from_a_peer_that_nobody_wants_any_more_ends_and_the_file_is_not_read(start, files):
    begun = threading.Event()

    def fetch(endpoint, key, into, *, received, cancelled):
        begun.set()
        memory_pages.until(cancelled)
        raise TransferCancelled("not wanted")

    owner = start(pages=1, fetch=fetch)
    wants_it = [Want(files.keys[0], ("peer",))]
    assert list(owner.acquire("a", wants_it, wanted=lambda: not begun.is_set())) == []
    memory_pages.until(lambda: owner.status().used_bytes == 0)
    assert files.filled == []


def test_what_cannot_be_filled_is_told_and_forgotten(start, files):
    def broken(key, page, pace):
        if key == files.keys[1]:
            raise CorruptCheckpoint("model.safetensors is truncated")
        files.fill(key, page)

    before = memory_pages.num_descriptors()
    owner = start(fill=broken)
    with pytest.raises(CorruptCheckpoint):
        acquire(owner, "a", *files.keys[:2])
    owner.end("a")
    memory_pages.until(lambda: owner.status().experts == (files.keys[0],))
    owner.close()
    assert memory_pages.num_descriptors() <= before


def test_peers_come_before_the_file_and_each_goes_on_where_the_last_one_stopped(start, files):
    asked = []
    half = Received(files.nbytes, 7, ((files.nbytes // 2, files.nbytes),))

    def fetch(endpoint, key, into, *, received=None, cancelled=None):
        asked.append((endpoint, received))
        if endpoint == "gone":
            raise ConnectionError(endpoint)
        if endpoint == "stops":
            into[: files.nbytes // 2] = files.pages[key][: files.nbytes // 2]
            raise SourceLost("half of it", half)
        into[files.nbytes // 2 :] = files.pages[key][files.nbytes // 2 :]
        return page_checksum(files.pages[key])

    owner = start(fetch=fetch)
    (loans,) = filter(None, owner.acquire("a", [Want(files.keys[0], ("gone", "stops", "good"))]))
    assert (asked, loans[0].origin) == ([("gone", None), ("stops", None), ("good", half)], Origin.PEER)
    assert bytes(loans[0].page.view()) == files.pages[files.keys[0]]
    (loans,) = filter(None, owner.acquire("a", [Want(files.keys[1], ("gone", "stops"))]))
    assert loans[0].origin is Origin.FILE


def test_what_is_not_as_its_source_promised_is_read_from_the_file(start, files):
    def fetch(endpoint, key, into, *, received=None, cancelled=None):
        into[:] = bytes(len(into))
        return page_checksum(files.pages[key])

    (loans,) = filter(None, start(fetch=fetch).acquire("a", [Want(files.keys[0], ("damaged",))]))
    assert loans[0].origin is Origin.FILE
    assert bytes(loans[0].page.view()) == files.pages[files.keys[0]]


def test_a_new_owner_adopts_what_borrowers_hand_back(start, files):
    lent = acquire(start(), "a", *files.keys[:2])
    successor = start()
    for key, loan in lent.items():
        for borrower in ("a", "b"):
            assert successor.adopt(borrower, key, os.dup(loan.page.descriptor()), loan.checksum)
    filled = len(files.filled)
    again = acquire(successor, "c", *files.keys[:2])
    assert {loan.origin for loan in again.values()} == {Origin.ATTACHED}
    assert len(files.filled) == filled
    assert successor.status().lent == 2
    for borrower in ("a", "b", "c"):
        successor.end(borrower)
    assert successor.status().idle == 2


def test_what_is_damaged_or_here_already_is_not_adopted(start, files):
    lent = acquire(start(), "a", *files.keys[:2])
    successor = start()
    acquire(successor, "b", files.keys[0])
    used = successor.status().used_bytes
    first, second = (lent[key] for key in files.keys[:2])
    assert not successor.adopt("a", first.key, os.dup(first.page.descriptor()), first.checksum)
    assert successor.status().used_bytes == used + PADDED
    successor.release("a", [first.key])
    assert successor.status().used_bytes == used
    before = memory_pages.num_descriptors()
    with pytest.raises(PageError, match="damaged"):
        successor.adopt("a", second.key, os.dup(second.page.descriptor()), second.checksum + 1)
    assert memory_pages.num_descriptors() <= before


def test_a_view_of_a_page_outlives_its_lease(start, files):
    owner = start()
    acquire(owner, "a", files.keys[0])
    view = owner.read(files.keys[0])
    assert owner.read(files.keys[1]) is None
    owner.end("a")
    owner.drop_idle()
    assert owner.read(files.keys[0]) is None
    assert bytes(view) == files.pages[files.keys[0]]


def test_two_hundred_cycles_through_an_owner_leave_nothing_behind(start, files):
    owner = start(pages=6)

    def cycle(number):
        for loans in owner.acquire("a", wants(*(files.keys[(number + step) % 16] for step in range(4)))):
            for loan in loans:
                assert bytes(loan.page.view()) == files.pages[loan.key]
            owner.release("a", [loan.key for loan in loans])
        owner.acquire("a", wants(files.keys[number % 16])).close()

    cycle(0)
    owner.drop_idle()
    before = memory_pages.num_descriptors(), memory_pages.num_page_mappings()
    for number in range(200):
        cycle(number)
    memory_pages.until(lambda: owner.status().lent == 0)
    owner.drop_idle()
    assert (memory_pages.num_descriptors(), memory_pages.num_page_mappings()) == before
    assert owner.status().used_bytes == 0


def test_a_page_that_is_just_being_made_ahead_does_not_make_others_unfit(files):
    class SlowBackend(HostBackend):
        def create(self, nbytes):
            making.set()
            go_on.wait(30)
            return super().create(nbytes)

    making, go_on = threading.Event(), threading.Event()
    owner = PageOwner(SlowBackend(), files.nbytes, 4 * PADDED, PageFiller(files.fill, nobody), readers=2, ahead=4)
    making.wait(30)
    threading.Timer(0.05, go_on.set).start()
    assert len(acquire(owner, "a", *files.keys[:4])) == 4
    assert owner.status().used_bytes == 4 * PADDED
    owner.close()


def test_pages_made_ahead_are_the_ones_that_are_filled(files):
    class CountingBackend(HostBackend):
        made = 0

        def create(self, nbytes):
            self.made += 1
            return super().create(nbytes)

    backend = CountingBackend()
    owner = PageOwner(backend, files.nbytes, 4 * PADDED, PageFiller(files.fill, nobody), readers=2, ahead=4)
    memory_pages.until(lambda: owner.status().used_bytes == 4 * PADDED)
    acquire(owner, "a", *files.keys[:4])
    assert (backend.made, owner.status().used_bytes) == (4, 4 * PADDED)
    owner.close()
