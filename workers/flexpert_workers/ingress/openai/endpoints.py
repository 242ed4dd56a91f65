"""The routes of OpenAI's interface: each reads what is asked, runs its streams and sends what they say."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flexpert_workers.errors import FlexpertError
from flexpert_workers.ingress.caller import REQUEST_ID, Caller, caller_of
from flexpert_workers.ingress.intake import TEXT_FOR_A_THREAD, Intake
from flexpert_workers.ingress.model import ServedModel
from flexpert_workers.ingress.openai import asks
from flexpert_workers.ingress.openai.asks import Ask
from flexpert_workers.ingress.openai.bodies import Answer, ChatAnswer, CompletionAnswer, model_body
from flexpert_workers.ingress.openai.errors import SERVER, Problem, problem_of
from flexpert_workers.ingress.openai.exchange import ClientLeft, Exchange, Receive, Refused, Scope, Send
from flexpert_workers.ingress.stalls import Stalled, Stalls
from flexpert_workers.ingress.streams import Delta, Stream, merge
from flexpert_workers.ingress.validate import check_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dialect:
    """How one of the interfaces reads and answers.

    Attributes:
        renamed: What it calls fields of `generation.proto`.
    """

    read: asks.Read
    answer: type[Answer]
    renamed: dict[str, str]


COMPLETIONS = Dialect(asks.completion, CompletionAnswer, {"text": "prompt", "token_ids": "prompt"})
CHAT = Dialect(asks.chat, ChatAnswer, {"text": "messages", "token_ids": "messages", "logprobs": "top_logprobs"})


def routes(intake: Intake, stalls: Stalls, *, max_request_bytes: int) -> list[Route]:
    """The routes under `/v1`."""
    models = Models(intake)
    return [
        Route("/v1/models", models.list),
        Route("/v1/models/{name:path}", models.get),
        Route("/v1/completions", Endpoint(COMPLETIONS, intake, stalls, max_request_bytes), methods=["POST"]),
        Route("/v1/chat/completions", Endpoint(CHAT, intake, stalls, max_request_bytes), methods=["POST"]),
    ]


class Models:
    """`/v1/models`."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def list(self, _: Request) -> Response:
        """The names of the model."""
        try:
            model = await self._intake.model()
        except FlexpertError as error:
            return _refusal(problem_of(error, {}))
        return JSONResponse(
            {"object": "list", "data": [model_body(name, model) for name in sorted(model.names - {""})]}
        )

    async def get(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        try:
            model = await self._intake.model()
            check_name(name, model)
        except FlexpertError as error:
            return _refusal(problem_of(error, {}))
        return JSONResponse(model_body(name, model))


class Endpoint:
    """An ASGI application for one dialect."""

    def __init__(self, dialect: Dialect, intake: Intake, stalls: Stalls, max_request_bytes: int) -> None:
        self._dialect = dialect
        self._intake = intake
        self._stalls = stalls
        self._max_request_bytes = max_request_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; a client that leaves cancels its streams at their engines."""
        exchange = Exchange(scope, receive, send, self._stalls)
        caller = caller_of(exchange.headers(), exchange.host, token=exchange.token)
        headers = {REQUEST_ID: caller.request_id}
        try:
            await self._serve(exchange, caller, headers)
        except (ClientLeft, Stalled) as error:
            log.debug("request %s: %s", caller.request_id, error)
            exchange.abort()
        except asyncio.CancelledError:
            exchange.abort()
            raise
        except Refused as error:
            await exchange.refuse(error.problem, {**headers, "connection": "close"})
        except FlexpertError as error:
            await exchange.refuse(problem_of(error, self._dialect.renamed), headers)
        except Exception:
            log.exception("request %s broke", caller.request_id)
            await exchange.refuse(Problem(500, SERVER, "this server broke over the request; see its log"), headers)

    async def _serve(self, exchange: Exchange, caller: Caller, headers: dict[str, str]) -> None:
        data = await exchange.read(self._max_request_bytes)
        async with exchange.while_connected():
            ask = await self._read(data, await self._intake.model())
            caller = replace(caller, client=ask.user) if ask.user and not caller.token else caller
            async with self._intake.accept(ask.requests, caller, ask.copies) as streams:
                answer = self._dialect.answer(ask, streams, int(time.time()))
                if ask.stream:
                    await self._send_events(exchange, ask, streams, answer, headers)
                else:
                    whole = await self._whole(streams)
                    await exchange.answer(answer.body(whole), headers=headers)

    async def _read(self, data: bytes, model: ServedModel) -> Ask:
        if len(data) < TEXT_FOR_A_THREAD:
            return self._dialect.read(data, model)
        return await asyncio.to_thread(self._dialect.read, data, model)

    async def _whole(self, streams: Sequence[Stream]) -> list[Delta]:
        gathered: list[list[Delta]] = [[] for _ in streams]
        async with aclosing(self._deltas(streams)) as deltas:
            async for index, delta in deltas:
                gathered[index].append(delta)
        return [merge(parts) for parts in gathered]

    async def _send_events(
        self, exchange: Exchange, ask: Ask, streams: Sequence[Stream], answer: Answer, headers: dict[str, str]
    ) -> None:
        async with aclosing(self._deltas(streams)) as deltas:
            async for index, delta in deltas:
                if chunks := answer.chunks(index, delta):
                    await exchange.events(chunks, headers)
        if ask.include_usage:
            await exchange.events([answer.usage_chunk()], headers)
        await exchange.end_events()

    async def _deltas(self, streams: Sequence[Stream]) -> AsyncGenerator[tuple[int, Delta], None]:
        """Deltas of all streams, with their number, as they come."""
        if len(streams) == 1:
            async with aclosing(self._intake.run(streams[0])) as deltas:
                async for delta in deltas:
                    yield 0, delta
            return
        arrived: asyncio.Queue[tuple[int, Delta | None]] = asyncio.Queue()
        tasks = [asyncio.create_task(self._forward(index, stream, arrived)) for index, stream in enumerate(streams)]
        try:
            num_open = len(tasks)
            while num_open:
                index, new = await arrived.get()
                if new is None:
                    num_open -= 1
                    await tasks[index]
                else:
                    yield index, new
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self, index: int, stream: Stream, to: "asyncio.Queue[tuple[int, Delta | None]]") -> None:
        try:
            async with aclosing(self._intake.run(stream)) as deltas:
                async for delta in deltas:
                    to.put_nowait((index, delta))
        finally:
            to.put_nowait((index, None))


def _refusal(problem: Problem) -> Response:
    return JSONResponse(problem.body(), problem.status, problem.headers())
