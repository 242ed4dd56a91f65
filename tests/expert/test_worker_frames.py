"""A worker is sent what is no dispatch and no control request: it answers, serves on, and holds no more memory."""

import contextlib
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import expert_harness as harness
import msgspec
import psutil
import pytest
import torch
import zmq
from malformed import NUM_FRAMES, broken, either, flat, send_all, structures

from flexpert_workers.expert.dispatch_server import _decoder as dispatch_decoder
from flexpert_workers.messages import UNREADABLE, control
from flexpert_workers.messages.dispatch import DispatchReply, DispatchRequest, Status
from flexpert_workers.routing import Epoch
from flexpert_workers.transport import stream

pytestmark = pytest.mark.timeout(max(300, NUM_FRAMES))


@dataclass
class Victim:
    """A worker in a process of its own, with every expert."""

    pid: int
    digest: str
    incarnation: str
    endpoint: str
    control_endpoint: str

    def memory(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    def dispatch(self, **changes: Any) -> DispatchRequest:
        fields = {"pool": harness.POOL, "digest": self.digest, "incarnation": self.incarnation, "request": 1}
        fields |= {"attempt": 0, "epoch": Epoch(1, 1), "layer": 0, "rows": 1, "dtype": "float32"}
        return DispatchRequest(**(fields | changes))

    def still_serves(self) -> None:
        with harness.Engine(self, self.digest) as engine:
            assert engine.ask(torch.ones(1, 64), [(0, 0)], [1.0])[0].status is Status.OK


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    folder = tmp_path_factory.mktemp("worker")
    model = harness.make_model("mixtral", folder / "model")
    config = harness.make_config("w", model.source, harness.short_dir(tmp_path_factory))
    with harness.worker_process(config) as (process, said):
        where = said()["control_endpoint"]
        with harness.client_of(where) as client:
            assert harness.prepare(client, "op", harness.all_experts()).done
            state = client.request(control.Describe(), 30)
        found = Victim(process.pid, state.digest, state.incarnation, state.endpoint, where)
        found.still_serves()
        yield found
        found.still_serves()
        assert process.poll() is None


def test_bytes_that_are_no_message_end_their_connection(victim: Victim) -> None:
    header = stream._HEADER.pack(stream._MAGIC, 2, 8, 64, *[0] * 12)

    def send(data: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(victim.endpoint.removeprefix("unix://"))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                raw.sendall(data)

    flat(lambda number: send_all(broken(header + bytes(128), header), send, number), victim.memory)


def test_dispatches_that_make_no_sense_are_refused(victim: Victim) -> None:
    request = victim.dispatch()
    hidden, pairs, weights = bytes(4 * 64), bytes(8), bytes(4)
    header = either(structures(request), broken(msgspec.msgpack.encode(request)))

    def send(data: bytes) -> None:
        rng = random.Random(data)
        frames = [
            rng.choice((frame, frame, frame[: rng.randrange(9)], b"", data)) for frame in (hidden, pairs, weights)
        ]
        peer = harness.Stranger(victim.endpoint)
        try:
            peer.send(data, *frames[: rng.choice((3, 3, 3, 2, 0))])
            if readable(data):
                reply = msgspec.msgpack.decode(peer.receive()[0], type=DispatchReply)
                assert reply.reason or reply.status in (Status.OK, Status.NOT_RESIDENT)
        finally:
            peer.close()

    flat(lambda number: send_all(header, send, number), victim.memory)


def readable(data: bytes) -> bool:
    """Whether these bytes are the header of a dispatch, which has to be answered."""
    try:
        dispatch_decoder.decode(data)
    except UNREADABLE:
        return False
    return True


def test_control_requests_that_make_no_sense_are_refused(victim: Victim) -> None:
    valid = [
        control.Describe(),
        control.Prepare("op-2", ((0, 0, ()),)),
        control.AskPrepare("op"),
        control.Rollback("op-3"),
        control.StoreTable(b"table"),
        control.Retire(Epoch(1, 1)),
        control.AskLoads(),
    ]
    frames = either(structures(*valid), broken(*map(msgspec.msgpack.encode, valid)))
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.connect(victim.control_endpoint)

        def send(data: bytes) -> None:
            dealer.send(data)
            assert dealer.poll(60_000), "no answer"
            msgspec.msgpack.decode(dealer.recv(), type=control.ControlReply)

        flat(lambda number: send_all(frames, send, number), victim.memory)
