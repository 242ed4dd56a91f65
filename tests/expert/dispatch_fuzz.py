"""Has atheris find bytes that a worker does not survive as a dispatch. `test_dispatch_fuzz` runs it as a program.

python tests/expert/dispatch_fuzz.py -atheris_runs=100000
"""

import logging
import sys
from typing import Any

import atheris
import msgspec

with atheris.instrument_imports(include=["flexpert_workers.transport", "flexpert_workers.expert.dispatch_server"]):
    from flexpert_workers.expert import dispatch_server
    from flexpert_workers.transport import stream

from flexpert_workers.messages import UNREADABLE
from flexpert_workers.messages.dispatch import DispatchReply, DispatchRequest, Status
from flexpert_workers.routing import Epoch

IDENTITY = ("pool", "digest", "incarnation")
HIDDEN = 8


class NoExperts:
    """A store that lacks everything: what comes as far as this has been read."""

    num_layers, num_experts = 2, 8

    def borrow(self, layer: int, experts: Any) -> tuple[None, tuple[int, ...]]:
        return None, (0,)


class NoMeter:
    def refused(self) -> None:
        """Nothing is measured."""


def server() -> dispatch_server.DispatchServer:
    nothing: Any = None
    store: Any = NoExperts()
    meter: Any = NoMeter()
    return dispatch_server.DispatchServer(*IDENTITY, HIDDEN, store, nothing, nothing, nothing, meter)


SERVER = server()


def take(data: bytes) -> None:
    """Anything may be refused; nothing may be raised."""
    given = atheris.FuzzedDataProvider(data)
    if given.ConsumeBool():
        try:
            stream._parse(memoryview(given.ConsumeBytes(stream._HEADER.size).ljust(stream._HEADER.size, b"\0")))
        except stream.Disconnected:
            return
    if given.ConsumeBool():
        numbers = [given.ConsumeInt(8) for _ in range(4)]
        names = [given.ConsumeUnicodeNoSurrogates(12), "float32", "bfloat16"]
        dtype = given.PickValueInList(names)
        request = DispatchRequest(*IDENTITY, numbers[0], numbers[1], Epoch(1, 1), *numbers[2:], dtype)
    else:
        try:
            request = dispatch_server._decoder.decode(given.ConsumeBytes(200))
        except UNREADABLE:
            return
    count = given.ConsumeIntInRange(0, 4)
    frames = [memoryview(given.ConsumeBytes(given.ConsumeIntInRange(0, 64))) for _ in range(count)]
    reply = msgspec.msgpack.decode(SERVER.handle(request, frames)[0], type=DispatchReply)
    assert reply.status in (Status.NOT_RESIDENT, Status.REFUSED, Status.FAILED)


if __name__ == "__main__":
    logging.disable()
    atheris.Setup(sys.argv, take)
    atheris.Fuzz()
