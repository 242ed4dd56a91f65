"""Copies between devices, with a fake of the device and of CuPy's NCCL: over the channel, and over the host without."""

import ctypes
import gc
import queue
import threading
from dataclasses import replace

import pytest
from transfer_harness import QUICK, fetching, page_of, serving, until

from flexpert_workers.transfer import ServeLimits, page_checksum
from flexpert_workers.transfer.nccl import NcclTransport

SIZE = 1 << 20
BRIEF = replace(QUICK, meeting_s=0.5)


class FakeDeviceMemory:
    """Bytes that the host is to reach by copying only."""

    def __init__(self, data):
        self._memory = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        self.nbytes = len(data)
        self.address = ctypes.addressof(self._memory)
        self.written = 0

    def read(self, start, end):
        return memoryview(ctypes.string_at(self.address + start, end - start))

    def write(self, start, data):
        ctypes.memmove(self.address + start, bytes(data), data.nbytes)
        self.written += data.nbytes


class FakeStream:
    def __init__(self, non_blocking):
        assert non_blocking
        self.waits_for = []
        self.ptr = id(self)

    @property
    def done(self):
        while self.waits_for and self.waits_for[0]():
            self.waits_for.pop(0)
        return not self.waits_for


class FakeCuPy:
    """What `NcclTransport` uses of CuPy; two ranks of one unique id meet wherever they are in this process.

    Attributes:
        calls: What was asked of NCCL, in order.
        damage: Positions among all bytes sent that arrive changed.
        takes: Bytes that get through before the network is dead; None for all.
    """

    def __init__(self):
        self.calls = []
        self.damage = []
        self.takes = None
        self.meets = True
        self.sent = 0
        self.streams = {}
        self.way = queue.Queue()
        self.lock = threading.Lock()
        self.alive = 0
        self.cuda = self
        self.nccl = self
        self.NCCL_UINT8 = 1
        self.ended = threading.Event()

    def Device(self, index):  # noqa: N802
        self.calls.append(("device", index))
        return self

    def use(self):
        pass

    def Stream(self, non_blocking):  # noqa: N802
        stream = FakeStream(non_blocking)
        self.streams[stream.ptr] = stream
        return stream

    def zeros(self, count, dtype):
        memory = FakeDeviceMemory(bytes(count))
        memory.data = type("Data", (), {"ptr": memory.address})
        return memory

    def get_unique_id(self):
        return tuple((each * 37) % 256 - 128 for each in range(128))

    def NcclCommunicator(self, size, unique_id, rank):  # noqa: N802
        assert (size, unique_id) == (2, self.get_unique_id())
        return FakeCommunicator(self, rank)


class FakeCommunicator:
    def __init__(self, cupy, rank):
        self.cupy = cupy
        self.aborted = threading.Event()
        if not cupy.meets:
            cupy.ended.wait()
            raise RuntimeError("NCCL_ERROR_SYSTEM_ERROR")
        with cupy.lock:
            cupy.alive += 1
            self.way = cupy.way

    def send(self, address, count, datatype, peer, stream):
        self.cupy.calls.append(("send", count))
        assert (datatype, peer) == (1, 1)
        data = bytearray(ctypes.string_at(address, count))
        for position in [each for each in self.cupy.damage if 0 <= each - self.cupy.sent < count]:
            data[position - self.cupy.sent] ^= 1
        self.cupy.sent += count
        if self.cupy.takes is None or self.cupy.sent <= self.cupy.takes:
            self.way.put(bytes(data))
        else:
            self.cupy.streams[stream].waits_for.append(lambda: False)

    def recv(self, address, count, datatype, peer, stream):
        self.cupy.calls.append(("recv", count))
        assert (datatype, peer) == (1, 0)

        def arrived():
            try:
                data = self.way.get_nowait()
            except queue.Empty:
                return False
            assert len(data) == count
            ctypes.memmove(address, data, count)
            return True

        self.cupy.streams[stream].waits_for.append(arrived)

    def check_async_error(self):
        assert not self.aborted.is_set(), "asked of a communicator that is not there any more"

    def abort(self):
        with self.cupy.lock:
            self.cupy.alive -= 1
        self.aborted.set()

    def destroy(self):
        raise AssertionError("destroy waits for the other end: abort instead")


@pytest.fixture
def cupy():
    fake = FakeCuPy()
    yield fake
    fake.ended.set()


@pytest.fixture
def transport(cupy):
    return NcclTransport(3, cupy)


@pytest.fixture
def source():
    return FakeDeviceMemory(page_of((0, 0), SIZE))


def over_channel(cupy):
    return sum(count for call, count in cupy.calls if call == "recv") - 1  # without the byte that warms


