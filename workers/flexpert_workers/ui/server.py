"""The HTTP server of the page, on the pool controller's event loop. Started by `controller_actor`, stopped by tests."""

import logging
from dataclasses import dataclass

from flexpert_workers.http_server import AppServer, serve_app
from flexpert_workers.pool.controller import PoolController
from flexpert_workers.ui.app import make_app
from flexpert_workers.ui.feed import Feed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UiServer:
    """A page that is served.

    Attributes:
        feed: What its watchers are told.
    """

    feed: Feed
    served: AppServer

    @property
    def port(self) -> int:
        """Where."""
        return self.served.port

    async def stop(self) -> None:
        """Take no more requests, and end the streams."""
        self.feed.close()
        await self.served.stop()


async def serve_ui(controller: PoolController, address: str) -> UiServer:
    """Serve the page of `controller` at `host:port` (port 0: any).

    Raises:
        OSError: The address cannot be had.
    """
    feed = Feed(controller)
    served = serve_app(make_app(controller, feed), address)
    log.info("the pool's page is at http://%s:%d/ui", address.rpartition(":")[0], served.port)
    return UiServer(feed, served)
