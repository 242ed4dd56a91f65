"""The door of both servers of an ingress: whoever brings no right token goes no further. Set up by `server.py`.

What anybody may ask, so that probes need no token: `grpc.health.v1`, and over HTTP `/health`, `/ready` and `/metrics`.
Everything else, reflection too, takes a token where there are tokens, and a client's certificate where there are
authorities for them; over gRPC nothing at all goes without that, since there the connection itself is refused.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from starlette.types import ASGIApp, Receive, Scope, Send

from flexpert_workers.errors import FlexpertError
from flexpert_workers.ingress.caller import TOKEN, TOKEN_NAME
from flexpert_workers.ingress.openai.errors import INVALID, Problem, problem_of
from flexpert_workers.ingress.openai.exchange import CONNECTION, answer_with
from flexpert_workers.ingress.status import Context, abort
from flexpert_workers.ingress.tokens import Tokens

AUTHORIZATION = "authorization"
OPEN_SERVICE = "/grpc.health.v1.Health/"
OPEN_PATHS = frozenset(("/health", "/ready", "/metrics"))
GENERATING = frozenset(("/flexpert.v1.Generation/Generate", "/inference.GRPCInferenceService/ModelInfer"))
"""Methods that make text; over HTTP it is every POST."""

_CERTIFICATE_WANTED = Problem(403, INVALID, "this server wants a client certificate", None, "certificate_required")

Handler = Any
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]


class RpcGuard(grpc.aio.ServerInterceptor):
    """Asks for a token before a method's handler is called."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(self, continuation: Continuation, handler_call_details: Any) -> Handler:
        """See grpc; the name of the token travels to the handler in `TOKEN_NAME`."""
        method = str(handler_call_details.method)
        if method.startswith(OPEN_SERVICE):
            return await continuation(handler_call_details)
        metadata = {key: str(value) for key, value in handler_call_details.invocation_metadata if key == AUTHORIZATION}
        try:
            TOKEN_NAME.set(self._tokens.admit(metadata.get(AUTHORIZATION), generates=method in GENERATING))
        except FlexpertError as error:
            return _refusing(await continuation(handler_call_details), error)
        return await continuation(handler_call_details)


def _refusing(handler: Handler, error: FlexpertError) -> Handler:
    """A handler like this one, that ends every call with the error; one that reads nothing where requests stream."""

    async def refuse(_: Any, context: Context) -> None:
        await abort(context, error)

    if handler is not None and handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(refuse)
    return grpc.unary_stream_rpc_method_handler(refuse)


def guarded(app: ASGIApp, tokens: Tokens | None, *, wants_certificate: bool) -> ASGIApp:
    """The application behind a door."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            problem = _CERTIFICATE_WANTED if wants_certificate and not _is_known(scope) else _problem(scope, tokens)
            if problem is not None:
                await answer_with(problem, send)
                return
        await app(scope, receive, send)

    return serve


def _is_known(scope: Scope) -> bool:
    return bool(scope[CONNECTION].peer_is_known)


def _problem(scope: Scope, tokens: Tokens | None) -> Problem | None:
    if tokens is None:
        return None
    header = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"), None)
    try:
        scope[TOKEN] = tokens.admit(header, generates=scope["method"] == "POST")
    except FlexpertError as error:
        return problem_of(error, {})
    return None
