"""uvicorn inside a process that is more than an HTTP server: the ingress, and the pool controller's page."""

import contextlib
from collections.abc import Iterator

import uvicorn


class HttpServer(uvicorn.Server):
    """A server that leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: whoever runs the process decides when it ends."""
        yield
