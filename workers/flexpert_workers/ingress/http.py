"""The HTTP side of an ingress: OpenAI's interface, probes, and metrics for Prometheus. Served by `server.py`."""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import Metric
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from flexpert_workers.exposition import render
from flexpert_workers.ingress.openai.errors import INVALID, Problem


def make_app(
    is_ready: Callable[[], bool], families: Callable[[], Iterable[Metric]], others: Sequence[Route] = ()
) -> ASGIApp:
    """The ASGI application.

    Args:
        is_ready: Whether new requests may come.
        families: The metrics now.
        others: Further routes.
    """

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(_: Request) -> Response:
        return PlainTextResponse("ready\n") if is_ready() else PlainTextResponse("not ready\n", status_code=503)

    async def metrics(request: Request) -> Response:
        text, content_type = render(families(), request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    own = [Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)]
    app = Starlette(routes=[*own, *others], exception_handlers={HTTPException: _no_such_thing})
    posts = {route.path: route.app for route in others if route.methods == {"POST"}}

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        """What is asked most is found by its path alone; the rest by Starlette, which takes longer."""
        post = posts.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        await (post or app)(scope, receive, send)

    return serve


async def _no_such_thing(request: Request, error: Exception) -> Response:
    """No such path, or not by this method."""
    assert isinstance(error, HTTPException), "registered for it"
    message = f"Invalid URL ({request.method} {request.url.path})"
    if error.status_code == 405:
        message = f"Not allowed to {request.method} on {request.url.path}"
    problem = Problem(error.status_code, INVALID, message, code="unknown_url" if error.status_code == 404 else None)
    return JSONResponse(problem.body(), problem.status, error.headers)
