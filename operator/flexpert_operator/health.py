"""Answers the probes of the kubelet, from the start of the process to its end, whether it leads or waits to.

`__main__` serves it. kopf's own endpoint is there only while kopf runs.
"""

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SILENCE_S = 60.0
"""An event loop that has not turned for so long is stuck."""


class Pulse:
    """The event loop's: it beats while the loop turns. Without a beat yet, nothing is wrong."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None

    def beat(self) -> None:
        """The loop turns."""
        self._last = self._clock()

    def stop(self) -> None:
        """The loop has ended as it should."""
        self._last = None

    @property
    def alive(self) -> bool:
        """Whether the loop has turned lately."""
        return self._last is None or self._clock() - self._last < SILENCE_S


def serve_health(endpoint: str, pulse: Pulse) -> ThreadingHTTPServer:
    """Answer at an endpoint such as http://0.0.0.0:8080/healthz, in a thread.

    Raises:
        OSError: The address is taken.
    """
    url = urlsplit(endpoint)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path.partition("?")[0] == (url.path or "/")
            body = b"ok" if known and pulse.alive else b"the event loop is stuck" if known else b"no such page"
            self.send_response(200 if known and pulse.alive else 500 if known else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Probes are not logged."""

    server = ThreadingHTTPServer((url.hostname or "", url.port or 80), Handler)
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server
