"""Sends every request at its time, and waits for all answers."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

from flexpert_operator.bench.clients import Answer, Client
from flexpert_operator.bench.prompts import Ask


@dataclass(frozen=True)
class Run:
    """What came of a load.

    Attributes:
        seconds: From the beginning to the end of the last answer.
        late_s: The longest that a request was sent after its time: how far this machine fell behind.
    """

    asks: Sequence[Ask]
    answers: Sequence[Answer]
    seconds: float
    late_s: float


async def drive(
    client: Client,
    asks: Sequence[Ask],
    at: NDArray,  # type: ignore[type-arg]
    max_concurrency: int | None,
    on_answer: Callable[[Answer], None],
) -> Run:
    """Send `asks[i]` at `at[i]` seconds, whatever comes of the others; at most `max_concurrency` are open at once.

    Args:
        client: Sends one.
        asks: The requests.
        at: [requests] ascending.
        max_concurrency: A request beyond it waits for its turn; None: none waits.
        on_answer: Told of each answer as it ends.
    """
    turns = asyncio.Semaphore(max_concurrency or len(asks) or 1)
    started, late = time.monotonic(), 0.0

    async def send(ask: Ask) -> Answer:
        due = time.monotonic()
        async with turns:
            queued = time.monotonic() - due
            answer = await client.ask(ask)
        answer.queued_s = queued
        on_answer(answer)
        return answer

    tasks = []
    for ask, when in zip(asks, at.tolist(), strict=True):
        wait_s = started + when - time.monotonic()
        late = max(late, -wait_s)
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        tasks.append(asyncio.create_task(send(ask)))
    answers = await asyncio.gather(*tasks)
    return Run(asks, answers, time.monotonic() - started, late)
