"""What every protocol of an ingress calls: lets requests in, checks them, runs their streams, counts their ends.

`service.py` and `open_inference.py` translate their requests to `GenerateRequest` and come here; from here on all
requests are alike.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace

import msgspec

from flexpert_proto import generation_pb2 as pb
from flexpert_workers.errors import FlexpertError
from flexpert_workers.ingress.admission import Admission
from flexpert_workers.ingress.balancer import Balancer
from flexpert_workers.ingress.caller import Caller
from flexpert_workers.ingress.meter import IngressMeter
from flexpert_workers.ingress.model import ModelHolder, ServedModel
from flexpert_workers.ingress.status import status_of
from flexpert_workers.ingress.streams import Delta, Stream
from flexpert_workers.ingress.validate import CheckedRequest, check_request

TEXT_FOR_A_THREAD = 16_384
"""Characters from which on a prompt is tokenised outside the event loop, so that other streams go on."""


@dataclass
class Counts:
    """What came of all requests since the start; `server.py` shows it.

    Attributes:
        ended: How requests ended ("stop", "length", "error", "cancelled", or a gRPC status in lower case) → how many.
    """

    requests: int = 0
    ended: dict[str, int] = field(default_factory=dict)

    def end(self, how: str, num: int = 1) -> None:
        """Count ends of requests."""
        self.ended[how] = self.ended.get(how, 0) + num


class Intake:
    """Lets requests in and runs them; `spend` is told the tokens that a named caller has used."""

    def __init__(
        self,
        models: ModelHolder,
        balancer: Balancer,
        admission: Admission,
        meter: IngressMeter,
        *,
        engine_wait_s: float,
        spend: Callable[[str, int], None] | None = None,
    ) -> None:
        self._models = models
        self._balancer = balancer
        self._admission = admission
        self._meter = meter
        self._engine_wait_s = engine_wait_s
        self._spend = spend
        self.counts = Counts()

    async def model(self) -> ServedModel:
        """The model that is served.

        Raises:
            NoModel: None was named within the wait.
        """
        return await self._models.get(self._engine_wait_s)

    @asynccontextmanager
    async def accept(
        self, requests: Sequence[pb.GenerateRequest], caller: Caller, copies: int = 1
    ) -> AsyncIterator[list[Stream]]:
        """Streams for `copies` of each request, next to each other, for as long as the caller wants them.

        Raises:
            Overloaded: As many streams are open as may be.
            UnknownModel: A request names another model.
            InvalidRequest: A request can never be served.
        """
        num_streams, arrived_at = len(requests) * copies, self._meter.clock()
        self.counts.requests += num_streams
        try:
            with self._admission.slot(num_streams):
                checked = [await self._check(request) for request in requests]
                streams = [Stream(_copy(one, number), caller) for one in checked for number in range(copies)]
                with self._accounted(caller, streams, arrived_at):
                    yield streams
        except (asyncio.CancelledError, GeneratorExit):
            self.counts.end("cancelled", num_streams)
            raise
        except FlexpertError as error:
            self.counts.end(status_of(error).name.lower(), num_streams)
            raise
        for stream in streams:
            self.counts.end(stream.finish.value if stream.finish else "error")

    def run(self, stream: Stream) -> AsyncGenerator[Delta, None]:
        """What is new in a stream, until a delta has a finish. Closing the iterator cancels it at its engine.

        Raises:
            FlexpertError: As `Balancer.run`.
        """
        return self._balancer.run(stream)

    @contextmanager
    def _accounted(self, caller: Caller, streams: Sequence[Stream], arrived_at: float) -> Iterator[None]:
        """Measure streams, and charge their caller for them once they have ended."""
        for stream in streams:
            self._meter.accepted(stream, arrived_at)
        try:
            yield
        finally:
            for stream in streams:
                self._meter.ended(stream)
            self._charge(caller, streams)

    def _charge(self, caller: Caller, streams: Sequence[Stream]) -> None:
        if self._spend is not None:
            used = (len(stream.request.prompt_ids) + len(stream.output_ids) for stream in streams)
            self._spend(caller.token, sum(used))

    async def _check(self, request: pb.GenerateRequest) -> CheckedRequest:
        model = await self.model()
        if len(request.text) < TEXT_FOR_A_THREAD:
            return check_request(request, model, _draw_seed)
        return await asyncio.to_thread(check_request, request, model, _draw_seed)


def _copy(request: CheckedRequest, number: int) -> CheckedRequest:
    """The request for one of its choices: each draws by a seed of its own, the first by the one that was asked for."""
    if not number:
        return request
    seed = (request.sampling.seed + number * 0x9E3779B97F4A7C15) % 2**64
    return replace(request, sampling=msgspec.structs.replace(request.sampling, seed=seed))


def _draw_seed() -> int:
    return secrets.randbits(63)
