"""Commands that ask a pool, from outside of its cluster: through the API server to the pod of its controller.

The API and the kubelet behind it are played; `tests/apiserver/test_apiserver_forwarding.py` has a real API server.
"""

import json
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from played_kubelet import PlayedApi, played_api, pod

from flexpert_operator import forwarding
from flexpert_operator.cli.main import main
from flexpert_operator.forwarding import Forward, ServicePort
from flexpert_proto import pool_pb2 as pb
from flexpert_proto.pool_pb2_grpc import PoolControlServicer, add_PoolControlServicer_to_server

PODS = "/api/v1/namespaces/team/pods"
REPLICAS = 20_000


class Controller(PoolControlServicer):
    """A pool controller whose placement takes many frames to tell."""

    def GetPool(self, request: pb.GetPoolRequest, context: Any) -> pb.Pool:  # noqa: N802
        worker = pb.Worker(id="w0", pod="pod-of-w0", state=pb.Worker.READY)
        replicas = [pb.Replica(expert=pb.Expert(layer=0, index=i), worker="w0", share=1) for i in range(REPLICAS)]
        return pb.Pool(workers=[worker], placement=replicas, epoch=pb.Epoch(term=3, sequence=7))


@pytest.fixture
def api(tmp_path: Path) -> Iterator[PlayedApi]:
    with played_api(tmp_path) as api:
        api.play_pool(pod("away", ready=False), moed={"metadata": {"name": "tiny", "namespace": "team"}, "spec": {}})
        yield api


@pytest.fixture
def controller(api: PlayedApi) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_send_message_length", -1)])
    add_PoolControlServicer_to_server(Controller(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    api.objects[PODS]["items"].append(pod("head-1"))
    api.dialled["head-1"] = port
    yield port
    server.stop(None)


def status(capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["status", "tiny", "--placement", "-o", "json", "-n", "team"])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_command_reaches_the_controller_of_a_ready_pod(
    api: PlayedApi, controller: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(os.listdir("/tmp"))
    code, out, err = status(capsys)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["epoch"] == "3.7"
    assert len(found["workers"][0]["layers"]["0"]) == REPLICAS
    assert set(api.forwarded) == {"head-1"}
    assert not [name for name in set(os.listdir("/tmp")) - before if name.startswith("flexpert-")]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("forward ")]


def test_what_forbids_it_is_said(api: PlayedApi, controller: int, capsys: pytest.CaptureFixture[str]) -> None:
    api.refusal = (403, 'pods "head-1" is forbidden: User "eve" cannot create resource "pods/portforward"')
    code, out, err = status(capsys)
    assert (code, out) == (1, "")
    assert 'User "eve" cannot create resource "pods/portforward"' in err
    assert err.count("\n") == 1


def test_without_a_ready_pod_it_says_so(api: PlayedApi, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = status(capsys)
    assert code == 1
    assert "no pod behind Service tiny-pool-control is ready" in err


def test_a_pod_where_nothing_listens_is_told_as_the_kubelet_does(
    api: PlayedApi, controller: int, capsys: pytest.CaptureFixture[str]
) -> None:
    api.dialled["head-1"] = 1
    code, _, err = status(capsys)
    assert code == 1
    assert "the pool controller does not answer" in err
    assert "forwarded through the API server" in err


class Refusing:
    """A stream to a port at which nobody listens; its error is told when the test lets it be."""

    def __init__(self) -> None:
        self.local_ports = {7000: None}
        self.told = threading.Event()
        self._near, far = socket.socketpair()
        far.close()

    def socket(self, port: int) -> socket.socket:
        return self._near

    def error(self, port: int) -> str:
        assert self.told.wait(30)
        return f"dial tcp {port}: Connection refused"

    def close(self) -> None:
        self._near.close()


def test_a_connection_ends_when_it_is_known_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where what is sent into it finds the stream broken first."""
    stream = Refusing()
    monkeypatch.setattr(forwarding, "target_of", lambda kube, service: ("head-1", 7000))
    monkeypatch.setattr(forwarding, "portforward", lambda *_, **__: stream)
    forward = Forward(SimpleNamespace(), SimpleNamespace(), ServicePort("tiny-pool-control", "team", 7000))
    try:
        with socket.socket(socket.AF_UNIX) as here:
            here.connect(str(forward.path))
            here.sendall(b"a greeting")
            here.settimeout(0.5)
            with pytest.raises(TimeoutError):
                here.recv(1)
            stream.told.set()
            here.settimeout(30)
            assert here.recv(1) == b""
            assert forward.trouble == "dial tcp 7000: Connection refused"
    finally:
        forward.close()


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("a.b.svc:7000", ServicePort("a", "b", 7000)),
        ("a.b.svc.cluster.local:80", ServicePort("a", "b", 80)),
        ("127.0.0.1:7000", None),
        ("a.b:7000", None),
        ("a.b.svc", None),
    ],
)
def test_addresses_of_services_are_told_from_others(address: str, found: ServicePort | None) -> None:
    assert ServicePort.parse(address) == found
