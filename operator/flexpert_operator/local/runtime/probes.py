"""Which containers are ready: the manifest's readiness probe on the container's translated port.

A Ray worker counts as ready once `ray start` says that its node is registered: KubeRay's own probe asks the node's
agent, whose port is ephemeral here. A head is ready when its GCS takes connections, for which other nodes wait.
"""

import asyncio
import logging
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from flexpert_operator.local.runtime.values import (
    GCS_PORT_NAME,
    HEAD_CONTAINER,
    HOST,
    WORKER_CONTAINER,
    LocalPod,
    Object,
)

RAY_IS_UP = b"Ray runtime started."
_TIMEOUT_S = 1.0
_log = logging.getLogger(__name__)


async def is_ready(spec: Object, local: LocalPod, log: Path) -> bool:
    """Ask a running container.

    Args:
        spec: Its part of the manifest.
        local: Its pod, with the numbers of its ports.
        log: Its output.
    """
    if spec["name"] == WORKER_CONTAINER:
        return _says_it_is_up(log)
    if spec["name"] == HEAD_CONTAINER:
        return await _takes_connections(local.ports[GCS_PORT_NAME])
    probe = spec.get("readinessProbe") or {}
    timeout_s = max(float(probe.get("timeoutSeconds", _TIMEOUT_S)), _TIMEOUT_S)
    try:
        async with asyncio.timeout(timeout_s):
            return await _ask(probe, spec, local)
    except (OSError, TimeoutError, aiohttp.ClientError, grpc.aio.AioRpcError) as error:
        _log.debug("%s of %s is not ready: %s", spec["name"], local.name, error)
        return False


def _says_it_is_up(log: Path) -> bool:
    return log.exists() and RAY_IS_UP in log.read_bytes()


async def _takes_connections(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return True


async def _ask(probe: Object, spec: Object, local: LocalPod) -> bool:
    if "tcpSocket" in probe:
        return await _takes_connections(port_number(probe["tcpSocket"]["port"], spec, local))
    if "httpGet" in probe:
        port = port_number(probe["httpGet"]["port"], spec, local)
        scheme = probe["httpGet"].get("scheme", "HTTP").lower()
        url = f"{scheme}://{HOST}:{port}{probe['httpGet'].get('path', '/')}"
        # as the kubelet does, whatever certificate is shown
        async with aiohttp.ClientSession() as session, session.get(url, ssl=False) as answer:
            return 200 <= answer.status < 400
    if "grpc" in probe:
        port = port_number(probe["grpc"]["port"], spec, local)
        async with grpc.aio.insecure_channel(f"{HOST}:{port}") as channel:
            request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(request)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
    return True  # no probe, or one that runs a command of an image: alive is ready


def port_number(port: int | str, spec: Object, local: LocalPod) -> int:
    """Number that a probe's port, given by name or by the manifest's number, has here."""
    for declared in spec.get("ports") or []:
        if port in (declared.get("name"), declared["containerPort"]) and declared.get("name") in local.ports:
            return local.ports[declared["name"]]
    return int(port)
