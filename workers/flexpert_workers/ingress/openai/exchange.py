"""One HTTP request and its answer, over ASGI: bounded bodies, server-sent events, clients that leave or stall."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from flexpert_workers.errors import FlexpertError
from flexpert_workers.ingress.openai.errors import INVALID, Problem

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BODY_TIMEOUT_S = 30.0
ABORT = "flexpert.abort"
"""Key in the scope of what drops the connection."""

_encode = msgspec.json.Encoder().encode


class Refused(FlexpertError):
    """The request cannot even be read; `problem` is what to answer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class ClientLeft(FlexpertError):
    """The client went away, or took nothing for too long: nobody reads what is written."""


class Exchange:
    """A request and its answer.

    Attributes:
        started: Whether the answer's status was sent.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, stall_timeout_s: float) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._stall_timeout_s = stall_timeout_s
        self.started = False

    def headers(self) -> dict[str, str]:
        """The request's, by their names in lower case."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self._scope["headers"]}

    @property
    def host(self) -> str:
        """Where the request comes from."""
        client = self._scope.get("client")
        return str(client[0]) if client else ""

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

        async def watch() -> None:
            nonlocal left
            while (await self._receive())["type"] != "http.disconnect":
                pass
            left = True
            task.cancel()

        watcher = asyncio.create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            if left and task.uncancel() == 0:
                raise ClientLeft("the client left") from None
            raise
        finally:
            watcher.cancel()

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
        self._scope.get(ABORT, _nothing)()

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.started = True
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._put({"type": "http.response.start", "status": status, "headers": pairs})

    async def _put(self, message: MutableMapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                await self._send(message)
        except TimeoutError:
            raise ClientLeft(f"the client took nothing for {self._stall_timeout_s:g} s") from None


def _nothing() -> None:
    """Servers other than `server.HttpProtocol` notice an answer that has no end."""


def _event(body: object) -> bytes:
    return b"data: " + _encode(body) + b"\n\n"
