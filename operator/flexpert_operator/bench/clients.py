"""One request, and when each piece of its answer came: over OpenAI's HTTP interface, or `flexpert.v1.Generation`."""

import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
import grpc
import grpc.aio

from flexpert_operator.bench.prompts import Ask
from flexpert_proto import generation_pb2 as pb
from flexpert_proto.channels import client_channel_aio
from flexpert_proto.generation_pb2_grpc import GenerationStub

_DATA = b"data:"
_LINE_BYTES = 2**20
_STREAM_S = 6 * 3600.0


@dataclass(frozen=True)
class Sampling:
    """What every request asks for alike."""

    model: str = ""
    temperature: float = 0.0
    ignore_eos: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Answer:
    """One stream.

    Attributes:
        sent: When the request was sent, on the monotonic clock.
        queued_s: How long it waited here for its turn, when the number of open ones is bounded.
        pieces: When each piece with text came.
        prompt_tokens: As the server counted; 0 where it does not say.
        output_tokens: As the server counted, else the number of pieces.
        ended: When the stream ended.
        error: Why it failed, or empty.
    """

    sent: float
    queued_s: float = 0.0
    pieces: list[float] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    ended: float = 0.0
    error: str = ""

    def take(self, text: str) -> None:
        """A piece has come."""
        self.pieces.append(time.monotonic())
        self.text.append(text)


class Client(Protocol):
    """Sends requests; each call is a stream of its own."""

    async def ask(self, ask: Ask) -> Answer:
        """Send a request, and read its answer to the end; what goes wrong is in `Answer.error`."""
        ...


class OpenAiClient:
    """Any server with OpenAI's completions or chat completions."""

    def __init__(self, session: aiohttp.ClientSession, path: str, sampling: Sampling, server_name: str = "") -> None:
        self._session = session
        self._path = path
        self._sampling = sampling
        self._server_name = server_name or None

    async def ask(self, ask: Ask) -> Answer:
        """See `Client`."""
        answer = Answer(time.monotonic())
        try:
            asked = self._session.post(self._path, json=self._body(ask), server_hostname=self._server_name)
            async with asked as response:
                if response.status == 200:
                    await self._read(response, answer)
                else:
                    answer.error = f"status {response.status}: {(await response.text())[:300]}"
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        answer.ended = time.monotonic()
        answer.output_tokens = answer.output_tokens or len(answer.pieces)
        return answer

    def _body(self, ask: Ask) -> dict[str, Any]:
        asked: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
        asked |= {"temperature": self._sampling.temperature, "max_tokens": ask.max_tokens}
        asked |= {"ignore_eos": True} if self._sampling.ignore_eos else {}
        asked |= {"model": self._sampling.model} if self._sampling.model else {}
        if self._path.endswith("chat/completions"):
            return asked | {"messages": [{"role": "user", "content": ask.prompt}]} | dict(self._sampling.extra)
        return asked | {"prompt": ask.prompt} | dict(self._sampling.extra)

    async def _read(self, response: aiohttp.ClientResponse, answer: Answer) -> None:
        """Server-sent events until `[DONE]`; a stream without it is broken."""
        finished = False
        async for line in response.content:
            if not line.startswith(_DATA):
                continue
            data = line[len(_DATA) :].strip()
            if data == b"[DONE]":
                return
            event = json.loads(data)
            if "error" in event:
                answer.error = str(event["error"])
                return
            finished |= _take(event, answer)
        if not finished:
            answer.error = "the stream ended without [DONE]"


def _take(event: Mapping[str, Any], answer: Answer) -> bool:
    """Note what an event tells; returns whether it has a finish reason."""
    usage = event.get("usage") or {}
    answer.prompt_tokens = usage.get("prompt_tokens") or answer.prompt_tokens
    answer.output_tokens = usage.get("completion_tokens") or answer.output_tokens
    finished = False
    for choice in event.get("choices") or ():
        text = choice.get("text") or (choice.get("delta") or {}).get("content")
        finished |= choice.get("finish_reason") is not None
        if text:
            answer.take(text)
    return finished


class GrpcClient:
    """An ingress's `Generate`."""

    def __init__(self, channel: grpc.aio.Channel, sampling: Sampling, metadata: Mapping[str, str]) -> None:
        self._stub = GenerationStub(channel)
        self._sampling = sampling
        self._metadata = tuple((name.lower(), value) for name, value in metadata.items())

    async def ask(self, ask: Ask) -> Answer:
        """See `Client`."""
        parameters = pb.SamplingParameters(
            max_tokens=ask.max_tokens, temperature=self._sampling.temperature, ignore_eos=self._sampling.ignore_eos
        )
        request = pb.GenerateRequest(model=self._sampling.model, text=ask.prompt, parameters=parameters)
        answer = Answer(time.monotonic())
        reason = pb.FINISH_REASON_UNSPECIFIED
        try:
            async for response in self._stub.Generate(request, metadata=self._metadata, timeout=_STREAM_S):
                if response.tokens:
                    answer.take(response.text)
                    answer.output_tokens += len(response.tokens)
                if response.HasField("usage"):
                    answer.prompt_tokens = response.usage.prompt_tokens
                reason, answer.error = response.finish_reason, response.error
        except grpc.aio.AioRpcError as error:
            answer.error = f"{error.code().name}: {error.details()}"
        if not answer.error and reason == pb.FINISH_REASON_UNSPECIFIED:
            answer.error = "the stream ended without a finish reason"
        answer.ended = time.monotonic()
        return answer


@asynccontextmanager
async def openai_client(
    base_url: str,
    path: str,
    sampling: Sampling,
    headers: Mapping[str, str],
    tls: ssl.SSLContext | None,
    server_name: str = "",
) -> AsyncIterator[OpenAiClient]:
    """A client of a server at `http://…`, `https://…`, or `unix:PATH`; its certificate is for `server_name`, else for
    the host of the URL.
    """
    is_socket = base_url.startswith("unix:")
    connector: aiohttp.BaseConnector
    if is_socket:
        connector = aiohttp.UnixConnector(base_url.removeprefix("unix:"), limit=0)
    else:
        connector = aiohttp.TCPConnector(limit=0, ssl=tls if tls is not None else True)
    async with aiohttp.ClientSession(
        "http://forwarded" if is_socket else base_url,
        connector=connector,
        headers=dict(headers),
        timeout=aiohttp.ClientTimeout(total=_STREAM_S),
        read_bufsize=_LINE_BYTES,
        max_line_size=_LINE_BYTES,
    ) as session:
        yield OpenAiClient(session, path, sampling, server_name)


@asynccontextmanager
async def grpc_client(
    lookup: Callable[[], str],
    sampling: Sampling,
    metadata: Mapping[str, str],
    credentials: grpc.ChannelCredentials | None,
    server_name: str = "",
) -> AsyncIterator[GrpcClient]:
    """A client of an ingress; its certificate is for `server_name`, else for what is dialled."""
    async with client_channel_aio(lookup(), credentials, server_name) as channel:
        yield GrpcClient(channel, sampling, metadata)
