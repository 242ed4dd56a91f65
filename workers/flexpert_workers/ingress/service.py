"""`flexpert.v1.Generation`: from a client's call to its stream and back. Registered by `server.py`.

A call takes these hops: `Intake.accept` (admission, check) → `Intake.run` → one response for each delta.
"""

import asyncio
from contextlib import aclosing

from flexpert_proto import generation_pb2 as pb
from flexpert_workers.errors import FlexpertError
from flexpert_workers.ingress.balancer import RequestBroke
from flexpert_workers.ingress.caller import from_context
from flexpert_workers.ingress.intake import Intake
from flexpert_workers.ingress.model import ServedModel
from flexpert_workers.ingress.stalls import Stalled, Stalls
from flexpert_workers.ingress.status import Context, abort
from flexpert_workers.ingress.streams import Delta, NewToken, Stream
from flexpert_workers.ingress.validate import encode
from flexpert_workers.messages.generation import Finish

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["Generation"]

_REASONS = {Finish.STOP: pb.FINISH_STOP, Finish.LENGTH: pb.FINISH_LENGTH}


class GenerationService:
    """Serves streams, one coroutine each."""

    def __init__(self, intake: Intake, stalls: Stalls) -> None:
        self._intake = intake
        self._stalls = stalls

    # Responses are written, not yielded: so a cancelled call ends here, at whatever it waits for, and at once.
    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # noqa: N802
        """See generation.proto."""
        try:
            async with self._intake.accept((request,), from_context(context)) as (stream,):
                await self._stream(stream, _Writer(context, stream, self._stalls))
        except Stalled as error:
            raise asyncio.CancelledError(str(error)) from None  # a status could not be written either
        except FlexpertError as error:
            await abort(context, error)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:  # noqa: N802
        """See generation.proto."""
        try:
            model = await self._intake.model()
            return pb.TokenizeResponse(ids=await asyncio.to_thread(encode, request.text, model))
        except FlexpertError as error:
            await abort(context, error)

    async def _stream(self, stream: Stream, writer: "_Writer") -> None:
        try:
            async with aclosing(self._intake.run(stream)) as deltas:
                async for delta in deltas:
                    await writer.write(delta)
        except RequestBroke as error:
            await writer.write_error(str(error))


class _Writer:
    """Writes one stream's responses."""

    def __init__(self, context: Context, stream: Stream, stalls: Stalls) -> None:
        self._context = context
        self._stream = stream
        self._stalls = stalls
        self._seed_to_tell = stream.request.sampling.seed

    async def write(self, delta: Delta) -> None:
        """Write what is new; the first response tells the seed, the last one the usage."""
        model = self._stream.request.model
        response = pb.GenerateResponse(
            request_id=self._stream.caller.request_id,
            text=delta.text,
            tokens=[_token(token, model) for token in delta.tokens],
            seed=self._take_seed(),
        )
        if delta.finish is not None:
            response.finish_reason = _REASONS[delta.finish]
            response.usage.CopyFrom(self._usage())
        await self._write(response)

    async def write_error(self, message: str) -> None:
        """End the stream with an error."""
        await self._write(
            pb.GenerateResponse(
                request_id=self._stream.caller.request_id,
                finish_reason=pb.FINISH_ERROR,
                usage=self._usage(),
                seed=self._take_seed(),
                error=message,
            )
        )

    async def _write(self, response: pb.GenerateResponse) -> None:
        await self._stalls.write(self._context.write(response))

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
    if token.logprob is None:
        return pb.Token(id=token.id)
    top = [pb.TokenLogprob(token_id=id_, text=model.token_text(id_), logprob=logprob) for id_, logprob in token.top]
    return pb.Token(id=token.id, logprob=token.logprob, top=top, text=model.token_text(token.id))
