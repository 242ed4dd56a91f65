"""Probes of the laptop's containers over HTTPS: as a kubelet does, whatever certificate is shown."""

from pathlib import Path

import pytest
from aiohttp import web
from local_objects import born, container, local_pod
from played_kubelet import serving

from flexpert_operator.local.runtime import probes


async def answer(request: web.Request) -> web.Response:
    return web.Response(status=200 if request.path == "/ready" else 503)


@pytest.mark.parametrize(
    ("probe", "ready"),
    [
        ({"path": "/ready", "scheme": "HTTPS"}, True),
        ({"path": "/health", "scheme": "HTTPS"}, False),
        ({"path": "/ready"}, False),
    ],
)
async def test_a_probe_speaks_what_its_container_does(probe: dict[str, str], ready: bool, tmp_path: Path) -> None:
    with serving(answer) as url:
        spec = container("a", ports=[{"name": "http", "containerPort": 8000}])
        spec["readinessProbe"] = {"httpGet": {"port": "http", **probe}, "timeoutSeconds": 30}
        pod = born({"metadata": {"name": "p", "namespace": "default"}, "spec": {"containers": [spec]}})
        local = local_pod(pod, ports={"http": int(url.rpartition(":")[2])})
        assert await probes.is_ready(spec, local, tmp_path / "log") is ready