def test_pages_go_from_device_to_device_and_one_channel_serves_them_all(cupy, transport, source):
    with serving(lambda _: source, channels=transport) as server, fetching(channels=transport) as fetcher:
        for _ in range(3):
            into = FakeDeviceMemory(bytes(SIZE))
            assert fetcher.fetch(server.endpoint, (0, 0), into) == page_checksum(page_of((0, 0), SIZE))
            assert into.read(0, SIZE) == page_of((0, 0), SIZE)
            assert into.written == 0
    assert over_channel(cupy) == 3 * SIZE
    assert cupy.calls.count(("recv", 1)) == 1
    assert cupy.calls[:1] == [("device", 3)]
    assert cupy.alive == 0


def test_a_chunk_that_is_damaged_on_the_channel_is_sent_again(cupy, transport, source):
    cupy.damage = [SIZE // 2]
    with serving(lambda _: source, channels=transport) as server, fetching(channels=transport) as fetcher:
        into = FakeDeviceMemory(bytes(SIZE))
        fetcher.fetch(server.endpoint, (0, 0), into)
        assert into.read(0, SIZE) == page_of((0, 0), SIZE)
        assert server.sent_bytes == SIZE + QUICK.chunk_bytes


@pytest.mark.parametrize(("at_source", "at_target"), [(True, False), (False, True), (False, False)])
def test_without_a_channel_at_both_ends_the_bytes_go_over_the_host(cupy, transport, source, at_source, at_target):
    with (
        serving(lambda _: source, channels=transport if at_source else None) as server,
        fetching(channels=transport if at_target else None) as fetcher,
    ):
        into = FakeDeviceMemory(bytes(SIZE))
        fetcher.fetch(server.endpoint, (0, 0), into)
        assert into.read(0, SIZE) == page_of((0, 0), SIZE)
        assert into.written == SIZE
    assert cupy.alive == 0


@pytest.mark.parametrize("to_device", [True, False])
def test_host_and_device_copy_to_each_other(transport, source, to_device):
    page = page_of((0, 0), SIZE) if to_device else source
    into = FakeDeviceMemory(bytes(SIZE)) if to_device else memoryview(bytearray(SIZE))
    with serving(lambda _: page, channels=transport) as server, fetching(channels=transport) as fetcher:
        fetcher.fetch(server.endpoint, (0, 0), into)
        assert (into.read(0, SIZE) if to_device else into) == page_of((0, 0), SIZE)


def test_a_meeting_to_which_nobody_comes_ends_and_the_bytes_go_over_the_host(cupy, transport, source):
    cupy.meets = False
    with (
        serving(lambda _: source, channels=transport) as server,
        fetching(channels=transport, limits=BRIEF) as fetcher,
    ):
        for _ in range(2):  # the second does not try again
            into = FakeDeviceMemory(bytes(SIZE))
            fetcher.fetch(server.endpoint, (0, 0), into)
            assert into.written == SIZE
    assert cupy.calls == [("device", 3)] * 2


def test_a_network_that_dies_in_the_middle_is_aborted_and_the_rest_goes_over_the_host(cupy, transport, source):
    cupy.takes = SIZE // 2
    with serving(lambda _: source, channels=transport) as server, fetching(channels=transport) as fetcher:
        into = FakeDeviceMemory(bytes(SIZE))
        fetcher.fetch(server.endpoint, (0, 0), into)
        assert into.read(0, SIZE) == page_of((0, 0), SIZE)
        arrived = SIZE - into.written
        assert SIZE // 2 - QUICK.chunk_bytes <= arrived <= SIZE // 2
    assert cupy.alive == 0


def test_a_target_that_hangs_does_not_keep_the_devices_waiting(cupy, transport, source):
    """The source aborts its end of a channel when a chunk is not taken in time."""
    cupy.takes = 1
    with (
        serving(lambda _: source, channels=transport, limits=ServeLimits(channel_s=3.0)) as server,
        fetching(channels=transport, limits=replace(QUICK, silence_s=60.0)) as fetcher,
    ):
        into = FakeDeviceMemory(bytes(SIZE))
        checksums = []
        thread = threading.Thread(target=lambda: checksums.append(fetcher.fetch(server.endpoint, (0, 0), into)))
        thread.start()
        until(lambda: server._meetings)
        until(lambda: not server._meetings)
        assert cupy.alive <= 1  # only the end of the target that hangs
        for link in fetcher._links.values():
            link.channel.abort()
        thread.join()
        assert checksums == [page_checksum(page_of((0, 0), SIZE))]
    gc.collect()
    assert cupy.alive == 0


def test_a_machine_without_nccl_says_what_to_install():
    if _has_nccl():
        pytest.skip("this machine has NCCL")
    with pytest.raises(RuntimeError, match="install"):
        NcclTransport()


def _has_nccl():
    try:
        NcclTransport()
    except RuntimeError:
        return False
    return True
