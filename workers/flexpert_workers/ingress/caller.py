"""Who asks, as far as an ingress needs to know: a name for the share of the engines, an id, and a deadline.

The servers make one for each request: `from_context` for gRPC, `openai` for HTTP.
"""

import re
import secrets
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc.aio

from flexpert_proto.tracing import TRACEPARENT, traceparent_of

REQUEST_ID = "x-request-id"
CLIENT = "x-flexpert-client"
TOKEN = "flexpert.token"
"""Key in the scope of an HTTP request of the name of its token."""
TOKEN_NAME: ContextVar[str] = ContextVar("token", default="")
"""The name of the token of the call that is being served over gRPC; `guard.py` sets it."""

READ = (REQUEST_ID, CLIENT, TRACEPARENT)
"""Headers, and gRPC metadata, that say something of a caller."""
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_LONGEST_CLIENT = 128


@dataclass(frozen=True)
class Caller:
    """One request's caller.

    Attributes:
        client: Requests of one client share what the engines give it: the name of the token where there are tokens,
            or what the request says, or the host.
        request_id: The caller's own, or one drawn here.
        patience_s: Seconds after which the caller gives up; None if it does not say.
        token: The name of its token; "" where there are no tokens.
        traceparent: Of the span that the request is part of, if it says so.
    """

    client: str
    request_id: str
    patience_s: float | None = None
    token: str = ""
    traceparent: str = ""


def from_context(context: "grpc.aio.ServicerContext[Any, Any]") -> Caller:
    """The caller of a gRPC method."""
    metadata = {key: str(value) for key, value in context.invocation_metadata() or () if key in READ}
    return caller_of(metadata, _host(context.peer()), context.time_remaining(), TOKEN_NAME.get())


def caller_of(headers: Mapping[str, str], host: str, patience_s: float | None = None, token: str = "") -> Caller:
    """The caller by its headers, of which names are in lower case, and the host it calls from."""
    wanted = headers.get(REQUEST_ID)
    request_id = wanted if wanted and _REQUEST_ID.fullmatch(wanted) else secrets.token_hex(16)
    client = token or headers.get(CLIENT) or host
    return Caller(client[:_LONGEST_CLIENT], request_id, patience_s, token, traceparent_of(headers))


def _host(peer: str) -> str:
    """`ipv4:10.0.0.1:50000` → `ipv4:10.0.0.1`; local sockets have no port."""
    return peer.rpartition(":")[0] if peer.startswith("ipv") else peer
