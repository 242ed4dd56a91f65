"""The operator's own ports, for probes and for Prometheus, are sent what is no request."""

import time
import urllib.request

import pytest
from malformed import HTTP, NUM_FRAMES, broken, flat, send_all, send_and_leave

from flexpert_operator.health import Pulse, serve_health
from flexpert_operator.metrics import Metrics

pytestmark = pytest.mark.timeout(max(300, NUM_FRAMES))
GET = HTTP.replace(b"POST /v1/completions", b"GET /healthz")


def test_probes_and_metrics_take_any_bytes() -> None:
    pulse = Pulse(time.monotonic)
    pulse.beat()
    health = serve_health("http://127.0.0.1:0/healthz", pulse)
    metrics, _ = Metrics().serve("127.0.0.1", 0)
    ports = health.server_port, metrics.server_port

    def attack(number: int) -> None:
        for port in ports:
            send_all(broken(HTTP, GET), lambda frame, port=port: send_and_leave(port, frame), number)

    flat(attack)
    for port, path in zip(ports, ("healthz", "metrics"), strict=True):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=60) as answer:
            assert answer.status == 200
    for server in (health, metrics):
        server.shutdown()
        server.server_close()
