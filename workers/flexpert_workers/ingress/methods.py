"""Registers a service's methods with a gRPC server, so that bytes that are no message get the right error.

The generated registration hands unparsable bytes to grpc, which answers UNKNOWN and logs a traceback for each; here
they are INVALID_ARGUMENT. Called by `server.py`.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from flexpert_workers.errors import InvalidRequest
from flexpert_workers.ingress.status import Context, abort

Behaviour = Callable[[Any, Context], Awaitable[Any]]


def add_service(service: ServiceDescriptor, servicer: object, server: grpc.aio.Server) -> None:
    """Serve every method of a service by the servicer's coroutine of that name; streams are written, not yielded."""
    handlers = {method.name: _handler(method, getattr(servicer, method.name)) for method in service.methods}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))


def _handler(method: MethodDescriptor, behaviour: Behaviour) -> "grpc.RpcMethodHandler[Any, Any]":
    message_type = GetMessageClass(method.input_type)

    def parse(data: bytes) -> Message | DecodeError:
        try:
            return message_type.FromString(data)
        except DecodeError as error:
            return error

    async def call(request: Any, context: Context) -> Any:
        if isinstance(request, DecodeError):
            await abort(context, InvalidRequest("request", f"the bytes are no {method.input_type.full_name}"))
        return await behaviour(request, context)

    make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
    return make(call, request_deserializer=parse, response_serializer=_serialise)


def _serialise(message: Message) -> bytes:
    return message.SerializeToString()
