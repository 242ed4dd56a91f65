"""Bytes that are no message are refused with INVALID_ARGUMENT, at every method of the pool controller's gRPC server.

grpc itself answers UNKNOWN, and logs a traceback for each. `service.serve` puts this before all methods.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class MalformedRefuser(grpc.aio.ServerInterceptor):
    """Refuses what cannot be parsed, before the method is called; in a stream, where it comes."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The method's handler, guarded; None where there is no such method."""
        handler: Any = await continuation(handler_call_details)
        return None if handler is None else _guarded(handler)


def _guarded(handler: Any) -> Any:
    tolerant = handler._replace(request_deserializer=_tolerant(handler.request_deserializer))
    check = _items if handler.request_streaming else _item
    if handler.request_streaming and handler.response_streaming:
        return tolerant._replace(stream_stream=_yielding(handler.stream_stream, check))
    if handler.request_streaming:
        return tolerant._replace(stream_unary=_returning(handler.stream_unary, check))
    if handler.response_streaming:
        return tolerant._replace(unary_stream=_yielding(handler.unary_stream, check))
    return tolerant._replace(unary_unary=_returning(handler.unary_unary, check))


def _tolerant(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parsed(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError as error:
            return error

    return parsed


Check: TypeAlias = Callable[[Any, Context], Awaitable[Any]]


def _returning(behaviour: Callable[[Any, Context], Awaitable[Any]], check: Check) -> Any:
    async def call(request: Any, context: Context) -> Any:
        return await behaviour(await check(request, context), context)

    return call


def _yielding(behaviour: Callable[[Any, Context], AsyncIterator[Any]], check: Check) -> Any:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        async for answer in behaviour(await check(request, context), context):
            yield answer

    return call


async def _item(request: Any, context: Context) -> Any:
    if isinstance(request, DecodeError):
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the bytes are no message of this method: {request}")
    return request


async def _items(requests: AsyncIterator[Any], context: Context) -> Any:
    async def checked() -> AsyncIterator[Any]:
        async for request in requests:
            yield await _item(request, context)

    return checked()
