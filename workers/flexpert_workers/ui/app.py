"""The HTTP side of the page: files, the state, its changes, a dry run. `server` serves it.

| path | |
|---|---|
| `GET /ui`, `/ui/FILE` | the page |
| `GET /ui/api/pool` | the state, as JSON |
| `GET /ui/api/events` | the state, then its changes, as server-sent events |
| `POST /ui/api/plan` | a dry run of a plan |

It listens on loopback and knows no users, so it answers only who names it by a loopback host (else a web page that the
user has open elsewhere could have its own name resolve to it), and lets no other origin ask for a dry run.
"""

import hashlib
from collections.abc import AsyncIterator, Mapping
from importlib import resources

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flexpert_workers.errors import FlexpertError
from flexpert_workers.messages import UNREADABLE
from flexpert_workers.pool.controller import PoolController
from flexpert_workers.ui.dry_run import Busy, CannotTry, DryRuns, Wish
from flexpert_workers.ui.feed import MOST_WATCHERS, Feed
from flexpert_workers.ui.snapshot import difference

LARGEST_QUESTION_BYTES = 512 * 1024
TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_STATUSES: Mapping[type[FlexpertError], int] = {Busy: 429, CannotTry: 409}


def make_app(controller: PoolController, feed: Feed, dry_runs: DryRuns | None = None) -> ASGIApp:
    """The ASGI application of one controller's page."""
    runs, files = dry_runs or DryRuns(controller), _files()

    async def file(request: Request) -> Response:
        found = files.get(request.path_params.get("file", "index.html"))
        return found.answer(request) if found is not None else PlainTextResponse("no such file\n", 404)

    async def pool(_: Request) -> Response:
        body = msgspec.json.encode(difference(None, feed.now()))
        return Response(body, media_type="application/json", headers={"cache-control": "no-store"})

    async def events(_: Request) -> Response:
        if feed.num_watchers >= MOST_WATCHERS:
            return PlainTextResponse("too many pages watch this pool; close some\n", 503)
        return StreamingResponse(
            _closing(feed.events()), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    async def plan(request: Request) -> Response:
        try:
            return JSONResponse(await runs.try_out(await _wish(request)))
        except _Refused as refused:
            return JSONResponse({"message": str(refused)}, refused.status)
        except FlexpertError as error:
            return JSONResponse({"message": str(error)}, _STATUSES.get(type(error), 409))

    async def start(_: Request) -> Response:
        return RedirectResponse("/ui")

    return _Guard(
        Starlette(
            routes=[
                Route("/", start),
                Route("/ui", file),
                Route("/ui/api/pool", pool),
                Route("/ui/api/events", events),
                Route("/ui/api/plan", plan, methods=["POST"]),
                Route("/ui/{file}", file),
            ]
        )
    )


class _Refused(Exception):
    """A request that is not even tried."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def _wish(request: Request) -> Wish:
    """What a request asks to try out; raises `_Refused`."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise _Refused(415, "send application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_QUESTION_BYTES:
            raise _Refused(413, f"send at most {LARGEST_QUESTION_BYTES} bytes")
    try:
        return msgspec.json.decode(bytes(body), type=Wish)
    except UNREADABLE as wrong:
        raise _Refused(400, str(wrong)) from wrong


async def _closing(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events; the watcher counts as gone as soon as nobody asks for more."""
    try:
        async for event in events:
            yield event
    finally:
        await events.aclose()  # type: ignore[attr-defined]


class _File:
    """A file of the page, kept in memory."""

    def __init__(self, name: str, content: bytes) -> None:
        self._content = content
        self._type = TYPES[name[name.rindex(".") :]]
        self._headers = {"etag": f'"{hashlib.sha256(content).hexdigest()[:16]}"', "cache-control": "no-cache"}

    def answer(self, request: Request) -> Response:
        """It, unless the browser has it."""
        if request.headers.get("if-none-match") == self._headers["etag"]:
            return Response(status_code=304, headers=self._headers)
        return Response(self._content, media_type=self._type, headers=self._headers)


def _files() -> Mapping[str, _File]:
    folder = resources.files("flexpert_workers.ui").joinpath("static")
    return {entry.name: _File(entry.name, entry.read_bytes()) for entry in folder.iterdir()}


class _Guard:
    """Refuses hosts and origins that are not this page's, and gives every answer the headers that protect it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        problem = _problem(Headers(scope=scope)) if scope["type"] == "http" else ""
        app = PlainTextResponse(problem, 421) if problem else self._app
        await app(scope, receive, send_guarded)


def _problem(headers: Headers) -> str:
    """Why a request is not answered, or nothing."""
    host = headers.get("host", "")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    if name not in _LOOPBACK:
        return "reach this page as localhost, for example by kubectl port-forward\n"
    origin = headers.get("origin")
    if origin not in (None, f"http://{host}", f"https://{host}"):
        return "another origin may not ask this\n"
    return ""
