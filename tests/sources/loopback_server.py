"""Runs an HTTP server on loopback for as long as a test needs it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def serving_by(handler: type[BaseHTTPRequestHandler], **state: Any) -> Iterator[str]:
    """Serve by a handler whose attributes are `state`, until the end of the `with` statement; yields the URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), state))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="loopback", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
