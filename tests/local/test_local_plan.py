"""`flexpert plan --live` against the embedded API and a pool controller of the tests' own."""

import json
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from flexpert_operator.api.names import pool_control_address
from flexpert_operator.cli.main import main
from flexpert_operator.crds import load_crds
from flexpert_operator.kube import MOE_DEPLOYMENTS, Kube, api_client
from flexpert_operator.local.kubeapi import KubeApiServer
from flexpert_proto import pool_pb2, pool_pb2_grpc

Run = Callable[..., tuple[int, str, str]]
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
LOADS = [90, 5, 5, 10, 10, 60]
MANIFEST = {
    "apiVersion": "flexpert.io/v1alpha1",
    "kind": "MoEDeployment",
    "metadata": {"name": "tiny"},
    "spec": {"model": {"source": "file:///models/tiny"}, "experts": {"workers": 2}},
}


class Controller(pool_pb2_grpc.PoolControlServicer):
    """One layer of six experts, three on each of two workers; it keeps the plans that it is asked about."""

    def __init__(self) -> None:
        self.asked: list[pool_pb2.ReconfigureRequest] = []
        self.knows_model = True

    def GetPool(self, request: pool_pb2.GetPoolRequest, context: Any) -> pool_pb2.Pool:  # noqa: N802
        pool = pool_pb2.Pool(epoch=pool_pb2.Epoch(term=3, sequence=4), loads=LOADS)
        if self.knows_model:
            pool.model.CopyFrom(pool_pb2.ModelInfo(layers=1, experts=6, expert_bytes=2**20))
        for number, name in enumerate(("a", "b")):
            pool.workers.add(id=name, state=pool_pb2.Worker.READY, memory_bytes=5 * 2**20, node=f"node-{name}")
            for index in range(3 * number, 3 * number + 3):
                pool.placement.add(expert=pool_pb2.Expert(layer=0, index=index), worker=name, share=1.0)
        return pool

    def Plan(self, request: pool_pb2.ReconfigureRequest, context: Any) -> pool_pb2.PlanPrediction:  # noqa: N802
        self.asked.append(request)
        return pool_pb2.PlanPrediction(moved_bytes=7 * 2**20, seconds=0.25, peak_bytes={"a": 3 * 2**20}, waves=2)


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Controller]:
    controller = Controller()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    pool_pb2_grpc.add_PoolControlServicer_to_server(controller, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    services = tmp_path / "services.json"
    services.write_text(json.dumps({pool_control_address("tiny", "default"): f"127.0.0.1:{port}"}))
    monkeypatch.setenv("FLEXPERT_SERVICES", str(services))
    yield controller
    server.stop(None)


@pytest.fixture
def plan(
    api: KubeApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    kubeconfig = api.write_kubeconfig(tmp_path / "state" / "kubeconfig")
    kube = Kube(api_client(kubeconfig))
    if not kube.request("GET", CRDS)["items"]:
        for crd in load_crds():
            kube.request("POST", CRDS, crd)
    if kube.find(MOE_DEPLOYMENTS, "default", "tiny") is None:
        kube.request("POST", MOE_DEPLOYMENTS.path("default"), MANIFEST)

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["plan", "--live", "tiny", "--kubeconfig", str(kubeconfig), "--time-limit", "1", *arguments])
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


def test_a_live_pool_is_asked_what_the_plan_would_take(plan: Run, controller: Controller) -> None:
    status, out, error = plan("--dry-run")
    assert (status, error) == (0, "")
    assert "NOW" in out
    assert "7.0 MiB in 0.25 s, at most 3.0 MiB each, in 2 waves" in out
    assert "nothing was changed" in out
    (asked,) = controller.asked
    assert (asked.base_epoch.term, asked.base_epoch.sequence) == (3, 4)
    assert {replica.worker for replica in asked.plan.target} == {"a", "b"}
    assert all(move.sources[-1] == "" for move in asked.plan.moves)


def test_a_live_pool_is_drawn_and_compared_with_what_is_planned(
    plan: Run, controller: Controller, tmp_path: Path
) -> None:
    status, out, error = plan("--heat-map", str(tmp_path / "live.svg"))
    assert (status, error) == (0, "")
    drawn = (tmp_path / "live.svg").read_text()
    assert drawn.startswith("<svg")
    assert all(f">{worker}<" in drawn for worker in ("a", "b"))
    before, after = (float(number) for number in out.split("imbalance (max/mean)")[1].split()[:2])
    assert 1.0 <= after < before == pytest.approx(100 / 90, abs=1e-3)


def test_other_sizes_are_predicted_without_the_pool(plan: Run, controller: Controller) -> None:
    found = json.loads(plan("--workers", "3", "--format", "json")[1])
    assert controller.asked == []
    workers = {replica["worker"] for replica in found["placement"]}
    assert workers == {"a", "b", "new-0"}
    assert found["predicted"]["movedBytes"] == len(found["moves"]) * 2**20 > 0
    smaller = json.loads(plan("--workers", "1", "--slots", "6", "--format", "json")[1])
    assert {replica["worker"] for replica in smaller["placement"]} == {"a"}
    assert len(smaller["moves"]) == 3


def test_a_pool_without_a_model_says_so(plan: Run, controller: Controller) -> None:
    controller.knows_model = False
    status, out, error = plan()
    assert (status, out) == (1, "")
    assert "tiny knows no model yet" in error
