"""A client of the ingress, for the CLI, the demo and tests: streams text, and resumes a stream that broke.

    with GenerationClient("127.0.0.1:9000") as client:
        for piece in client.generate_stream("def ", max_tokens=64, temperature=0):
            print(piece.text, end="", flush=True)

A stream that ends without a finish reason is resumed by sending its tokens and its seed again, to whichever ingress
the address leads to then; the text goes on where it stopped. `AsyncGenerationClient` is the same for asyncio.

GenerationError               what a call can raise; the message says what to do
├── InvalidArgument           the request can never be served; the message names the field
├── UnknownModel              another model is served here
├── Overloaded                the queue is full; `retry_after_s` is the wait predicted
├── Unavailable               no ingress or no engine answered within the tries
└── GenerationFailed          the request itself failed (FINISH_ERROR), or ran past its time-out
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import TracebackType
from typing import Self, Unpack

import grpc
import grpc.aio

from flexpert_proto import generation_pb2 as pb
from flexpert_proto import generation_pb2_grpc
from flexpert_proto.channels import client_channel, client_channel_aio
from flexpert_proto.stream import (
    DEFAULT_TRIES,
    Completion,
    GenerationError,
    GenerationFailed,
    InvalidArgument,
    Overloaded,
    Parameters,
    Piece,
    StreamState,
    Unavailable,
    UnknownModel,
    collect,
    make_request,
    translate,
)

__all__ = [
    "Address",
    "AsyncGenerationClient",
    "Completion",
    "GenerationClient",
    "GenerationError",
    "GenerationFailed",
    "InvalidArgument",
    "Overloaded",
    "Parameters",
    "Piece",
    "Unavailable",
    "UnknownModel",
    "make_request",
]

Address = str | Callable[[], str]
"""`host:port`, or what finds it: called again for each new connection."""

_CHANNEL_OPTIONS = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 2000))


class GenerationClient:
    """Blocking client; usable from several threads, each stream from one.

    Args:
        address: Of the ingress.
        tries: Attempts at one stream, in all.
        credentials: For TLS; None for plain connections.
        server_name: What the server's certificate is for; "" for the host of the address.
        token: The bearer token, where the ingress wants one.
    """

    def __init__(
        self,
        address: Address,
        *,
        tries: int = DEFAULT_TRIES,
        credentials: grpc.ChannelCredentials | None = None,
        server_name: str = "",
        token: str = "",
    ) -> None:
        self._address = address
        self._tries = tries
        self._credentials = credentials
        self._server_name = server_name
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channel = self._connect()

    def _connect(self) -> grpc.Channel:
        return client_channel(_resolve(self._address), self._credentials, self._server_name, _CHANNEL_OPTIONS)

    def _reconnect(self, broken: grpc.Channel) -> None:
        if not isinstance(self._address, str) and self._channel is broken:
            self._channel = self._connect()

    def generate_stream(
        self, prompt: str | Sequence[int], *, timeout_s: float | None = None, **parameters: Unpack[Parameters]
    ) -> Iterator[Piece]:
        """Stream a completion; the last piece has a finish reason. Closing the iterator cancels the request.

        Args:
            prompt: Text, or token ids.
            timeout_s: For the whole stream, resumptions included.
            **parameters: See `Parameters`.

        Raises:
            GenerationError: See the module's tree.
        """
        request = make_request(prompt, **parameters)
        return self._stream(StreamState(request, self._tries, timeout_s, time.monotonic()))

    def generate(
        self, prompt: str | Sequence[int], *, timeout_s: float | None = None, **parameters: Unpack[Parameters]
    ) -> Completion:
        """The same as a whole.

        Raises:
            GenerationError: See the module's tree.
        """
        state = StreamState(make_request(prompt, **parameters), self._tries, timeout_s, time.monotonic())
        return collect(list(self._stream(state)), state)

    def _stream(self, state: StreamState) -> Iterator[Piece]:
        while not state.finished:
            channel = self._channel
            call = generation_pb2_grpc.GenerationStub(channel).Generate(
                state.next_request(), timeout=state.remaining_s(time.monotonic()), metadata=self._metadata
            )
            broken: grpc.RpcError | None = None
            try:
                for response in call:
                    yield state.take(response)
            except grpc.RpcError as error:
                broken = error
            finally:
                call.cancel()
            if not state.finished:
                time.sleep(state.delay_after(broken))
                self._reconnect(channel)

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of `text`.

        Raises:
            GenerationError: See the module's tree.
        """
        try:
            stub = generation_pb2_grpc.GenerationStub(self._channel)
            return tuple(stub.Tokenize(pb.TokenizeRequest(text=text), metadata=self._metadata).ids)
        except grpc.RpcError as error:
            raise translate(error) from error

    def close(self) -> None:
        """Close the connection; streams still open break."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncGenerationClient:
    """The same for asyncio; made and used within one event loop."""

    def __init__(
        self,
        address: Address,
        *,
        tries: int = DEFAULT_TRIES,
        credentials: grpc.ChannelCredentials | None = None,
        server_name: str = "",
        token: str = "",
    ) -> None:
        self._address = address
        self._tries = tries
        self._credentials = credentials
        self._server_name = server_name
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channel = self._connect()
        self._retired: list[grpc.aio.Channel] = []

    def _connect(self) -> grpc.aio.Channel:
        return client_channel_aio(_resolve(self._address), self._credentials, self._server_name, _CHANNEL_OPTIONS)

    def _reconnect(self, broken: grpc.aio.Channel) -> None:
        if not isinstance(self._address, str) and self._channel is broken:
            self._retired.append(broken)
            self._channel = self._connect()

    async def generate_stream(
        self, prompt: str | Sequence[int], *, timeout_s: float | None = None, **parameters: Unpack[Parameters]
    ) -> AsyncIterator[Piece]:
        """Stream a completion; the last piece has a finish reason. `aclose()` of the iterator cancels the request.

        Args:
            prompt: Text, or token ids.
            timeout_s: For the whole stream, resumptions included.
            **parameters: See `Parameters`.

        Raises:
            GenerationError: See the module's tree.
        """
        state = StreamState(make_request(prompt, **parameters), self._tries, timeout_s, time.monotonic())
        async for piece in self._stream(state):
            yield piece

    async def generate(
        self, prompt: str | Sequence[int], *, timeout_s: float | None = None, **parameters: Unpack[Parameters]
    ) -> Completion:
        """The same as a whole.

        Raises:
            GenerationError: See the module's tree.
        """
        state = StreamState(make_request(prompt, **parameters), self._tries, timeout_s, time.monotonic())
        return collect([piece async for piece in self._stream(state)], state)

    async def _stream(self, state: StreamState) -> AsyncIterator[Piece]:
        while not state.finished:
            channel = self._channel
            call = generation_pb2_grpc.GenerationStub(channel).Generate(
                state.next_request(), timeout=state.remaining_s(time.monotonic()), metadata=self._metadata
            )
            broken: grpc.RpcError | None = None
            try:
                async for response in call:
                    yield state.take(response)
            except grpc.RpcError as error:
                broken = error
            finally:
                call.cancel()
            if not state.finished:
                await asyncio.sleep(state.delay_after(broken))
                self._reconnect(channel)

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of `text`.

        Raises:
            GenerationError: See the module's tree.
        """
        try:
            stub = generation_pb2_grpc.GenerationStub(self._channel)
            return tuple((await stub.Tokenize(pb.TokenizeRequest(text=text), metadata=self._metadata)).ids)
        except grpc.RpcError as error:
            raise translate(error) from error

    async def close(self) -> None:
        """Close the connections; streams still open break."""
        for channel in (*self._retired, self._channel):
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _resolve(address: Address) -> str:
    return address if isinstance(address, str) else address()
