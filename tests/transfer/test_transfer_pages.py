"""Copies of pages that go well or are refused: over TCP and UNIX sockets, of several pairs at once, within a rate."""

import threading

import pytest
from transfer_harness import IDENTITY, PATIENT, QUICK, Pages, fetching, page_of, serving

from flexpert_workers.errors import CorruptPage, IdentityMismatch, PageNotHeld, TransferCancelled
from flexpert_workers.transfer import Identity, TokenBucket, page_checksum


@pytest.mark.parametrize("num_bytes", [1, 4096, (64 << 10) + 1, 3 << 20])
@pytest.mark.parametrize("over", ["tcp", "ipc"])
def test_a_page_arrives_as_it_left(num_bytes, over, socket_dir):
    pages = Pages(num_bytes)
    with serving(pages, socket_dir=socket_dir if over == "ipc" else "") as server, fetching() as fetcher:
        assert server.endpoint.startswith(over)
        into = bytearray(num_bytes)
        checksum = fetcher.fetch(server.endpoint, (0, 1), memoryview(into))
        assert into == pages((0, 1))
        assert checksum == page_checksum(into)
        assert server.sent_bytes == num_bytes


def test_one_connection_copies_one_page_after_the_other():
    pages = Pages(200_000)
    with serving(pages) as server, fetching() as fetcher:
        for key in [*pages.pages, (0, 0)]:
            into = bytearray(200_000)
            fetcher.fetch(server.endpoint, key, memoryview(into))
            assert into == pages(key)
        with pytest.raises(PageNotHeld, match=r"expert \(5, 5\)"):
            fetcher.fetch(server.endpoint, (5, 5), memoryview(into))
        fetcher.fetch(server.endpoint, (1, 0), memoryview(into))
        assert into == pages((1, 0))


@pytest.mark.parametrize("identity", [Identity("another", "digest"), Identity("pool-uid", "another")])
def test_another_pool_and_another_checkpoint_are_refused(identity):
    with serving(Pages()) as server, fetching(identity) as fetcher:
        with pytest.raises(IdentityMismatch, match="another"):
            fetcher.fetch(server.endpoint, (0, 0), memoryview(bytearray(1 << 20)))
        assert server.sent_bytes == 0


def test_a_page_of_another_size_is_refused_before_anything_is_sent():
    with serving(Pages(1000)) as server, fetching() as fetcher:
        with pytest.raises(CorruptPage, match="1000 bytes there, and there is room for 999"):
            fetcher.fetch(server.endpoint, (0, 0), memoryview(bytearray(999)))
        assert server.sent_bytes == 0


def test_several_sources_and_targets_copy_at_once():
    keys = [(layer, index) for layer in range(3) for index in range(4)]
    pages = [Pages(300_000, keys[number::3]) for number in range(3)]
    owners = {key: number for number in range(3) for key in pages[number].pages}
    with (
        serving(pages[0]) as first,
        serving(pages[1]) as second,
        serving(pages[2]) as third,
        fetching(limits=PATIENT) as one,
        fetching(limits=PATIENT) as two,
    ):
        endpoints = [first.endpoint, second.endpoint, third.endpoint]
        arrived = {(fetcher, key): bytearray(300_000) for fetcher in (one, two) for key in keys}
        threads = [
            threading.Thread(target=fetcher.fetch, args=(endpoints[owners[key]], key, memoryview(into)))
            for (fetcher, key), into in arrived.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(into == page_of(key, 300_000) for (_, key), into in arrived.items())
        assert first.sent_bytes + second.sent_bytes + third.sent_bytes == 2 * len(keys) * 300_000


def test_between_a_pair_one_page_goes_at_a_time():
    asked = []
    pages = Pages(1 << 20)

    def read_page(key):
        asked.append(key)
        return pages(key)

    with serving(read_page) as server, fetching() as fetcher:
        into = {key: bytearray(1 << 20) for key in pages.pages}
        threads = [
            threading.Thread(target=fetcher.fetch, args=(server.endpoint, key, memoryview(each)))
            for key, each in into.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(into[key] == pages(key) for key in into)
        assert sorted(asked) == sorted(into)  # had pages taken turns, each would have been opened again and again


def test_a_target_asks_for_no_more_than_its_window_at_a_time():
    most = 0
    pages = Pages(2 << 20)
    with serving(pages) as server, fetching() as fetcher:
        take = server._bucket.take

        def look(num_bytes):
            nonlocal most
            most = max(most, *(each.asked_bytes for each in server._sessions._sessions.values()))
            return take(num_bytes)

        server._bucket.take = look
        fetcher.fetch(server.endpoint, (0, 0), memoryview(bytearray(2 << 20)))
    assert QUICK.chunk_bytes <= most <= QUICK.window_bytes


def test_the_source_yields_to_its_serving_and_the_target_waits_longer_than_its_patience_with_silence():
    """While the source holds chunks back it gives signs of life, so that it is not taken to hang."""
    busy = threading.Event()
    busy.set()
    bucket = TokenBucket(64e3, burst_bytes=64 << 10, busy=lambda: 1.0 if busy.is_set() else 0.0)
    pages = Pages(192 << 10)
    with serving(pages, bucket=bucket) as server, fetching() as fetcher:
        server._limits = server._limits.__class__(sign_of_life_s=0.05)
        opened = []
        original = server._offer
        server._offer = lambda *args: opened.append(args) or original(*args)
        into = bytearray(192 << 10)
        timer = threading.Timer(1.0, busy.clear)
        timer.start()
        fetcher.fetch(server.endpoint, (0, 0), memoryview(into))
        timer.join()
        assert into == pages((0, 0))
        assert len(opened) == 1  # and the connection was never made anew


def test_the_target_keeps_to_its_own_rate():
    taken = []

    class Counting(TokenBucket):
        def take(self, num_bytes):
            wait_s = super().take(num_bytes)
            taken.append((num_bytes, wait_s))
            return wait_s

    with serving(Pages(1 << 20)) as server, fetching(bucket=Counting(4e6, burst_bytes=256 << 10)) as fetcher:
        fetcher.fetch(server.endpoint, (0, 0), memoryview(bytearray(1 << 20)))
    assert sum(num_bytes for num_bytes, wait_s in taken if not wait_s) == 1 << 20
    assert any(wait_s for _, wait_s in taken)


def test_a_fetch_can_be_cancelled_and_a_closed_fetcher_ends_what_is_under_way():
    bucket = TokenBucket(1e3, burst_bytes=64 << 10)
    with serving(Pages(1 << 20), bucket=bucket) as server, fetching() as fetcher:
        into = memoryview(bytearray(1 << 20))
        with pytest.raises(TransferCancelled) as caught:
            fetcher.fetch(server.endpoint, (0, 0), into, cancelled=lambda: server.sent_bytes > 0)
        assert caught.value.received.total == 1 << 20
        errors = []

        def fetch():
            try:
                fetcher.fetch(server.endpoint, (0, 0), into)
            except TransferCancelled as error:
                errors.append(error)

        thread = threading.Thread(target=fetch)
        thread.start()
        fetcher.close()
        thread.join()
        assert len(errors) == 1


def test_the_checksum_under_which_a_page_was_sealed_is_what_is_sent(socket_dir):
    pages = Pages(1 << 16)
    sealed = {key: page_checksum(page) for key, page in pages.pages.items()}
    with serving(pages, checksum_of=sealed.get, socket_dir=socket_dir) as server, fetching(IDENTITY) as fetcher:
        assert fetcher.fetch(server.endpoint, (1, 0), memoryview(bytearray(1 << 16))) == sealed[1, 0]
