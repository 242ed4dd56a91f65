"""The HTTP side of an ingress: probes for Kubernetes, and numbers for Prometheus. Served by `server.py`."""

from collections.abc import Callable, Mapping

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route


def make_app(is_ready: Callable[[], bool], numbers: Callable[[], Mapping[str, float]]) -> Starlette:
    """The ASGI application.

    Args:
        is_ready: Whether new requests may come.
        numbers: Metric (with labels, as Prometheus writes it) → its value now.
    """

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(_: Request) -> Response:
        return PlainTextResponse("ready\n") if is_ready() else PlainTextResponse("not ready\n", status_code=503)

    async def metrics(_: Request) -> Response:
        lines = (f"{name} {value:g}\n" for name, value in numbers().items())
        return PlainTextResponse("".join(lines), media_type="text/plain; version=0.0.4")

    return Starlette(routes=[Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)])
