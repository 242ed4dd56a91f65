"""A pool controller's port, forwarded through a real API server; the kubelet behind it is played, and no pod runs."""

import socket
import threading
from pathlib import Path

import pytest
from aiohttp import web
from played_kubelet import POD_PORT, carry, serving
from real_api_server import RealApiServer

from flexpert_operator.errors import KubeRefused
from flexpert_operator.forwarding import ServicePort, forwarded
from flexpert_operator.kube import PODS, SERVICES, Kube, api_client

pytestmark = pytest.mark.envtest
NAMESPACE = "default"
SAID = bytes(range(256)) * 4096


def echo(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        left = len(SAID)
        while left and (data := connection.recv(2**16)):
            connection.sendall(data)
            left -= len(data)


def a_pod(kube: Kube, kubelet: int) -> None:
    """A head's pod on a node whose kubelet listens on that port, with a Service in front of it."""
    kube.request("POST", "/api/v1/nodes", {"kind": "Node", "apiVersion": "v1", "metadata": {"name": "node"}})
    address = [{"type": "InternalIP", "address": "127.0.0.1"}]
    state = {"addresses": address, "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet}}}
    merge = "application/merge-patch+json"
    kube.request("PATCH", "/api/v1/nodes/node/status", {"status": state}, content_type=merge)
    ports = [{"name": "pool-control", "containerPort": POD_PORT}]
    container = {"name": "ray", "image": "none", "ports": ports}
    metadata = {"name": "head", "labels": {"role": "head"}}
    spec = {"nodeName": "node", "containers": [container], "automountServiceAccountToken": False}
    kube.create(PODS, NAMESPACE, {"metadata": metadata, "spec": spec})
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    kube.patch(PODS, NAMESPACE, "head", {"status": ready}, "status")
    front = [{"name": "pool-control", "port": 7000, "targetPort": "pool-control"}]
    body = {"metadata": {"name": "tiny-pool-control"}, "spec": {"selector": {"role": "head"}, "ports": front}}
    kube.create(SERVICES, NAMESPACE, body)


def test_bytes_go_through_a_real_api_server_and_who_may_not_is_told(api: RealApiServer, tmp_path: Path) -> None:
    administrator = api.write_kubeconfig(tmp_path / "kubeconfig")
    kube = Kube(api_client(administrator))
    service = ServicePort("tiny-pool-control", NAMESPACE, 7000)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialled = listener.getsockname()[1]
        thread = threading.Thread(target=echo, args=(listener,))
        thread.start()
        asked = []

        async def kubelet(request: web.Request) -> web.StreamResponse:
            asked.append(request.path)
            return await carry(request, POD_PORT, dialled)

        with serving(kubelet) as url:
            a_pod(kube, int(url.rpartition(":")[2]))
            with forwarded(kube, api_client(administrator), service) as forward, socket.socket(socket.AF_UNIX) as here:
                here.connect(str(forward.path))
                sender = threading.Thread(target=here.sendall, args=(SAID,))
                sender.start()
                heard = b""
                while len(heard) < len(SAID) and (data := here.recv(2**16)):
                    heard += data
                sender.join()
            thread.join()
    assert heard == SAID
    assert asked == [f"/portForward/{NAMESPACE}/head"]
    stranger = api.write_kubeconfig(tmp_path / "stranger", account(kube, api))
    with pytest.raises(KubeRefused, match="pods/portforward"), forwarded(kube, api_client(stranger), service):
        pass


def account(kube: Kube, api: RealApiServer) -> str:
    """A token of somebody who may do nothing."""
    kube.request("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": "stranger"}})
    return api.token_of(NAMESPACE, "stranger")
