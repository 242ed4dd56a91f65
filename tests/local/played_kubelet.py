"""What a kubelet does for `pods/portforward`, and an API in front of it: for tests of forwarding."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from flexpert_operator.local.kubeapi import tls, write_kubeconfig

PROTOCOL = "v4.channel.k8s.io"
POD_PORT = 7000
TOKEN = "played-token"


async def carry(request: web.Request, pod_port: int, dialled: int) -> web.WebSocketResponse:
    """A pod's port as a kubelet hands it on: data on channel 0, errors on channel 1, both opened with the port."""
    socket = web.WebSocketResponse(protocols=[PROTOCOL], max_msg_size=0)
    await socket.prepare(request)
    for channel in (0, 1):
        await socket.send_bytes(bytes([channel]) + pod_port.to_bytes(2, "little"))
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", dialled)
    except OSError as error:
        await socket.send_bytes(b"\x01" + f"dial tcp {pod_port}: {error.strerror}".encode())
        await socket.close()
        return socket

    async def back() -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                await socket.send_bytes(b"\x00" + data)
        await socket.close()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(back())
        async for message in socket:
            if message.type == WSMsgType.BINARY:
                writer.write(message.data[1:])
        writer.close()
    return socket


class PlayedApi:
    """An API server with the objects that it is given, and the kubelet behind it.

    Attributes:
        objects: By path, with lists at the paths of collections.
        dialled: Port on this host behind each pod.
        refusal: Status and message with which forwarding is refused, or None.
        forwarded: Pods that were forwarded to, in order.
    """

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.dialled: dict[str, int] = {}
        self.refusal: tuple[int, str] | None = None
        self.forwarded: list[str] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return status(401, "Unauthorized")
        if request.path.endswith("/portforward"):
            if self.refusal is not None:
                return status(*self.refusal)
            pod = request.path.split("/")[-2]
            self.forwarded.append(pod)
            return await carry(request, int(request.query["ports"]), self.dialled[pod])
        if request.path not in self.objects:
            return status(404, f"{request.path} not found")
        return web.json_response(self.objects[request.path])

    def play_pool(self, *pods: dict[str, Any], moed: dict[str, Any]) -> None:
        """The objects around a MoEDeployment `tiny` in the namespace `team`: it, its controller's Service, pods."""
        group, core = "/apis/flexpert.io/v1alpha1/namespaces/team", "/api/v1/namespaces/team"
        ports = [{"name": "pool-control", "port": 7000, "targetPort": "pool-control"}]
        self.objects |= {
            f"{group}/moedeployments/tiny": moed,
            f"{group}/moedeployments": {"items": [moed]},
            f"{core}/pods": {"items": list(pods)},
            f"{core}/services/tiny-pool-control": {"spec": {"selector": {"role": "head"}, "ports": ports}},
        }

    def kubeconfig(self, path: Path) -> Path:
        return write_kubeconfig(path, self.url, TOKEN)


def status(code: int, message: str) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message}
    return web.Response(text=json.dumps(body), status=code, content_type="application/json")


@contextlib.contextmanager
def serving(handle: Callable[[web.Request], Any]) -> Iterator[str]:
    """An HTTPS server in a thread of its own; yields where it listens."""
    loop, ready, found = asyncio.new_event_loop(), threading.Event(), []

    async def run(stop: asyncio.Event) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.create("127.0.0.1").context()).start()
        found.append(runner.addresses[0][1])
        ready.set()
        await stop.wait()
        await runner.cleanup()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(run(stop)))
    thread.start()
    try:
        assert ready.wait(30)
        yield f"https://127.0.0.1:{found[0]}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@contextlib.contextmanager
def played_api(folder: Path) -> Iterator[PlayedApi]:
    """An API that commands find by their environment, as a user outside of the cluster does."""
    api = PlayedApi()
    with serving(api.handle) as url, pytest.MonkeyPatch.context() as patch:
        api.url = url
        patch.setenv("KUBECONFIG", str(api.kubeconfig(folder / "kubeconfig")))
        patch.setenv("FLEXPERT_STATE_DIR", str(folder / "state"))
        patch.delenv("FLEXPERT_SERVICES", raising=False)
        yield api


def pod(name: str, ready: bool = True) -> dict[str, Any]:
    """A pod of a head, with the port of its pool controller."""
    return {
        "metadata": {"name": name, "namespace": "team"},
        "spec": {"containers": [{"name": "ray", "ports": [{"name": "pool-control", "containerPort": POD_PORT}]}]},
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }
