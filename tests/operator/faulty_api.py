"""A proxy in front of an API server that a test makes fail: refusals, delays, watches that expire, an outage."""

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

HOP_BY_HOP = ("Host", "Content-Length", "Transfer-Encoding", "Connection", "Content-Encoding")


@dataclass
class Fault:
    """What happens to the next `times` requests that match.

    Attributes:
        status: Of the refusal, which watches are told in their stream; 0 lets the request through, after `delay_s`.
    """

    matches: Callable[[web.Request], bool]
    status: int = 0
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0


class FaultyApi:
    """The proxy, in a thread of its own; a context manager.

    Attributes:
        counts: Requests by method; watches count as WATCH.
        deleted: Paths of the requests to delete, in order.
        faults: Those to come.
        down: While set, every connection is reset.
    """

    def __init__(self, url: str, token: str) -> None:
        self.counts: Counter[str] = Counter()
        self.deleted: list[str] = []
        self.faults: list[Fault] = []
        self.refused = 0
        self._down = False
        self._url = url
        self._token = token
        self._open: dict[int, web.Request] = {}
        self._started: Future[str] = Future()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    def __enter__(self) -> "FaultyApi":
        self._thread.start()
        self._started.result(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def write_kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig for this proxy; returns its path."""
        text = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "faulty",
            "contexts": [{"name": "faulty", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": self._started.result(30)}}],
            "users": [{"name": "u", "user": {"token": self._token}}],
        }
        path.write_text(json.dumps(text))
        return path

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """The API server is away: connections break, and new ones too."""
        self._down = True
        self._loop.call_soon_threadsafe(self.cut)
        yield
        self._down = False

    def cut_watches(self) -> None:
        """Break every connection, once."""
        self._loop.call_soon_threadsafe(self.cut)

    def cut(self) -> None:
        """In the proxy's thread: break what is open."""
        for request in list(self._open.values()):
            if request.transport is not None:
                request.transport.abort()

    def requests(self) -> int:
        """Requests so far, without watches."""
        return sum(number for method, number in self.counts.items() if method != "WATCH")

    async def _serve(self) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        connector = aiohttp.TCPConnector(ssl=False, limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._session:
            self._started.set_result(f"http://127.0.0.1:{runner.addresses[0][1]}")
            await self._stop.wait()
            self.cut()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self._open[id(request)] = request
        try:
            if self._down:
                assert request.transport is not None
                request.transport.abort()
                return web.Response(status=503)
            self.counts["WATCH" if "watch" in request.query else request.method] += 1
            if request.method == "DELETE":
                self.deleted.append(request.path)
            fault = next((one for one in self.faults if one.matches(request)), None)
            if fault is not None:
                fault.times -= 1
                if fault.times <= 0:
                    self.faults.remove(fault)
                await asyncio.sleep(fault.delay_s)
                if fault.status:
                    self.refused += 1
                    status = {"kind": "Status", "code": fault.status, "message": "made to fail"}
                    if is_watch(request):  # an API server says it in the stream
                        return web.json_response({"type": "ERROR", "object": status})
                    return web.json_response(status, status=fault.status, headers=fault.headers)
            return await self._forward(request)
        finally:
            del self._open[id(request)]

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        headers: dict[str, Any] = {key: value for key, value in request.headers.items() if key not in HOP_BY_HOP}
        body = await request.read()
        url = self._url + request.path_qs
        async with self._session.request(
            request.method, url, headers=headers, data=body or None, timeout=aiohttp.ClientTimeout(total=None)
        ) as answer:
            kept = {key: value for key, value in answer.headers.items() if key not in HOP_BY_HOP}
            if "watch" not in request.query:
                return web.Response(status=answer.status, headers=kept, body=await answer.read())
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            return response


def is_write(request: web.Request) -> bool:
    """Whether a request changes something other than an Event or a lease."""
    told = "/events" in request.path or "/leases" in request.path
    return request.method in ("POST", "PUT", "PATCH", "DELETE") and not told


def is_watch(request: web.Request) -> bool:
    """Whether a request is a watch."""
    return "watch" in request.query
