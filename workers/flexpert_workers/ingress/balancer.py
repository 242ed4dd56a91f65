"""Runs a stream to its end on whichever engines it takes. Called by `intake.py`, one coroutine a stream.

When the engine dies, drains or has no room, the stream is submitted to another one, or to the same one once it is
back, with the tokens so far; their positions show that none is lost or repeated.
"""

import enum
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass

from flexpert_workers.errors import FlexpertError, InvalidRequest
from flexpert_workers.ingress.fleet import Fleet
from flexpert_workers.ingress.member import Attempt, Event, Lost
from flexpert_workers.ingress.meter import IngressMeter
from flexpert_workers.ingress.streams import Delta, Stream, TokenGap, merge
from flexpert_workers.messages.generation import Finish, Rejected

log = logging.getLogger(__name__)

MAX_LOSSES_WITHOUT_PROGRESS = 8


class RequestBroke(FlexpertError):
    """This one request could not go on; the message says how it broke."""


class Outcome(enum.Enum):
    """What a batch of events means for an attempt."""

    RUNNING = enum.auto()
    FINISHED = enum.auto()
    REJECTED = enum.auto()
    LOST = enum.auto()


@dataclass(frozen=True)
class Step:
    """What a batch of events comes to.

    Attributes:
        delta: What to tell the client, if anything.
        error: What then ends the stream, if anything.
    """

    delta: Delta | None
    outcome: Outcome
    error: FlexpertError | None = None


class Balancer:
    """Finds engines for streams, and repeats what was interrupted."""

    def __init__(self, fleet: Fleet, meter: IngressMeter, clock: Callable[[], float], *, engine_wait_s: float) -> None:
        self._fleet = fleet
        self._meter = meter
        self._clock = clock
        self._engine_wait_s = engine_wait_s
        self.num_resubmissions = 0
        self.num_tokens = 0

    async def run(self, stream: Stream) -> AsyncGenerator[Delta, None]:
        """What is new in the stream, until a delta has a finish. Closing the iterator cancels at the engine at once.

        Raises:
            InvalidRequest: The engine found the request impossible.
            RequestBroke: The engine could not go on with it, or engine after engine was lost over it.
            Overloaded: No engine had room within the wait.
            NoEngine: No engine was connected within the wait.
        """
        if (end := stream.resume()) is not None:
            yield end
        num_attempts = num_losses = 0
        waiting_since = self._clock()
        while stream.finish is None:
            attempt = await self._submit(stream, waiting_since, resumed=num_attempts > 0 or bool(stream.output_ids))
            self._meter.submitted(stream, attempt.engine, num_attempts)
            num_attempts += 1
            outcome = Outcome.RUNNING
            try:
                while outcome is Outcome.RUNNING:
                    step = read(stream, await attempt.take())
                    outcome = step.outcome
                    if step.delta is not None:
                        num_losses = 0
                        self.num_tokens += len(step.delta.tokens)
                        if stream.first_at is None:
                            self._meter.first_token(stream)
                        yield step.delta
                    if step.error is not None:
                        raise step.error
            finally:
                self._fleet.end(attempt)
            if outcome is Outcome.LOST:
                num_losses += 1
                waiting_since = self._clock()
            if outcome is not Outcome.FINISHED:
                self.num_resubmissions += 1
            if num_losses >= MAX_LOSSES_WITHOUT_PROGRESS:
                raise RequestBroke(f"{num_losses} engines in a row were lost while they ran this request")

    async def _submit(self, stream: Stream, waiting_since: float, *, resumed: bool) -> Attempt:
        wait_s = max(0.0, waiting_since + self._engine_wait_s - self._clock())
        patience_s = stream.caller.patience_s
        return await self._fleet.submit(
            stream.submission,
            wait_s=wait_s if patience_s is None else min(wait_s, patience_s),
            resumed=resumed,
            client=stream.caller.client,
            tokens=(*stream.request.prompt_ids, *stream.output_ids),
        )


def read(stream: Stream, events: Iterable[Event]) -> Step:
    """Take events into the record of the stream, in order, until one decides what becomes of the attempt."""
    deltas: list[Delta] = []
    outcome, error = Outcome.RUNNING, None
    for event in events:
        if isinstance(event, Lost):
            outcome = Outcome.LOST
        elif isinstance(event, Rejected):
            outcome, error = _read_rejection(event)
        elif event.finish in (Finish.CANCELLED, Finish.ERROR):
            outcome = Outcome.LOST
        else:
            try:
                deltas.append(stream.take(event))
            except TokenGap as gap:
                log.warning("an engine skipped tokens, the stream is submitted again: %s", gap)
                outcome = Outcome.LOST
        if stream.finish is not None:
            outcome = Outcome.FINISHED
        if outcome is not Outcome.RUNNING:
            break
    return Step(merge(deltas) if deltas else None, outcome, error)


def _read_rejection(event: Rejected) -> tuple[Outcome, FlexpertError | None]:
    match event.kind:
        case "overloaded" | "draining":
            return Outcome.REJECTED, None
        case "invalid":
            field = event.field or "request"
            return Outcome.REJECTED, InvalidRequest(field, event.message.removeprefix(f"{field}: "))
        case _:
            return Outcome.REJECTED, RequestBroke(event.message)
