"""A page server is sent what is no request, and requests for what there is not: it answers, and serves on."""

import msgspec
import pytest
import transfer_harness as harness
import zmq
from malformed import NUM_FRAMES, broken, either, flat, send_all, structures

from flexpert_workers.messages import transfer

pytestmark = pytest.mark.timeout(max(300, NUM_FRAMES))


def test_what_is_no_request_is_refused() -> None:
    pages = harness.Pages(num_bytes=1 << 16)
    with harness.serving(pages) as server, zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        valid = [
            transfer.AskPage(*harness.IDENTITY, 0, 0),
            transfer.AskChannel(*harness.IDENTITY, b"meeting"),
            transfer.AskChunk(server.incarnation, 1, 0, 0, 0, 1024),
            transfer.Leave(),
        ]
        frames = either(structures(*valid), broken(*map(msgspec.msgpack.encode, valid)))
        dealer.linger = 0
        dealer.connect(server.endpoint)
        asked = 0

        def send(data: bytes) -> None:
            nonlocal asked
            asked += 1
            dealer.send_multipart([data, data] if asked % 9 == 0 else [data])
            while dealer.poll(0):
                msgspec.msgpack.decode(dealer.recv_multipart()[0], type=transfer.TransferReply)

        flat(lambda number: send_all(frames, send, number))
        with harness.fetching() as fetcher:
            target = bytearray(1 << 16)
            fetcher.fetch(server.endpoint, (0, 1), memoryview(target))
            assert bytes(target) == bytes(pages((0, 1)))
        assert server._thread is not None
        assert server._thread.is_alive()
