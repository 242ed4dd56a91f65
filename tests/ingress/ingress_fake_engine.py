"""An engine without a model: speaks messages/generation.py, and says what a rule says.

Its text is a function of the request alone: token i of a request is `expected_token(prompt, seed, i)`; so a stream
that crosses engines must come out as if it had not. Run as a process, to be killed:

    python tests/ingress/ingress_fake_engine.py '{"delay_s": 0.01, "max_running": 4}'

prints its endpoint. The ingress's tests also drive it in-process, through `FakeEngine`.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import zmq

from flexpert_workers.messages.generation import (
    Cancel,
    Finish,
    GenerationReply,
    GenerationRequest,
    Ping,
    Pong,
    Rejected,
    Submit,
    TokenOutput,
)

VOCABULARY = 2000


def expected_token(prompt: Sequence[int], seed: int, position: int) -> int:
    """Any function of the request and the position will do; it stays clear of the special token 0."""
    return 1 + (sum(prompt) * 31 + seed * 17 + position * 97) % (VOCABULARY - 1)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine behaves."""

    endpoint: str = "tcp://127.0.0.1:*"
    delay_s: float = 0.0
    max_running: int = 1_000_000
    draining: bool = False
    invalid_field: str = ""
    broken: bool = False
    die_after: int | None = None
    repeat_last: bool = False
    skip_at: int | None = None
    script: tuple[int, ...] = ()


@dataclass
class _Running:
    peer: bytes
    submit: Submit
    position: int


class FakeEngine:
    """One loop turn: take messages in, give each running request one token."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.submitted: list[Submit] = []
        self.cancelled: list[int] = []
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(options.endpoint)
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._running: dict[tuple[bytes, int], _Running] = {}
        self._num_tokens = 0

    def run(self) -> None:
        """Until the process is killed, or `die_after` tokens were sent."""
        while not self.turn(0.05):
            pass

    def turn(self, timeout_s: float) -> bool:
        """One turn; returns whether it is time to die."""
        timeout_ms = int(self.options.delay_s * 1000) if self._running else int(timeout_s * 1000)
        deadline = time.monotonic() + timeout_ms / 1000
        while self._socket.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            peer, payload = self._socket.recv_multipart()
            for message in msgspec.msgpack.decode(payload, type=list[GenerationRequest]):
                self._handle(peer, message)
        return self._step()

    def close(self) -> None:
        """End the sockets, as the death of the process would."""
        self._context.destroy(linger=0)

    def _handle(self, peer: bytes, message: GenerationRequest) -> None:
        if isinstance(message, Ping):
            self._send(peer, [Pong(len(self._running), 0)])
        elif isinstance(message, Cancel):
            self.cancelled.append(message.request)
            self._running.pop((peer, message.request), None)
        else:
            self._submit(peer, message)

    def _submit(self, peer: bytes, message: Submit) -> None:
        self.submitted.append(message)
        number, options = message.request, self.options
        if options.draining:
            self._send(peer, [Rejected(number, "draining", "draining")])
        elif options.invalid_field:
            self._send(peer, [Rejected(number, "invalid", "does not fit into the cache", options.invalid_field)])
        elif options.broken:
            self._send(peer, [Rejected(number, "error", "the numbers came out as NaN")])
        elif len(self._running) >= options.max_running:
            self._send(peer, [Rejected(number, "overloaded", "full")])
        else:
            self._running[(peer, number)] = _Running(peer, message, len(message.output_ids))

    def _step(self) -> bool:
        batches: dict[bytes, list[GenerationReply]] = {}
        for key, running in list(self._running.items()):
            batches.setdefault(running.peer, []).append(self._next(key, running))
            self._num_tokens += 1
        for peer, replies in batches.items():
            self._send(peer, replies)
        return self.options.die_after is not None and self._num_tokens >= self.options.die_after

    def _next(self, key: tuple[bytes, int], running: _Running) -> TokenOutput:
        submit, position = running.submit, running.position
        if position == self.options.skip_at and not submit.output_ids:
            position = running.position = position + 1
        token = self._token(submit, position)
        again = self.options.repeat_last and position > 0
        ids = (self._token(submit, position - 1), token) if again else (token,)
        running.position = position + 1
        finish = None
        if token in submit.sampling.stop_token_ids:
            finish = Finish.STOP
        elif running.position >= submit.sampling.max_tokens:
            finish = Finish.LENGTH
        if finish is not None:
            del self._running[key]
        wanted = submit.sampling.logprobs
        return TokenOutput(
            submit.request,
            ids,
            position - again,
            logprobs=() if wanted is None else (-0.5,) * len(ids),
            top=() if not wanted else (tuple((n, -float(n)) for n in range(1, wanted + 1)),) * len(ids),
            finish=finish,
            cached_tokens=3,
        )

    def _token(self, submit: Submit, position: int) -> int:
        if self.options.script:
            return self.options.script[position]
        return expected_token(submit.prompt_ids, submit.sampling.seed, position)

    def _send(self, peer: bytes, replies: list[GenerationReply]) -> None:
        self._socket.send_multipart([peer, msgspec.msgpack.encode(replies)])


def main() -> None:
    engine = FakeEngine(msgspec.convert(json.loads(sys.argv[1]), Options))
    print(engine.endpoint, flush=True)
    engine.run()


if __name__ == "__main__":
    main()
