"""Copies through a link that cuts, damages and slows, from sources that are killed, restarted and stopped."""

import os
import random
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from transfer_harness import (
    QUICK,
    Pages,
    Proxy,
    fetching,
    page_of,
    serving,
    source_process,
    target_process,
    until,
)

from flexpert_workers.errors import CorruptPage, SourceLost
from flexpert_workers.transfer import ServeLimits, page_checksum

SIZE = 2 << 20
HERE = Path(__file__).parent
IMPATIENT = replace(QUICK, patience_s=0.7)  # where nobody will ever answer
BOUNDED = replace(QUICK, patience_s=5.0)


def new_page():
    return memoryview(bytearray(SIZE))


def test_a_connection_cut_in_the_middle_goes_on_where_it_was():
    pages = Pages(SIZE)
    cuts = (300_000, 1_000_000, 1_000_100, 1_700_000)
    with serving(pages) as server, Proxy(server.endpoint, cut_after=cuts) as proxy, fetching() as fetcher:
        into = new_page()
        asked = []
        queue = server._queue_chunk
        server._queue_chunk = lambda target, request: asked.append(request) or queue(target, request)
        assert fetcher.fetch(proxy.endpoint, (0, 0), into) == page_checksum(pages((0, 0)))
        assert into == pages((0, 0))
        assert proxy.connections >= 3
    times = {}
    for request in asked:
        for block in range(request.offset >> 13, (request.offset + request.length) >> 13):
            times[block] = times.get(block, 0) + 1
    again = sum(count - 1 for count in times.values()) << 13
    assert 0 < again <= len(cuts) * QUICK.window_bytes  # only what was on its way is asked for again


def test_a_damaged_chunk_is_asked_for_again_alone():
    pages = Pages(SIZE)
    with (
        serving(pages) as server,
        Proxy(server.endpoint, damage_at=[400_000, 1_500_000]) as proxy,
        fetching() as fetcher,
    ):
        into = new_page()
        fetcher.fetch(proxy.endpoint, (0, 0), into)
        assert into == pages((0, 0))
        assert server.sent_bytes == SIZE + 2 * QUICK.chunk_bytes


def test_a_link_that_damages_everything_is_given_up():
    pages = Pages(SIZE)
    everywhere = range(20_000, 1_000_000, 30_000)
    with serving(pages) as server, Proxy(server.endpoint, damage_at=everywhere) as proxy, fetching() as fetcher:
        with pytest.raises(CorruptPage, match="4 chunks"):
            fetcher.fetch(proxy.endpoint, (0, 0), new_page())
        into = new_page()
        fetcher.fetch(server.endpoint, (0, 0), into)
        assert into == pages((0, 0))


