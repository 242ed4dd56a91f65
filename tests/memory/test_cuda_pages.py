"""What only pages on a GPU have, by a driver that is played on the host: order of calls, trailers, errors."""

import os

import memory_pages
import pytest
from fake_cuda import GRANULARITY, FakeCuda, tensor_at

from flexpert_workers.errors import CapacityError, PageError
from flexpert_workers.memory.backend import page_checksum
from flexpert_workers.memory.cuda import CudaBackend
from flexpert_workers.memory.driver import CudaDriver, CudaError, ordinal_of
from flexpert_workers.transfer import FetchLimits, Identity, PageFetcher, PageServer

NBYTES = 300_000
TOTAL = 5 * GRANULARITY


@pytest.fixture
def cuda():
    return FakeCuda()


@pytest.fixture
def backend(cuda):
    return CudaBackend(CudaDriver(1, cuda), tensor_at)


def test_the_primary_context_is_retained_and_current_in_every_call(cuda, backend):
    page, _ = memory_pages.page_of(backend, 1, NBYTES)
    page.close()
    assert cuda.retained == 1
    assert cuda.names()[:3] == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]


def test_a_page_is_filled_through_a_mapping_that_is_gone_when_it_is_lent(cuda, backend):
    begin = len(cuda.names())
    page, _ = memory_pages.page_of(backend, 1, NBYTES)
    assert cuda.names()[begin:] == [
        "cuMemCreate",
        "cuMemAddressReserve",
        "cuMemMap",
        "cuMemSetAccess",
        "cuMemcpyHtoD",
        "cuStreamSynchronize",
        "cuMemcpyHtoD",
        "cuStreamSynchronize",
        "cuMemExportToShareableHandle",
        "cuMemUnmap",
        "cuMemAddressFree",
    ]
    assert cuda.leaked() == {"handles": 1, "ranges": 0, "mappings": 0}
    assert not os.get_inheritable(page.descriptor())
    page.close()
    assert cuda.leaked() == {"handles": 0, "ranges": 0, "mappings": 0}


@pytest.mark.parametrize("nbytes", [1, GRANULARITY - 32, GRANULARITY - 31, GRANULARITY])
def test_a_page_has_room_for_its_trailer(cuda, backend, nbytes):
    page, data = memory_pages.page_of(backend, 1, nbytes)
    assert bytes(page.view()) == data
    assert backend.footprint(nbytes) == (GRANULARITY if nbytes <= GRANULARITY - 32 else 2 * GRANULARITY)
    page.close()


def test_neighbouring_slots_get_access_in_one_call(cuda, backend):
    pages = [memory_pages.page_of(backend, seed, NBYTES) for seed in range(5)]
    arena = backend.reserve(8, NBYTES)
    begin = len(cuda.names())
    arena.map_all({slot: page for slot, (page, _) in zip((6, 1, 2, 5, 3), pages, strict=True)})
    assert cuda.names()[begin:] == ["cuMemMap"] * 5 + ["cuMemSetAccess"] * 2
    assert [call[2] for call in cuda.calls if call[0] == "cuMemSetAccess"][-2:] == [3 * TOTAL, 2 * TOTAL]
    for slot, (_, data) in zip((6, 1, 2, 5, 3), pages, strict=True):
        assert bytes(arena.tensor(slot)[:NBYTES].numpy()) == data
    arena.close()
    for page, _ in pages:
        page.close()
    assert cuda.leaked() == {"handles": 0, "ranges": 0, "mappings": 0}


def test_moving_a_page_into_a_slot_is_two_calls_and_out_of_it_one(cuda, backend):
    page, _ = memory_pages.page_of(backend, 1, NBYTES)
    arena = backend.reserve(2, NBYTES)
    begin = len(cuda.names())
    arena.map(0, page)
    arena.populate(0)
    assert cuda.names()[begin:] == ["cuMemMap", "cuMemSetAccess"]
    arena.vacate(0)
    arena.unmap(0)
    assert cuda.names()[begin + 2 :] == ["cuMemUnmap"]
    page.close()
    arena.close()


