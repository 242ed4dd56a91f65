"""A null engine for `bench_serving.py`: speaks the engines' protocol, computes nothing.

    python serving_engine.py      prints its endpoint

Each step gives every running request one token, in one batch an ingress, as an engine does. A request's seed is the
time between its steps in microseconds; 0 does not wait. A token's log-probability, where asked for, is when it was
sent: milliseconds of the machine's monotonic clock, modulo a second.
"""

import time

import msgspec
import zmq

from flexpert_workers.messages.generation import (
    Finish,
    GenerationReply,
    GenerationRequest,
    Ping,
    Pong,
    Submit,
    TokenOutput,
)

TOKEN = 300
_decoder = msgspec.msgpack.Decoder(list[GenerationRequest])
_encoder = msgspec.msgpack.Encoder()


class NullEngine:
    """Requests, and when each gets its next token."""

    def __init__(self) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.bind("tcp://127.0.0.1:*")
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._running: dict[tuple[bytes, int], tuple[Submit, int, float]] = {}

    def run(self) -> None:
        """Until killed."""
        while True:
            self._receive()
            self._step()

    def _receive(self) -> None:
        wait_s = 1.0
        if self._running:
            wait_s = max(0.0, min(due for _, _, due in self._running.values()) - time.monotonic())
        ready = self._socket.poll(int(wait_s * 1000))
        while ready:
            source, payload = self._socket.recv_multipart()
            for message in _decoder.decode(payload):
                self._accept(source, message)
            ready = self._socket.poll(0)

    def _accept(self, source: bytes, message: GenerationRequest) -> None:
        if isinstance(message, Ping):
            self._socket.send_multipart([source, _encoder.encode([Pong(len(self._running), 0)])])
        elif isinstance(message, Submit):
            self._running[source, message.request] = (message, 0, 0.0)
        else:
            self._running.pop((source, message.request), None)

    def _step(self) -> None:
        now = time.monotonic()
        batches: dict[bytes, list[GenerationReply]] = {}
        for key, (submit, position, due) in list(self._running.items()):
            if due > now:
                continue
            is_last = position + 1 >= submit.sampling.max_tokens
            if is_last:
                del self._running[key]
            else:
                self._running[key] = (submit, position + 1, max(due, now) + submit.sampling.seed * 1e-6)
            stamp = () if submit.sampling.logprobs is None else (now % 1.0 * 1000,)
            finish = Finish.LENGTH if is_last else None
            batches.setdefault(key[0], []).append(TokenOutput(key[1], (TOKEN,), position, stamp, finish=finish))
        for source, replies in batches.items():
            self._socket.send_multipart([source, _encoder.encode(replies)])


def main() -> None:
    engine = NullEngine()
    print(engine.endpoint, flush=True)
    engine.run()


if __name__ == "__main__":
    main()
