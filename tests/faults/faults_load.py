"""A thousand streams at once for minutes, of clients that come and go; and what became of every one of them."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import grpc
import grpc.aio
from faults_clients import MAX_TOKENS, PROMPTS

from flexpert_proto import generation_pb2 as pb
from flexpert_proto.generation_pb2_grpc import GenerationStub

RESIDENTS, STREAMS_OF_RESIDENT = 20, 45
"""Clients that stay, each with so many streams at once: what they are given is compared."""
VISITORS = 100
"""Streams of clients that come for one request, half of them leaving before its end, each with a name of its own."""
TOKENS = (6, 12)
"""Of a request, at least and at most."""
_REQUEST_S = 300.0
_AGAIN_S = 0.5


@dataclass
class Seen:
    """What clients saw.

    Attributes:
        tokens: Given to each resident within the time that counts.
        lost: Streams that ended otherwise than they should, in words.
        refused: Requests that were told to come again; they came again.
    """

    tokens: Counter[str] = field(default_factory=Counter)
    completed: int = 0
    left: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    gap_s: float = 0.0
    most_open: int = 0


class Load:
    """The streams, on an event loop of their own.

    Args:
        address: Of the ingress.
        expected: The reference's tokens for each of `PROMPTS`.
    """

    def __init__(self, address: Callable[[], str], expected: Sequence[tuple[int, ...]]) -> None:
        self.seen = Seen()
        self._address = address
        self._expected = expected
        self._ending = asyncio.Event()
        self._counting = False
        self._open = 0

    async def run(self, seconds: float, warm_up_s: float) -> None:
        """Stream for so long behind the warm-up, and let every stream come to its end."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(RESIDENTS):
                tasks.create_task(self._resident(f"resident-{number}"))
            tasks.create_task(self._visitors())
            await asyncio.sleep(warm_up_s)
            self._counting = True
            await asyncio.sleep(seconds)
            self._counting = False
            self._ending.set()

    async def _resident(self, name: str) -> None:
        async with self._channel() as channel, asyncio.TaskGroup() as streams:
            for number in range(STREAMS_OF_RESIDENT):
                streams.create_task(self._again_and_again(channel, name, random.Random(f"{name}/{number}")))

    async def _visitors(self) -> None:
        async with self._channel() as channel, asyncio.TaskGroup() as streams:
            for number in range(VISITORS):
                rng = random.Random(number)
                streams.create_task(self._again_and_again(channel, f"visitor-{number}", rng, leaves=True))

    async def _again_and_again(
        self, channel: grpc.aio.Channel, name: str, rng: random.Random, leaves: bool = False
    ) -> None:
        number = 0
        while not self._ending.is_set():
            number += 1
            client = f"{name}-{number}" if leaves else name
            after = rng.randint(1, TOKENS[0]) if leaves and rng.random() < 0.5 else None
            try:
                await self._stream(channel, client, rng, after)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    self.seen.refused += 1
                    await asyncio.sleep(_AGAIN_S)
                else:
                    self.seen.lost.append(f"{client}: {error.code().name}: {error.details()}")

    async def _stream(self, channel: grpc.aio.Channel, client: str, rng: random.Random, after: int | None) -> None:
        prompt, wanted = rng.randrange(len(PROMPTS)), rng.randint(*TOKENS)
        assert wanted <= MAX_TOKENS
        parameters = pb.SamplingParameters(max_tokens=wanted, temperature=0, ignore_eos=True)
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=PROMPTS[prompt]), parameters=parameters)
        received: list[int] = []
        reason, began = pb.FINISH_REASON_UNSPECIFIED, time.monotonic()
        last = began
        self._open += 1
        self.seen.most_open = max(self.seen.most_open, self._open)
        try:
            metadata = (("x-flexpert-client", client),)
            call = GenerationStub(channel).Generate(request, metadata=metadata, timeout=_REQUEST_S)
            async for response in call:
                now = time.monotonic()
                self._note(client, response, received, now - began, now - last)
                last, reason = now, response.finish_reason
                if after is not None and len(received) >= after and not reason:
                    call.cancel()
                    self.seen.left += 1
                    return
        finally:
            self._open -= 1
        if reason != pb.FINISH_LENGTH or tuple(received) != self._expected[prompt][:wanted]:
            self.seen.lost.append(f"{client}: prompt {prompt}, {wanted} tokens: {received}, {reason}")
        else:
            self.seen.completed += 1

    def _note(self, client: str, response: pb.GenerateResponse, received: list[int], since: float, gap: float) -> None:
        ids = [token.id for token in response.tokens]
        if ids and not received:
            self.seen.ttft_s.append(since)
        elif ids:
            self.seen.gap_s = max(self.seen.gap_s, gap)
        received.extend(ids)
        if self._counting and client.startswith("resident"):
            self.seen.tokens[client] += len(ids)

    def _channel(self) -> grpc.aio.Channel:
        """A connection of its own."""
        return grpc.aio.insecure_channel(self._address(), options=[("grpc.use_local_subchannel_pool", 1)])
