"""`/metrics` of a pool controller, on its event loop, begun by `controller_actor`. One scrape is of the whole pool."""

import logging

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flexpert_workers.exposition import render
from flexpert_workers.http_server import AppServer, serve_app
from flexpert_workers.pool.controller import PoolController
from flexpert_workers.pool.exposition import families

log = logging.getLogger(__name__)


async def serve_metrics(controller: PoolController, address: str) -> AppServer:
    """Serve the metrics of `controller` at `host:port` (port 0: any).

    Raises:
        OSError: The address cannot be had.
    """

    async def metrics(request: Request) -> Response:
        text, content_type = render(families(controller), request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    served = serve_app(Starlette(routes=[Route("/metrics", metrics)]), address)
    log.info("metrics of the pool are at http://%s:%d/metrics", address.rpartition(":")[0], served.port)
    return served
