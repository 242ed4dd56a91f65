"""Clients that send what is no request, leave early, or never read: the right error, nothing left behind, memory flat.

The ingress is a process of its own, so that a crash shows and its memory is its own. `FLEXPERT_FRAMES=10000` sends that
many malformed frames at each port instead of a few.
"""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import msgspec
import psutil
import pytest
import zmq
from google.protobuf.message import Message
from ingress_fake_engine import FakeEngine, Options, expected_token
from ingress_fake_pool import FakePool
from ingress_program import ingress_process
from malformed import (
    HTTP,
    NUM_FRAMES,
    bodies,
    broken,
    either,
    flat,
    messages,
    send_all,
    send_and_leave,
    structures,
)

from flexpert_proto import generation_pb2 as pb
from flexpert_proto import open_inference_pb2 as oip
from flexpert_proto.client import AsyncGenerationClient
from flexpert_workers.engine.frontend import Frontend
from flexpert_workers.ingress import Ingress
from flexpert_workers.messages.generation import Cancel, GenerationReply, Ping, Pong, Sampling, Submit

pytestmark = pytest.mark.timeout(max(300, NUM_FRAMES))
Start = Callable[..., Any]
GENERATE = "/flexpert.v1.Generation/Generate"
INFER = "/inference.GRPCInferenceService/ModelInfer"
TOKENIZE = "/flexpert.v1.Generation/Tokenize"


@dataclass(frozen=True)
class Victim:
    """An ingress process."""

    process: asyncio.subprocess.Process
    grpc_port: int
    http_port: int

    def memory(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)


@pytest.fixture
async def victim(pool: FakePool, start_engine: Start) -> AsyncIterator[Victim]:
    pool.set_engines({"a": start_engine().endpoint})
    async with ingress_process(pool) as (process, ports):
        found = Victim(process, ports["grpc_port"], ports["http_port"])
        await still_serves(found)
        yield found
        await still_serves(found)
        assert process.returncode is None


async def still_serves(victim: Victim) -> None:
    async with AsyncGenerationClient(f"127.0.0.1:{victim.grpc_port}") as client:
        done = await client.generate((1, 2), max_tokens=3, seed=5)
    assert done.token_ids == tuple(expected_token((1, 2), 5, position) for position in range(3))
    status, _ = await asyncio.to_thread(post, victim.http_port, b'{"prompt": "import", "max_tokens": 2}')
    assert status == 200


def post(port: int, body: bytes, path: str = "/v1/completions") -> tuple[int, bytes]:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    answer = talk(port, head + body)
    return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]


def talk(port: int, data: bytes) -> bytes:
    """Send, and read until the other side ends it."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(data)
        parts = []
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts)


GENERATE_FRAMES = (
    pb.GenerateRequest(text="import os", parameters=pb.SamplingParameters(max_tokens=3, stop=["a"], logprobs=2)),
    pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 2, 3]), resume_token_ids=[4, 5], model="tiny"),
)
INFER_FRAME = oip.ModelInferRequest(
    model_name="tiny",
    inputs=[oip.ModelInferRequest.InferInputTensor(name="text_input", datatype="BYTES", shape=[1])],
    raw_input_contents=[b"\x02\x00\x00\x00ab"],
    parameters={"max_tokens": oip.InferParameter(int64_param=2)},
)
RIGHT_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@pytest.mark.parametrize(
    ("method", "valid"),
    [(GENERATE, GENERATE_FRAMES), (INFER, (INFER_FRAME,)), (TOKENIZE, (pb.TokenizeRequest(text="import os"),))],
)
async def test_malformed_messages_get_the_right_status(victim: Victim, method: str, valid: tuple[Message, ...]) -> None:
    frames = either(broken(*(one.SerializeToString() for one in valid)), messages(type(valid[0]), *valid))

    def attack(number: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{victim.grpc_port}") as channel:
            call = channel.unary_stream(method)

            def send(data: bytes) -> None:
                try:
                    for _ in call(data, timeout=60):
                        pass
                except grpc.RpcError as error:
                    assert error.code() in RIGHT_STATUSES, error  # noqa: PT017 - a wrong one is the failure

            send_all(frames, send, number)

    await asyncio.to_thread(flat, attack, victim.memory)


COMPLETION = {"model": "tiny", "prompt": ["import", "os"], "max_tokens": 2, "n": 1, "stop": ["a"], "logprobs": 1}
CHAT = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "max_tokens": 2, "tools": []}
OTHER = ("stream", "seed", "user", "metadata", "other")


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)])
async def test_malformed_bodies_get_openais_errors(victim: Victim, path: str, body: dict[str, Any]) -> None:
    def attack(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", victim.http_port, timeout=60)

        def check(data: bytes) -> None:
            connection.request("POST", path, data)
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status in (200, 400, 404), (answer.status, said)
            if answer.status != 200:
                error = json.loads(said)["error"]
                assert error["type"] == "invalid_request_error"
                assert error["message"]

        send_all(either(broken(json.dumps(body).encode()), bodies(body, *OTHER)), check, number)
        connection.close()

    await asyncio.to_thread(flat, attack, victim.memory)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")


@pytest.mark.parametrize(("frame", "port"), [(HTTP, "http_port"), (PREFACE, "grpc_port")], ids=["http", "grpc"])
async def test_what_is_no_request_at_all_ends_its_connection(victim: Victim, frame: bytes, port: str) -> None:
    def attack(number: int) -> None:
        send_all(broken(frame), lambda data: send_and_leave(getattr(victim, port), data), number)

    await asyncio.to_thread(flat, attack, victim.memory)


async def test_memory_is_flat(victim: Victim) -> None:
    """Rounds of requests, errors and early ends; what later rounds add is bounded."""

    def attack() -> None:
        asks = [
            b'{"prompt": "import os", "max_tokens": 20, "logprobs": 5, "stream": true}',
            b'{"prompt": "import os", "top_p": 7}',
            b"\xff" * 5000,
            b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 5, "n": 4}',
        ]
        for body in asks:
            post(victim.http_port, body, "/v1/chat/completions" if b"messages" in body else "/v1/completions")
        with socket.create_connection(("127.0.0.1", victim.http_port), timeout=30) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 9000
            )

    def rounds(number: int) -> None:
        for _ in range(number):
            attack()

    await asyncio.to_thread(flat, rounds, victim.memory, max(120, NUM_FRAMES // 25))


async def ended(ingress: Ingress) -> None:
    async with asyncio.timeout(60):
        while ingress.figures().gauge("ingress_streams"):  # noqa: ASYNC110 - counters are polled, as Prometheus does
            await asyncio.sleep(0.01)


async def test_clients_that_leave_early_leave_nothing_behind(
    pool: FakePool, start_engine: Start, start_ingress: Start
) -> None:
    engine = start_engine(delay_s=0.01)
    pool.set_engines({"a": engine.endpoint})
    body = b'{"prompt": "import os", "max_tokens": 200, "stream": true}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with (
        start_ingress() as ingress,
        grpc.aio.insecure_channel(f"127.0.0.1:{ingress.grpc_port}") as channel,
    ):
        tasks = len(asyncio.all_tasks())
        for number in range(40):
            reader, writer = await asyncio.open_connection("127.0.0.1", ingress.http_port)
            writer.write((head + body)[: len(head + body) - number % 3])
            if number % 3 == 0:
                await reader.readuntil(b"data: ")
            writer.close()
            call = channel.unary_stream(GENERATE)(GENERATE_FRAMES[1].SerializeToString())
            if number % 2:
                await call.read()
            call.cancel()
        await ended(ingress)
        async with asyncio.timeout(60):
            while len(asyncio.all_tasks()) > tasks + 2:  # noqa: ASYNC110 - what is left over ends by itself
                await asyncio.sleep(0.01)


NARROW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535))
"""A client's receive window that does not grow."""


