"""Steady load: a fixed number of clients, each streaming one greedy completion after another."""

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping

from records import Request

from flexpert_proto.client import AsyncGenerationClient, GenerationError

REQUEST_TIMEOUT_S = 180.0


class SteadyLoad:
    """Concurrent clients over one connection; every answer is compared with its reference.

    The clients do not resume broken streams: what breaks counts as failed.
    """

    def __init__(
        self, address: Callable[[], str], references: Mapping[str, str], max_tokens: int, streams: int
    ) -> None:
        self.requests: list[Request] = []
        self._address = address
        self._references = references
        self._max_tokens = max_tokens
        self._prompts = itertools.cycle(references)
        self._streams = streams
        self._stopping = asyncio.Event()
        self._clients: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; call it within a running event loop."""
        self._clients = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Let the running streams end and raise what a client raised."""
        self._stopping.set()
        if self._clients is not None:
            await self._clients

    async def _run(self) -> None:
        async with AsyncGenerationClient(self._address, tries=1) as client:
            await asyncio.gather(*(self._client(client) for _ in range(self._streams)))

    async def _client(self, client: AsyncGenerationClient) -> None:
        while not self._stopping.is_set():
            request = Request(started=time.monotonic(), prompt=next(self._prompts))
            self.requests.append(request)
            await self._stream(client, request)

    async def _stream(self, client: AsyncGenerationClient, request: Request) -> None:
        text = []
        try:
            async for piece in client.generate_stream(
                request.prompt, max_tokens=self._max_tokens, temperature=0, timeout_s=REQUEST_TIMEOUT_S
            ):
                request.arrivals.append((time.monotonic(), len(piece.tokens)))
                text.append(piece.text)
            request.identical = "".join(text) == self._references[request.prompt]
        except GenerationError as error:
            request.error = f"{type(error).__name__}: {error}"
        request.finished = time.monotonic()