def test_bytes_that_changed_in_the_memory_of_the_source_are_not_accepted():
    pages = Pages(SIZE)
    sealed = page_checksum(pages((0, 0)))
    changed = bytearray(pages((0, 0)))
    changed[SIZE // 2] ^= 1
    pages.pages[0, 0] = memoryview(changed)
    with (
        serving(pages, checksum_of={(0, 0): sealed}.get) as server,
        fetching() as fetcher,
        pytest.raises(CorruptPage, match="not its own"),
    ):
        fetcher.fetch(server.endpoint, (0, 0), new_page())


def test_nobody_there_is_an_error_in_bounded_time():
    with fetching(limits=IMPATIENT) as fetcher, pytest.raises(SourceLost, match="no page server answers"):
        fetcher.fetch("tcp://127.0.0.1:1", (0, 0), new_page())


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://not a host:1", "ipc:///nowhere/at/all"])
def test_an_endpoint_that_means_nothing_is_an_error_too(endpoint):
    with fetching(limits=IMPATIENT) as fetcher, pytest.raises(SourceLost):
        fetcher.fetch(endpoint, (0, 0), new_page())


def test_another_source_goes_on_from_what_arrived():
    pages = Pages(SIZE)
    with serving(pages) as first, serving(pages) as second, fetching() as other, fetching(limits=BOUNDED) as fetcher:
        into = new_page()
        with Proxy(first.endpoint, cut_after=[SIZE // 2] * 1000) as proxy:
            proxy.target = first.endpoint
            with pytest.raises(SourceLost) as caught:
                fetcher.fetch(proxy.endpoint, (0, 0), into)
        received = caught.value.received
        assert SIZE // 2 - 2 * QUICK.chunk_bytes <= received.num_bytes <= SIZE // 2
        assert other.fetch(second.endpoint, (0, 0), into, received=received) == page_checksum(pages((0, 0)))
        assert into == pages((0, 0))
        assert second.sent_bytes == SIZE - received.num_bytes


def test_what_arrived_is_not_mixed_with_other_bytes():
    pages, others = Pages(SIZE), Pages(SIZE)
    others.pages[0, 0] = page_of("something else", SIZE)
    with serving(pages) as first, serving(others) as second, fetching() as other, fetching(limits=BOUNDED) as fetcher:
        with Proxy(first.endpoint, cut_after=[SIZE // 2] * 1000) as proxy, pytest.raises(SourceLost) as caught:
            fetcher.fetch(proxy.endpoint, (0, 0), new_page())
        with pytest.raises(CorruptPage, match="another checksum"):
            other.fetch(second.endpoint, (0, 0), new_page(), received=caught.value.received)
        assert second.sent_bytes == 0


def test_a_slow_link_gets_smaller_chunks_instead_of_being_taken_to_hang():
    """About 1 MB/s: a full chunk of 1 MiB lasts longer than the longest silence."""
    limits = replace(QUICK, chunk_bytes=1 << 20, window_bytes=2 << 20)
    pages = Pages(SIZE)
    with (
        serving(pages) as server,
        Proxy(server.endpoint, piece=8 << 10, delay_s=0.008) as proxy,
        fetching(limits=limits) as fetcher,
    ):
        into = new_page()
        fetcher.fetch(proxy.endpoint, (0, 0), into)
        assert into == pages((0, 0))


def test_a_source_that_is_killed_and_restarted_is_gone_on_with():
    with (
        source_process(HERE, SIZE, rate=1_000_000) as (first, endpoint),
        Proxy(endpoint) as proxy,
        fetching() as fetcher,
    ):
        into = new_page()
        checksums = []
        thread = threading.Thread(
            target=lambda: checksums.append(fetcher.fetch(proxy.endpoint, (0, 0), into)), daemon=True
        )
        thread.start()
        until(lambda: proxy.sent >= SIZE // 4)
        first.kill()
        before = proxy.sent
        with source_process(HERE, SIZE) as (_, again):
            proxy.target = again
            thread.join()
        assert checksums == [page_checksum(page_of((0, 0), SIZE))]
        assert into == page_of((0, 0), SIZE)
        assert proxy.sent - before < SIZE - before + 2 * QUICK.window_bytes


@pytest.mark.parametrize("socket", ["tcp", "proxied"])
def test_a_source_that_hangs_is_given_up_in_bounded_time_and_goes_on_when_it_wakes(socket):
    with (
        source_process(HERE, SIZE, rate=1_000_000) as (process, endpoint),
        Proxy(endpoint) as proxy,
        fetching(limits=BOUNDED) as fetcher,
    ):
        into = new_page()
        dialled = endpoint if socket == "tcp" else proxy.endpoint
        errors = []

        def fetch():
            with pytest.raises(SourceLost) as caught:
                fetcher.fetch(dialled, (0, 0), into)
            errors.append(caught.value)

        thread = threading.Thread(target=fetch)
        thread.start()
        expected = page_of((0, 0), SIZE)
        until(lambda: into[:1000] == expected[:1000])
        os.kill(process.pid, signal.SIGSTOP)
        thread.join()
        received = errors[0].received
        assert 0 < received.num_bytes < SIZE
        os.kill(process.pid, signal.SIGCONT)
        with fetching() as patient:
            assert patient.fetch(dialled, (0, 0), into, received=received) == page_checksum(expected)
        assert into == expected


def test_a_server_survives_what_no_target_of_ours_sends():
    pages = Pages(SIZE)
    context = zmq.Context()
    with serving(pages) as server, fetching() as fetcher:
        with context.socket(zmq.DEALER) as sock:
            sock.linger = 0
            sock.connect(server.endpoint)
            for message in (b"", b"\xff\xff", b"x" * 100_000):
                sock.send(message)
                assert sock.poll(10_000)
                assert b"Unavailable" in sock.recv()
        into = new_page()
        fetcher.fetch(server.endpoint, (0, 0), into)
        assert into == pages((0, 0))
    context.term()


@pytest.mark.parametrize("socket", ["tcp", "ipc"])
def test_a_target_that_hangs_keeps_no_page_of_the_source(tmp_path_factory, socket):
    folder = tmp_path_factory.mktemp("s") if socket == "ipc" else ""
    backing = bytearray(64 << 20)
    limits = ServeLimits(window_bytes=64 << 20, idle_s=0.5, gone_s=1.0)
    with (
        serving(lambda key: memoryview(backing), socket_dir=folder, limits=limits) as server,
        target_process(HERE, server.endpoint, len(backing)) as process,
    ):
        assert server.endpoint.startswith(socket)
        until(lambda: server.sent_bytes)
        os.kill(process.pid, signal.SIGSTOP)
        until(lambda: is_free(backing))


def test_a_page_that_cannot_be_read_is_one_fetch_that_fails():
    class Unreadable:
        nbytes = SIZE
        address = 0

        def read(self, start, end):
            if end < SIZE:
                raise OSError("the device is gone")
            return page_of((0, 0), SIZE)[start:end]

    pages = Pages(SIZE)
    with serving(lambda key: Unreadable() if key == (9, 9) else pages(key)) as server, fetching() as fetcher:
        with pytest.raises(SourceLost, match="the device is gone"):
            fetcher.fetch(server.endpoint, (9, 9), new_page())
        fetcher.fetch(server.endpoint, (0, 0), new_page())


@pytest.mark.parametrize("seed", range(6))
def test_whatever_a_link_does_the_bytes_are_right_or_there_is_an_error(seed):
    dice = random.Random(seed)
    nbytes = dice.randrange(1, 600_000)
    pages = Pages(nbytes)
    cuts = sorted(dice.randrange(2 * nbytes) for _ in range(dice.randrange(6)))
    damage = [dice.randrange(2 * nbytes) for _ in range(dice.randrange(6))]
    with (
        serving(pages) as server,
        Proxy(server.endpoint, cut_after=cuts, damage_at=damage, piece=dice.randrange(1000, 70_000)) as proxy,
        fetching(limits=replace(QUICK, retries=2)) as fetcher,
    ):
        into = {key: memoryview(bytearray(nbytes)) for key in pages.pages}
        for key, target in into.items():
            try:
                assert fetcher.fetch(proxy.endpoint, key, target) == page_checksum(pages(key))
            except CorruptPage as error:
                fetcher.fetch(server.endpoint, key, target, received=error.received)
            assert target == pages(key)


def test_many_copies_some_of_them_broken_leave_no_descriptor_behind():
    pages = Pages(100_000)
    before = None
    for turn in range(60):
        with (
            serving(pages) as server,
            Proxy(server.endpoint, cut_after=[50_000] * (turn % 3)) as proxy,
            fetching() as fetcher,
        ):
            into = memoryview(bytearray(100_000))
            fetcher.fetch(proxy.endpoint, (0, 0), into)
            assert into == pages((0, 0))
        if turn == 10:
            before = settled_descriptors()
    assert settled_descriptors() <= before


def settled_descriptors():
    """Descriptors of this process, once ZeroMQ's thread has closed those of sockets that are gone."""
    counts = [len(os.listdir("/proc/self/fd"))]
    while len(counts) < 20 or counts[-1] < counts[-20]:
        threading.Event().wait(0.01)
        counts.append(len(os.listdir("/proc/self/fd")))
    return counts[-1]


def is_free(backing):
    """Whether nothing refers to the bytes."""
    try:
        backing.append(0)
    except BufferError:
        return False
    backing.pop()
    return True


def test_a_page_is_let_go_of_when_the_target_has_it():
    pages = Pages(SIZE)
    backing = bytearray(pages((0, 0)))
    with fetching() as fetcher:
        with serving(lambda key: memoryview(backing)) as server:
            fetcher.fetch(server.endpoint, (0, 0), new_page())
        until(lambda: is_free(backing))  # ZeroMQ lets go in a thread of its own
