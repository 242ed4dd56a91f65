"""The page protocol, for every backend that this machine has: pages, loans, arenas."""

import itertools
import os

import fake_cuda
import memory_pages
import pytest

from flexpert_workers.errors import PageError
from flexpert_workers.memory.backend import page_checksum
from flexpert_workers.memory.cuda import CudaBackend
from flexpert_workers.memory.driver import CudaDriver
from flexpert_workers.memory.host import HostBackend

NBYTES = 300_000


@pytest.fixture(params=["host", "cuda, played on the host"])
def backend(request):
    if request.param == "host":
        return HostBackend()
    return CudaBackend(CudaDriver(1, fake_cuda.FakeCuda()), fake_cuda.tensor_at)


@pytest.fixture
def page(backend):
    made, data = memory_pages.page_of(backend, 1, NBYTES)
    yield made, data
    made.close()


@pytest.fixture
def arena(backend):
    made = backend.reserve(4, NBYTES)
    yield made
    made.close()


def bytes_in(arena, slot, nbytes=NBYTES):
    return bytes(arena.tensor(slot)[:nbytes].cpu().numpy())


def test_a_page_is_padded_and_its_checksum_is_of_the_bytes_alone(backend):
    data = os.urandom(NBYTES)
    page = backend.create(NBYTES)
    assert page.fill(lambda target: target.__setitem__(slice(None), data)) == page_checksum(data)
    sealed = page.seal()
    assert (sealed.nbytes, bytes(sealed.view())) == (NBYTES, data)
    assert backend.footprint(NBYTES) >= NBYTES
    assert backend.footprint(NBYTES) % backend.granularity == 0
    sealed.close()


def test_a_mapped_slot_shows_the_page_and_keeps_its_address(backend, arena, page):
    made, data = page
    view = arena.tensor(2)
    address = view.data_ptr()
    for _ in range(3):
        arena.map(2, made)
        arena.populate(2)
        assert bytes_in(arena, 2) == data
        arena.vacate(2)
        arena.unmap(2)
    other, other_data = memory_pages.page_of(backend, 2, NBYTES)
    arena.map(2, other)
    assert bytes(view[:NBYTES].cpu().numpy()) == other_data
    assert arena.tensor(2).data_ptr() == address
    other.close()


def test_slots_lie_one_behind_the_other_and_do_not_disturb_each_other(backend, arena):
    pages = [memory_pages.page_of(backend, seed, NBYTES) for seed in range(4)]
    for slot, (page, _) in enumerate(pages):
        arena.map(slot, page)
    arena.vacate(1)
    arena.unmap(1)
    for slot in (0, 2, 3):
        assert bytes_in(arena, slot) == pages[slot][1]
    starts = [arena.tensor(slot).data_ptr() for slot in range(arena.num_slots)]
    assert {after - before for before, after in itertools.pairwise(starts)} == {arena.slot_bytes}
    for page, _ in pages:
        page.close()


def test_what_is_vacated_while_somebody_reads_it_comes_back(arena, page):
    made, data = page
    arena.map(0, made)
    arena.populate(0)
    arena.vacate(0)
    assert bytes_in(arena, 0) == data


def test_a_mapping_outlives_the_page_that_was_closed(backend, arena):
    page, data = memory_pages.page_of(backend, 3, NBYTES)
    arena.map(0, page)
    view = page.view()
    page.close()
    page.close()
    assert bytes_in(arena, 0) == data == bytes(view)


def test_a_loan_is_the_same_memory_and_has_the_same_identity(backend, page):
    made, data = page
    borrowed = backend.adopt(os.dup(made.descriptor()), NBYTES)
    other, _ = memory_pages.page_of(backend, 4, NBYTES)
    assert bytes(borrowed.view()) == data
    assert borrowed.identity() == made.identity() != other.identity()
    borrowed.close()
    other.close()


def test_a_descriptor_that_is_no_page_is_refused_and_closed(backend):
    before = memory_pages.num_descriptors()
    for descriptor in (os.open("/dev/null", os.O_RDONLY), os.memfd_create("not-a-page")):
        with pytest.raises(PageError):
            backend.adopt(descriptor, NBYTES)
    assert memory_pages.num_descriptors() <= before


def test_two_hundred_cycles_leave_nothing_behind(backend, arena):
    def cycle(seed):
        page, _ = memory_pages.page_of(backend, seed, NBYTES)
        arena.map(seed % 4, page)
        arena.populate(seed % 4)
        arena.vacate(seed % 4)
        arena.unmap(seed % 4)
        page.close()

    cycle(0)
    before = memory_pages.num_descriptors(), memory_pages.num_page_mappings()
    for seed in range(200):
        cycle(seed)
    assert (memory_pages.num_descriptors(), memory_pages.num_page_mappings()) == before
