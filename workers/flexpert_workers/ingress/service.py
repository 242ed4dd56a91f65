"""`flexpert.v1.Generation`: from a client's call to its stream and back. Registered by `server.py`.

A call takes these hops: `Admission.slot` → `check_request` → `Balancer.run` → one response for each delta.
"""

import asyncio
import secrets
import uuid
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Never

import grpc
import grpc.aio

from flexpert_proto import generation_pb2 as pb
from flexpert_proto import generation_pb2_grpc
from flexpert_workers.errors import FlexpertError, InvalidRequest, Overloaded
from flexpert_workers.ingress.admission import Admission
from flexpert_workers.ingress.balancer import Balancer, RequestBroke
from flexpert_workers.ingress.model import ModelHolder, ServedModel
from flexpert_workers.ingress.streams import Delta, NewToken, Stream
from flexpert_workers.ingress.validate import CheckedRequest, UnknownModel, check_request, encode
from flexpert_workers.messages.generation import Finish

RETRY_AFTER = "retry-after-ms"
SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Generation"].full_name
TEXT_FOR_A_THREAD = 16_384
"""Characters from which on a prompt is tokenised outside the event loop, so that other streams go on."""

Context = grpc.aio.ServicerContext[Any, Any]

_REASONS = {Finish.STOP: pb.FINISH_STOP, Finish.LENGTH: pb.FINISH_LENGTH}


@dataclass
class Counts:
    """What the service did since it started; `http.py` shows it.

    Attributes:
        ended: How requests ended ("stop", "length", "error", "cancelled", or a gRPC status in lower case) → how many.
    """

    requests: int = 0
    tokens: int = 0
    ended: dict[str, int] = field(default_factory=dict)

    def end(self, how: str) -> None:
        """Count the end of a request."""
        self.ended[how] = self.ended.get(how, 0) + 1


class GenerationService(generation_pb2_grpc.GenerationServicer):
    """Serves streams, one coroutine each."""

    def __init__(self, models: ModelHolder, balancer: Balancer, admission: Admission, *, engine_wait_s: float) -> None:
        self._models = models
        self._balancer = balancer
        self._admission = admission
        self._engine_wait_s = engine_wait_s
        self.counts = Counts()

    # Responses are written, not yielded: so a cancelled call ends here, at whatever it waits for, and at once.
    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        """See generation.proto."""
        self.counts.requests += 1
        try:
            with self._admission.slot():
                checked = await self._check(request)
                self.counts.end(await self._stream(checked, context))
        except asyncio.CancelledError:
            self.counts.end("cancelled")
            raise
        except FlexpertError as error:
            status = status_of(error)
            self.counts.end(status.name.lower())
            await _abort(context, status, error)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:  # noqa: N802
        """See generation.proto."""
        try:
            model = await self._models.get(self._engine_wait_s)
            return pb.TokenizeResponse(ids=await asyncio.to_thread(encode, request.text, model))
        except FlexpertError as error:
            await _abort(context, status_of(error), error)

    async def _check(self, request: pb.GenerateRequest) -> CheckedRequest:
        model = await self._models.get(self._engine_wait_s)
        if len(request.text) < TEXT_FOR_A_THREAD:
            return check_request(request, model, _draw_seed)
        return await asyncio.to_thread(check_request, request, model, _draw_seed)

    async def _stream(self, checked: CheckedRequest, context: Context) -> str:
        """Run the request and write its responses; returns how it ended."""
        stream = Stream(checked)
        writer = _Writer(context, stream)
        if (end := stream.resume()) is not None:
            await writer.write(end)
        else:
            try:
                async with aclosing(self._balancer.run(stream)) as deltas:
                    async for delta in deltas:
                        self.counts.tokens += len(delta.tokens)
                        await writer.write(delta)
            except RequestBroke as error:
                await writer.write_error(str(error))
        return stream.finish.value if stream.finish else "error"


class _Writer:
    """Writes one stream's responses."""

    def __init__(self, context: Context, stream: Stream) -> None:
        self._context = context
        self._stream = stream
        self._request_id = uuid.uuid4().hex
        self._seed_to_tell = stream.request.sampling.seed

    async def write(self, delta: Delta) -> None:
        """Write what is new; the first response tells the seed, the last one the usage."""
        model = self._stream.request.model
        response = pb.GenerateResponse(
            request_id=self._request_id,
            text=delta.text,
            tokens=[_token(token, model) for token in delta.tokens],
            seed=self._take_seed(),
        )
        if delta.finish is not None:
            response.finish_reason = _REASONS[delta.finish]
            response.usage.CopyFrom(self._usage())
        await self._context.write(response)

    async def write_error(self, message: str) -> None:
        """End the stream with an error."""
        await self._context.write(
            pb.GenerateResponse(
                request_id=self._request_id,
                finish_reason=pb.FINISH_ERROR,
                usage=self._usage(),
                seed=self._take_seed(),
                error=message,
            )
        )

    def _take_seed(self) -> int:
        seed, self._seed_to_tell = self._seed_to_tell, 0
        return seed

    def _usage(self) -> pb.Usage:
        return pb.Usage(
            prompt_tokens=len(self._stream.request.prompt_ids),
            completion_tokens=len(self._stream.output_ids),
            cached_tokens=self._stream.cached_tokens,
        )


def _token(token: NewToken, model: ServedModel) -> pb.Token:
    top = [pb.TokenLogprob(token_id=id_, text=model.token_text(id_), logprob=logprob) for id_, logprob in token.top]
    return pb.Token(id=token.id, logprob=token.logprob or 0.0, top=top)


def status_of(error: FlexpertError) -> grpc.StatusCode:
    """The status that tells a client what happened and whether to try again."""
    match error:
        case InvalidRequest():
            return grpc.StatusCode.INVALID_ARGUMENT
        case UnknownModel():
            return grpc.StatusCode.NOT_FOUND
        case Overloaded():
            return grpc.StatusCode.RESOURCE_EXHAUSTED
        case _:
            return grpc.StatusCode.UNAVAILABLE


async def _abort(context: Context, status: grpc.StatusCode, error: FlexpertError) -> Never:
    trailers: tuple[tuple[str, str], ...] = ()
    if isinstance(error, Overloaded):
        trailers = ((RETRY_AFTER, str(round(error.retry_after_s * 1000))),)
    await context.abort(status, str(error), trailing_metadata=trailers)
    raise AssertionError("abort raises")


def _draw_seed() -> int:
    return secrets.randbits(63)
