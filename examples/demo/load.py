"""Steady load: a fixed number of clients, each streaming one greedy completion every few seconds."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Sequence

from records import Request

from flexpert_proto.client import AsyncGenerationClient, GenerationError

REQUEST_TIMEOUT_S = 120.0
PERIOD_S = 4.0
"""Between two requests of a client, unless an answer takes longer."""


class SteadyLoad:
    """Concurrent clients over one connection.

    The clients do not resume broken streams: what breaks counts as failed.
    """

    def __init__(self, address: Callable[[], str], prompts: Sequence[str], max_tokens: int, streams: int) -> None:
        self.requests: list[Request] = []
        self._address = address
        self._max_tokens = max_tokens
        self._prompts = itertools.cycle(prompts)
        self._streams = streams
        self._stopping = asyncio.Event()
        self._clients: asyncio.Task[None] | None = None

    def change(self, prompts: Sequence[str]) -> None:
        """From now on ask for other texts."""
        self._prompts = itertools.cycle(prompts)

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
            offsets = (PERIOD_S * position / self._streams for position in range(self._streams))
            await asyncio.gather(*(self._client(client, offset_s) for offset_s in offsets))

    async def _client(self, client: AsyncGenerationClient, offset_s: float) -> None:
        due = time.monotonic() + offset_s
        while not await self._stops_before(due):
            request = Request(started=time.monotonic(), prompt=next(self._prompts))
            self.requests.append(request)
            await self._stream(client, request)
            due = max(due + PERIOD_S, time.monotonic())

    async def _stops_before(self, due: float) -> bool:
        """Wait until `due`, or less long when the load is to end; whether it is."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), due - time.monotonic())
        return self._stopping.is_set()

    async def _stream(self, client: AsyncGenerationClient, request: Request) -> None:
        text = []
        try:
            async for piece in client.generate_stream(
                request.prompt, max_tokens=self._max_tokens, temperature=0, timeout_s=REQUEST_TIMEOUT_S
            ):
                request.arrivals.append((time.monotonic(), len(piece.tokens)))
                text.append(piece.text)
            request.text = "".join(text)
        except GenerationError as error:
            request.error = f"{type(error).__name__}: {error}"
        request.finished = time.monotonic()