def test_memory_that_nobody_sealed_is_refused(cuda, backend):
    before = memory_pages.num_descriptors()
    unsealed = backend.create(NBYTES)
    unsealed.fill(lambda target: target.__setitem__(slice(None), bytes(NBYTES)))
    descriptor = CudaDriver(1, cuda).export(unsealed._handle)
    with pytest.raises(PageError, match="no trailer"):
        backend.adopt(descriptor, NBYTES)
    unsealed.close()
    assert memory_pages.num_descriptors() <= before
    assert cuda.leaked() == {"handles": 0, "ranges": 0, "mappings": 0}


def test_a_page_of_another_size_is_refused(cuda, backend):
    page, _ = memory_pages.page_of(backend, 1, NBYTES)
    for other in (NBYTES - 1, NBYTES + 1, 2 * NBYTES):
        with pytest.raises(PageError, match="no sealed page"):
            backend.adopt(os.dup(page.descriptor()), other)
    page.close()
    assert cuda.leaked() == {"handles": 0, "ranges": 0, "mappings": 0}


def test_a_device_without_room_refuses_and_keeps_nothing(cuda, backend):
    cuda.capacity_bytes = TOTAL
    page, _ = memory_pages.page_of(backend, 1, NBYTES)
    with pytest.raises(CapacityError, match="cuMemCreate"):
        backend.create(NBYTES)
    page.close()
    backend.create(NBYTES).close()
    assert cuda.leaked() == {"handles": 0, "ranges": 0, "mappings": 0}


def test_a_write_that_fails_leaves_a_page_that_can_be_thrown_away(cuda, backend):
    page = backend.create(NBYTES)
    with pytest.raises(ValueError):
        page.fill(lambda target: target.__setitem__(slice(None), b"too short"))
    page.close()
    assert cuda.leaked() == {"handles": 0, "ranges": 0, "mappings": 0}


def test_pages_are_copied_from_one_gpu_to_another_by_way_of_the_host(cuda, backend):
    """Straight from the memory of one page into the memory of another that is not sealed yet."""
    page, data = memory_pages.page_of(backend, 1, NBYTES)
    identity = Identity("pool", "digest")
    server = PageServer(lambda _: page.memory(), identity, "127.0.0.1", "")
    fetcher = PageFetcher(identity, limits=FetchLimits(chunk_bytes=64 << 10))
    server.start()
    copy = backend.create(NBYTES)
    assert fetcher.fetch(server.endpoint, (0, 0), copy.memory()) == page_checksum(data)
    fetcher.close()
    server.stop()
    sealed = copy.seal()
    assert bytes(sealed.view()) == data
    page.close()
    sealed.close()
    assert cuda.leaked() == {"handles": 0, "ranges": 0, "mappings": 0}


def test_a_device_is_found_by_its_uuid(cuda):
    assert ordinal_of("GPU-01010101-0101-0101-0101-010101010101", cuda) == 1
    with pytest.raises(CudaError, match="none is GPU-02"):
        ordinal_of("GPU-02020202-0202-0202-0202-020202020202", cuda)


def test_a_machine_without_cuda_says_so():
    class Missing(FakeCuda):
        def cuInit(self, flags):  # noqa: N802
            raise ImportError("libcuda.so.1")

    with pytest.raises(CudaError, match="no CUDA driver"):
        CudaDriver(0, Missing())
    with pytest.raises(CudaError, match="no CUDA driver"):
        ordinal_of("GPU-01010101-0101-0101-0101-010101010101", Missing())
    if not os.path.exists("/dev/nvidiactl"):
        with pytest.raises(CudaError, match=r"no CUDA driver|install flexpert"):
            CudaDriver()


def test_an_error_of_the_driver_names_call_and_error(cuda, backend):
    cuda.cuMemAddressReserve = lambda *_: (cuda.CUresult.CUDA_ERROR_NOT_SUPPORTED, None)
    with pytest.raises(CudaError, match=r"cuMemAddressReserve failed with .*NOT_SUPPORTED"):
        backend.reserve(1, NBYTES)
