"""What `bench_serving.py` asks of servers, and how long that takes."""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio
import msgspec
import zmq

from flexpert_proto import generation_pb2 as pb
from flexpert_proto import generation_pb2_grpc
from flexpert_workers.messages.generation import GenerationReply, Sampling, Submit, TokenOutput

PROMPT = "def main():\n    return 1\n"
Call = Callable[[], Coroutine[Any, Any, None]]
_decoder = msgspec.msgpack.Decoder(list[GenerationReply])


@dataclass(frozen=True)
class Times:
    """One stream: ms to its first token, ms a token after it, and ms from the sending of each token to its arrival."""

    ttft_ms: float
    token_ms: float
    delivery_ms: tuple[float, ...]


class Direct:
    """Calls a null engine itself, by the protocol that ingresses speak with it."""

    def __init__(self, endpoint: str, prompt_ids: Sequence[int]) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.connect(endpoint)
        self._prompt_ids = tuple(prompt_ids)
        self._number = 0

    async def stream(self, tokens: int, pace_us: int) -> Times:
        """One stream; it blocks, nothing else runs meanwhile."""
        self._number += 1
        sampling = Sampling(max_tokens=tokens, seed=pace_us, logprobs=0)
        started = time.monotonic()
        self._socket.send(msgspec.msgpack.encode([Submit(self._number, self._prompt_ids, (), sampling)]))
        arrivals: list[tuple[float, float]] = []
        while len(arrivals) < tokens:
            replies = _decoder.decode(self._socket.recv())
            now = time.monotonic()
            arrivals += [(now, reply.logprobs[0]) for reply in replies if isinstance(reply, TokenOutput)]
        return times_of(started, arrivals)


class Grpc:
    """Calls `flexpert.v1.Generation` over one connection."""

    def __init__(self, port: int) -> None:
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self._stub = generation_pb2_grpc.GenerationStub(self._channel)

    async def stream(self, tokens: int, pace_us: int) -> Times:
        """One stream."""
        parameters = pb.SamplingParameters(max_tokens=tokens, seed=pace_us, logprobs=0, ignore_eos=True)
        request = pb.GenerateRequest(text=PROMPT, parameters=parameters)
        started = time.monotonic()
        arrivals: list[tuple[float, float]] = []
        async for response in self._stub.Generate(request):
            now = time.monotonic()
            arrivals += [(now, token.logprob) for token in response.tokens]
        return times_of(started, arrivals)

    async def request(self) -> None:
        """One request of one token."""
        parameters = pb.SamplingParameters(max_tokens=1, seed=0, temperature=1)
        async for response in self._stub.Generate(pb.GenerateRequest(text=PROMPT, parameters=parameters)):
            assert response.finish_reason == pb.FINISH_LENGTH, response

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()


class Http:
    """One kept connection to `/v1/completions`; as little work as a client can do, so that servers set the pace."""

    def __init__(self, port: int) -> None:
        self._port = port
        body = {"model": "", "prompt": PROMPT, "max_tokens": 1, "temperature": 1.0, "seed": 0}
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        self._request = f"{head}content-length: {len(data)}\r\n\r\n".encode() + data
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def connect(self) -> None:
        """Open the connection."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def request(self) -> None:
        """One request of one token."""
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if b": " in line)
        await self._reader.readexactly(int(fields[b"content-length"]))

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        await self._writer.wait_closed()


def times_of(started: float, arrivals: Sequence[tuple[float, float]]) -> Times:
    """Times of a stream from the (s, engine's stamp in ms) of each token's arrival."""
    first, last = arrivals[0][0], arrivals[-1][0]
    token_ms = (last - first) * 1000 / max(1, len(arrivals) - 1)
    delivery = tuple((now % 1.0 * 1000 - stamp) % 1000 for now, stamp in arrivals)
    return Times((first - started) * 1000, token_ms, delivery)


async def rate(request: Sequence[Call], seconds: float) -> float:
    """Requests a second, each of `request` called again and again, one after another."""
    end = time.monotonic() + seconds
    started = time.monotonic()

    async def repeat(call: Call) -> int:
        count = 0
        while time.monotonic() < end:
            await call()
            count += 1
        return count

    counts = await asyncio.gather(*(repeat(call) for call in request))
    return sum(counts) / (time.monotonic() - started)
