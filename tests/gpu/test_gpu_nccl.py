"""NCCL from page to page: to itself on one GPU, and between two where there are two."""

import threading

import memory_pages
import pytest

from flexpert_workers.memory.backend import page_checksum
from flexpert_workers.memory.cuda import open_cuda
from flexpert_workers.transfer import Identity, PageFetcher, PageServer
from flexpert_workers.transfer.nccl import NcclCommunicator, NcclTransport

pytestmark = pytest.mark.gpu
NBYTES = 5 << 20
IDENTITY = Identity("pool", "digest")


@pytest.fixture
def nccl(gpu):
    try:
        return NcclTransport()
    except RuntimeError as error:
        pytest.skip(str(error))


def test_a_page_is_sent_to_itself(backend, nccl):
    import cupy

    page, data = memory_pages.page_of(backend, 1, NBYTES)
    copy = backend.create(NBYTES)
    unique_id = cupy.cuda.nccl.get_unique_id()
    end = NcclCommunicator(cupy, cupy.cuda.nccl.NcclCommunicator(1, unique_id, 0), rank=0, peer=0)
    cupy.cuda.nccl.groupStart()
    end.send(page.memory().address, NBYTES)
    end.receive(copy.memory().address, NBYTES)
    cupy.cuda.nccl.groupEnd()
    while not end.done():
        threading.Event().wait(0.001)
    end.abort()
    sealed = copy.seal()
    assert bytes(sealed.view()) == data
    sealed.close()
    page.close()


def test_pages_go_from_one_gpu_to_another(backend, nccl):
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("two GPUs are needed: NCCL refuses two ranks on one")
    page, data = memory_pages.page_of(backend, 1, NBYTES)
    other = open_cuda(1, computes=True)
    copy = other.create(NBYTES)
    server = PageServer(lambda _: page.memory(), IDENTITY, "127.0.0.1", "", channels=nccl)
    fetcher = PageFetcher(IDENTITY, channels=NcclTransport(1))
    server.start()
    assert fetcher.fetch(server.endpoint, (0, 0), copy.memory()) == page_checksum(data)
    fetcher.close()
    server.stop()
    sealed = copy.seal()
    assert bytes(sealed.view()) == data
    sealed.close()
    page.close()


def test_two_ranks_on_one_gpu_are_refused_and_the_page_goes_over_the_host(backend, nccl):
    page, data = memory_pages.page_of(backend, 1, NBYTES)
    copy = backend.create(NBYTES)
    server = PageServer(lambda _: page.memory(), IDENTITY, "127.0.0.1", "", channels=nccl)
    fetcher = PageFetcher(IDENTITY, channels=nccl)
    server.start()
    assert fetcher.fetch(server.endpoint, (0, 0), copy.memory()) == page_checksum(data)
    fetcher.close()
    server.stop()
    copy.close()
    page.close()