async def test_readers_that_stall_are_cut_off(pool: FakePool, start_engine: Start, start_ingress: Start) -> None:
    engine = start_engine()
    pool.set_engines({"a": engine.endpoint})
    content = {"prompt": "a", "max_tokens": 250, "logprobs": 20, "n": 60, "stream": True, "ignore_eos": True}
    body = json.dumps(content).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    request = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=[1]),
        parameters=pb.SamplingParameters(max_tokens=250, logprobs=20, ignore_eos=True),
    )
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.setblocking(False)
        async with (
            start_ingress(stall_timeout_s=1.0) as ingress,
            grpc.aio.insecure_channel(f"127.0.0.1:{ingress.grpc_port}", options=NARROW) as channel,
        ):
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, ("127.0.0.1", ingress.http_port))
            await loop.sock_sendall(slow, head + body)
            calls = [channel.unary_stream(GENERATE)(request.SerializeToString()) for _ in range(8)]
            async with asyncio.timeout(60):
                while ingress.figures().counter("ingress_stalled") < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await ended(ingress)
            async with AsyncGenerationClient(f"127.0.0.1:{ingress.grpc_port}") as client:
                await client.generate((1, 2), max_tokens=3)
            for call in calls:
                call.cancel()


@pytest.fixture
def frontend() -> Iterator[Frontend]:
    started = Frontend("127.0.0.1", "", lambda: Pong(1, 2))
    started.start()
    yield started
    started.stop()


def test_an_engines_port_takes_any_frame(frontend: Frontend) -> None:
    asks = [Submit(1, (1, 2), (), Sampling(max_tokens=3, stop_token_ids=(0,))), Cancel(1), Ping()]
    valid = [[message] for message in asks]
    decoder = msgspec.msgpack.Decoder(list[GenerationReply])
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.connect(frontend.endpoint)

        def send(data: bytes) -> None:
            dealer.send_multipart([data, data] if len(data) % 7 == 0 else [data])

        send_all(either(broken(*map(msgspec.msgpack.encode, valid)), structures(*valid)), send)
        dealer.send(msgspec.msgpack.encode([Ping()]))
        assert dealer.poll(30_000)
        assert decoder.decode(dealer.recv()) == [Pong(1, 2)]
        assert frontend._thread.is_alive()


class Babbler(FakeEngine):
    """An engine that answers with what is no batch."""

    answer = b""

    def _send(self, peer: bytes, replies: Any) -> None:
        self._socket.send_multipart([peer, self.answer])


async def test_an_engine_that_speaks_nonsense_is_left(
    pool: FakePool, start_engine: Start, start_ingress: Start
) -> None:
    babbler = Babbler(Options())
    stopping = threading.Event()

    def run() -> None:
        while not stopping.is_set() and not babbler.turn(0.02):
            babbler.answer = b"\xc1\xff" + babbler.answer[:20]
        babbler.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        pool.set_engines({"a": babbler.endpoint, "b": start_engine().endpoint})
        async with (
            start_ingress() as ingress,
            AsyncGenerationClient(f"127.0.0.1:{ingress.grpc_port}") as client,
        ):
            for seed in range(8):
                done = await client.generate((1, 2), max_tokens=3, seed=seed)
                assert done.token_ids == tuple(expected_token((1, 2), seed, position) for position in range(3))
    finally:
        stopping.set()
        thread.join()
