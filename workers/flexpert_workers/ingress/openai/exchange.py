"""One HTTP request and its answer, over ASGI: bounded bodies, server-sent events, clients that leave or stall."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgspec

from flexpert_workers.errors import FlexpertError
from flexpert_workers.ingress.caller import READ, TOKEN
from flexpert_workers.ingress.openai.errors import INVALID, Problem
from flexpert_workers.ingress.stalls import Stalls

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BODY_TIMEOUT_S = 30.0
CONNECTION = "flexpert.connection"
"""Key in the scope of the `Connection`."""

_READ = {name.encode(): name for name in READ}
_encode = msgspec.json.Encoder().encode


class Connection(Protocol):
    """What an exchange needs of the server's connection beyond ASGI; `connection.ClientConnection` is one."""

    on_lost: Callable[[], None] | None
    """Called when the client leaves."""

    @property
    def peer_is_known(self) -> bool:
        """Whether the client showed a certificate of the authorities."""

    def abort(self) -> None:
        """Drop the connection, and what is queued on it."""


class Refused(FlexpertError):
    """The request cannot even be read; `problem` is what to answer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class ClientLeft(FlexpertError):
    """The client went away: nobody reads what is written."""


class Exchange:
    """A request and its answer.

    Attributes:
        started: Whether the answer's status was sent.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, stalls: Stalls) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._stalls = stalls
        self._connection: Connection = scope[CONNECTION]
        self.started = False

    def headers(self) -> dict[str, str]:
        """Those of the request that are read, by their names in lower case."""
        return {_READ[name]: value.decode("latin-1") for name, value in self._scope["headers"] if name in _READ}

    @property
    def host(self) -> str:
        """Where the request comes from."""
        client = self._scope.get("client")
        return str(client[0]) if client else ""

    @property
    def token(self) -> str:
        """The name of the request's token."""
        return str(self._scope.get(TOKEN, ""))

    async def read(self, max_bytes: int) -> bytes:
        """The body.

        Raises:
            Refused: It is larger than `max_bytes`, or did not come in time.
            ClientLeft: It never came.
        """
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return await self._read(max_bytes)
        except TimeoutError:
            raise Refused(Problem(408, INVALID, f"the body did not come within {BODY_TIMEOUT_S:g} s")) from None

    async def _read(self, max_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft("the client left before its request was whole")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > max_bytes:
                raise Refused(Problem(413, INVALID, f"the body is larger than {max_bytes} bytes"))
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    @asynccontextmanager
    async def while_connected(self) -> AsyncIterator[None]:
        """Cancel what is done inside when the client leaves.

        Raises:
            ClientLeft: It left.
        """
        task = asyncio.current_task()
        assert task is not None, "runs in a task"
        left = False

        def leave() -> None:
            nonlocal left
            left = True
            task.cancel()

        self._connection.on_lost = leave
        try:
            yield
        except asyncio.CancelledError:
            if left and task.uncancel() == 0:
                raise ClientLeft("the client left") from None
            raise
        finally:
            self._connection.on_lost = None

    async def answer(self, body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole answer as JSON."""
        data = _encode(body)
        await self._start(
            status, {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}
        )
        await self._put({"type": "http.response.body", "body": data})

    async def refuse(self, problem: Problem, headers: Mapping[str, str] | None = None) -> None:
        """Send a problem: as an answer, or as the last event of a stream that has begun."""
        if self.started:
            await self._put({"type": "http.response.body", "body": _event(problem.body())})
        else:
            await self.answer(problem.body(), problem.status, {**(headers or {}), **problem.headers()})

    async def events(self, bodies: list[dict[str, Any]], headers: Mapping[str, str]) -> None:
        """Send events of a stream; the first ones begin it."""
        if not self.started:
            await self._start(
                200, {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", **headers}
            )
        data = b"".join(map(_event, bodies))
        await self._put({"type": "http.response.body", "body": data, "more_body": True})

    async def end_events(self) -> None:
        """End a stream as OpenAI's clients expect it."""
        await self._put({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    def abort(self) -> None:
        """Drop the connection, and what is queued on it."""
        self._connection.abort()

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.started = True
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._put({"type": "http.response.start", "status": status, "headers": pairs})

    async def _put(self, message: MutableMapping[str, Any]) -> None:
        await self._stalls.write(self._send(message))


async def answer_with(problem: Problem, send: Send) -> None:
    """Answer with a problem before anything of the request was read; the connection ends with it."""
    data = _encode(problem.body())
    headers = {
        "content-type": "application/json",
        "content-length": str(len(data)),
        "connection": "close",
        **problem.headers(),
    }
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": pairs})
    await send({"type": "http.response.body", "body": data})


def _event(body: object) -> bytes:
    return b"data: " + _encode(body) + b"\n\n"
