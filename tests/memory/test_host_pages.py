"""What only pages in a host's RAM have: seals, and descriptors that cannot write."""

import fcntl
import mmap
import os

import memory_pages
import pytest

from flexpert_workers.errors import CapacityError, PageError
from flexpert_workers.memory.host import SEALS, HostBackend

BACKEND = HostBackend()
NBYTES = 10_000


@pytest.fixture
def page():
    made, _ = memory_pages.page_of(BACKEND, 1, NBYTES)
    yield made
    made.close()


def test_who_borrows_a_page_cannot_change_it_in_any_way(page):
    assert fcntl.fcntl(page.descriptor(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    with pytest.raises(OSError):
        os.write(page.descriptor(), b"x")
    with pytest.raises(OSError):
        os.ftruncate(page.descriptor(), 1)
    with pytest.raises(OSError):
        mmap.mmap(page.descriptor(), NBYTES, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    writable = os.open(f"/proc/self/fd/{page.descriptor()}", os.O_RDWR)
    for attack in (
        lambda: os.pwrite(writable, b"x", 0),
        lambda: os.ftruncate(writable, 1),
        lambda: os.ftruncate(writable, 1 << 20),
        lambda: mmap.mmap(writable, NBYTES, prot=mmap.PROT_READ | mmap.PROT_WRITE),
        lambda: fcntl.fcntl(writable, 1033, 0x8),
    ):
        with pytest.raises(OSError):
            attack()
    os.close(writable)
    with pytest.raises(TypeError):
        page.view()[0] = 1


def test_a_file_that_lacks_a_seal_is_refused():
    for missing in (0x1, 0x2, 0x4, 0x10):
        descriptor = os.memfd_create("page", os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, NBYTES)
        fcntl.fcntl(descriptor, 1033, SEALS & ~missing)
        with pytest.raises(PageError, match="seals"):
            BACKEND.adopt(descriptor, NBYTES)


def test_a_page_that_is_too_short_is_refused(page):
    with pytest.raises(PageError, match="bytes"):
        BACKEND.adopt(os.dup(page.descriptor()), 1 << 20)


def test_what_the_machine_does_not_have_is_refused():
    before = memory_pages.num_descriptors()
    with pytest.raises(CapacityError):
        BACKEND.create(1 << 50)
    with pytest.raises(CapacityError):
        BACKEND.reserve(1 << 30, 1 << 30)
    assert memory_pages.num_descriptors() <= before


def test_a_write_that_fails_leaves_a_page_that_can_be_thrown_away():
    before = memory_pages.num_descriptors()
    page = BACKEND.create(NBYTES)
    with pytest.raises(ValueError):
        page.fill(lambda target: target.__setitem__(slice(None), b"too short"))
    page.close()
    assert memory_pages.num_descriptors() <= before
