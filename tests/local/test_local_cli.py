"""The `flexpert` command against the embedded API, an ingress and a pool controller of the tests' own."""

import json
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from certificates import Authority

from flexpert_operator.cli.main import main
from flexpert_operator.crds import load_crds
from flexpert_operator.kube import MERGE_PATCH, MOE_DEPLOYMENTS, Kube, api_client
from flexpert_operator.local.kubeapi import KubeApiServer
from flexpert_operator.local.layout import state_layout
from flexpert_operator.local.status import pages
from flexpert_proto import generation_pb2 as gen
from flexpert_proto import generation_pb2_grpc, names, pool_pb2, pool_pb2_grpc
from flexpert_proto.channels import rpc_server_credentials
from flexpert_proto.credentials import serving_identity

Run = Callable[..., tuple[int, str, str]]
MANIFEST = """
apiVersion: flexpert.io/v1alpha1
kind: MoEDeployment
metadata: {name: tiny}
spec:
  model: {source: "file:///models/tiny"}
  experts: {workers: 2}
"""


class Ingress(generation_pb2_grpc.GenerationServicer):
    """Says the prompt backwards, a letter a token; `requests` keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[gen.GenerateRequest] = []

    def Generate(self, request: gen.GenerateRequest, context: Any) -> Iterator[gen.GenerateResponse]:  # noqa: N802
        self.requests.append(request)
        if not request.text:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "prompt: must not be empty")
        for letter in reversed(request.text):
            yield gen.GenerateResponse(text=letter, tokens=[gen.Token(id=ord(letter))], seed=7)
        usage = gen.Usage(prompt_tokens=len(request.text), completion_tokens=len(request.text))
        yield gen.GenerateResponse(finish_reason=gen.FINISH_STOP, usage=usage, seed=7)


class Controller(pool_pb2_grpc.PoolControlServicer):
    """A pool of two workers; expert 0 of layer 0 has a replica on each."""

    def GetPool(self, request: pool_pb2.GetPoolRequest, context: Any) -> pool_pb2.Pool:  # noqa: N802
        def replica(index: int, worker: str, share: float) -> pool_pb2.Replica:
            return pool_pb2.Replica(expert=pool_pb2.Expert(layer=0, index=index), worker=worker, share=share)

        workers = [
            pool_pb2.Worker(id=name, pod=f"pod-{name}", state=pool_pb2.Worker.READY, resident_bytes=2**20)
            for name in ("a", "b")
        ]
        return pool_pb2.Pool(
            epoch=pool_pb2.Epoch(term=3, sequence=4),
            workers=workers,
            placement=[replica(0, "a", 0.25), replica(0, "b", 0.75), replica(1, "a", 1.0)],
            model=pool_pb2.ModelInfo(layers=1, experts=2),
            loads=[40, 60],
        )


@pytest.fixture(scope="module")
def api() -> Iterator[KubeApiServer]:
    with KubeApiServer() as server:
        yield server


@pytest.fixture
def kube(api: KubeApiServer, tmp_path: Path) -> Iterator[Kube]:
    path = api.write_kubeconfig(tmp_path / "state" / "kubeconfig")
    kube = Kube(api_client(path))
    known = kube.request("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions")["items"]
    if not known:
        for crd in load_crds():
            kube.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
    yield kube
    for item in kube.list(MOE_DEPLOYMENTS, "default", ""):
        kube.delete(MOE_DEPLOYMENTS, "default", item["metadata"]["name"])


@pytest.fixture
def flexpert(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("KUBECONFIG", "FLEXPERT_SERVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FLEXPERT_STATE_DIR", str(tmp_path / "state"))

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


@pytest.fixture
def server() -> Iterator[tuple[Ingress, str]]:
    ingress = Ingress()
    grpc_server = grpc.server(futures.ThreadPoolExecutor(4))
    generation_pb2_grpc.add_GenerationServicer_to_server(ingress, grpc_server)
    pool_pb2_grpc.add_PoolControlServicer_to_server(Controller(), grpc_server)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    grpc_server.start()
    yield ingress, f"127.0.0.1:{port}"
    grpc_server.stop(None)


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "moe.yaml"
    path.write_text(text)
    return str(path)


def set_status(kube: Kube, status: dict[str, Any]) -> None:
    path = MOE_DEPLOYMENTS.path("default", "tiny", "status")
    kube.request("PATCH", path, {"status": status}, content_type=MERGE_PATCH)


def test_apply_creates_and_changes(flexpert: Run, kube: Kube, tmp_path: Path) -> None:
    assert flexpert("apply", "-f", write(tmp_path, MANIFEST)) == (0, "moedeployment.flexpert.io/tiny applied\n", "")
    assert flexpert("apply", "-f", write(tmp_path, MANIFEST.replace("workers: 2", "workers: 3")))[0] == 0
    assert kube.get(MOE_DEPLOYMENTS, "default", "tiny")["spec"]["experts"]["workers"] == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MANIFEST.replace("workers: 2", "workers: -2"), "spec.experts.workers"),
        (MANIFEST.replace("workers: 2", "worker: 2"), "spec.experts.worker"),
        ("a: [", "is not YAML"),
        ("", "holds no object"),
        ("a: 1", "needs apiVersion, kind and metadata.name"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: p}}", "use kubectl"),
    ],
)
def test_what_cannot_be_applied_is_one_clear_line(
    flexpert: Run, kube: Kube, tmp_path: Path, text: str, said: str
) -> None:
    status, out, error = flexpert("apply", "-f", write(tmp_path, text))
    assert (status, out) == (1, "")
    assert said in error
    assert error.startswith("flexpert: ")
    assert error.count("\n") == 1


def test_a_file_that_is_not_there(flexpert: Run) -> None:
    assert flexpert("apply", "-f", "/no/such.yaml")[::2] == (1, "flexpert: /no/such.yaml: No such file or directory\n")


def test_without_a_cluster_the_command_says_how_to_get_one(flexpert: Run) -> None:
    status, _, error = flexpert("status")
    assert status == 1
    assert "run `flexpert local up`" in error


def test_a_cluster_that_does_not_answer(flexpert: Run, api: KubeApiServer, tmp_path: Path) -> None:
    path = api.write_kubeconfig(tmp_path / "kubeconfig")
    config = json.loads(path.read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    path.write_text(json.dumps(config))
    status, _, error = flexpert("status", "--kubeconfig", str(path))
    assert (status, error.count("\n")) == (1, 1)
    assert "no answer from the API server https://127.0.0.1:1 to GET" in error
    assert error.endswith("Connection refused\n")


def test_the_namespace_is_that_of_the_context(flexpert: Run, kube: Kube, api: KubeApiServer, tmp_path: Path) -> None:
    path = api.write_kubeconfig(tmp_path / "other")
    config = yaml.safe_load(path.read_text())
    config["contexts"][0]["context"]["namespace"] = "team"
    path.write_text(yaml.safe_dump(config))
    assert "no MoEDeployment in namespace team" in flexpert("status", "--kubeconfig", str(path))[1]
    assert "no MoEDeployment tiny in namespace team" in flexpert("status", "tiny", "--kubeconfig", str(path))[2]
    assert "in namespace mine" in flexpert("status", "-n", "mine", "--kubeconfig", str(path))[1]
    path.write_text("contexts: [")
    code, _, error = flexpert("status", "--kubeconfig", str(path))
    assert code == 1
    assert f"the kubeconfig {path} cannot be used" in error


def test_a_cluster_without_our_kinds_is_told_apart_from_a_name_that_is_not_there(flexpert: Run, tmp_path: Path) -> None:
    with KubeApiServer() as bare:
        path = bare.write_kubeconfig(tmp_path / "bare")
        for arguments in (("status",), ("status", "tiny"), ("rebalance", "tiny"), ("drain", "tiny", "pod")):
            code, _, error = flexpert(*arguments, "--kubeconfig", str(path))
            assert code == 1
            assert "install the CRDs with the Helm chart" in error, arguments


def test_status_of_all_and_of_one(flexpert: Run, kube: Kube, tmp_path: Path) -> None:
    assert "no MoEDeployment" in flexpert("status")[1]
    flexpert("apply", "-f", write(tmp_path, MANIFEST))
    since = "2026-01-01T00:00:00Z"
    ready = {"type": "Ready", "status": "True", "reason": "Serving", "message": "m", "lastTransitionTime": since}
    experts = {"desired": 2, "workers": 2, "ready": 2, "epoch": "3.4", "replicas": 65, "imbalancePercent": 7}
    set_status(kube, {"conditions": [ready], "experts": experts, "engines": {"desired": 1, "ready": 1}})
    line = flexpert("status")[1].splitlines()[1].split()
    assert line == ["tiny", "True", "2/2", "1/1", "3.4", "65", "7%"]
    out = flexpert("status", "tiny")[1]
    assert "page: kubectl port-forward -n default service/tiny-pool-control 7080, then http://localhost:7080/ui" in out
    table = {
        "tiny-pool-control.default.svc:7080": "127.0.0.1:4711",
        "tiny-head-control.default.svc:7080": "127.0.0.1:1",
    }
    (tmp_path / "state" / "services.json").write_text(json.dumps(table))
    assert pages(state_layout(str(tmp_path / "state"))) == {"default/tiny": "http://127.0.0.1:4711/ui"}
    out = flexpert("status", "tiny")[1]
    assert "page: http://127.0.0.1:4711/ui" in out
    assert "epoch: 3.4" in out
    assert "Serving" in out
    assert json.loads(flexpert("status", "tiny", "-o", "json")[1])["experts"]["replicas"] == 65
    assert flexpert("status", "other")[::2] == (1, "flexpert: no MoEDeployment other in namespace default\n")


def test_status_of_what_no_operator_has_seen(flexpert: Run, tmp_path: Path, kube: Kube) -> None:
    flexpert("apply", "-f", write(tmp_path, MANIFEST))
    assert "no operator has looked at it yet" in flexpert("status")[1]


def test_status_shows_why_it_is_degraded(flexpert: Run, kube: Kube, tmp_path: Path) -> None:
    flexpert("apply", "-f", write(tmp_path, MANIFEST))
    since = "2026-01-01T00:00:00Z"
    bad = {"type": "Degraded", "status": "True", "reason": "ModelNotFound", "message": "no folder"}
    set_status(kube, {"conditions": [{**bad, "lastTransitionTime": since}]})
    assert "ModelNotFound: no folder" in flexpert("status")[1]


def test_the_placement_is_asked_of_the_pool(
    flexpert: Run, kube: Kube, tmp_path: Path, server: tuple[Ingress, str]
) -> None:
    flexpert("apply", "-f", write(tmp_path, MANIFEST))
    table = {"tiny-pool-control.default.svc:7000": server[1]}
    (tmp_path / "state" / "services.json").write_text(json.dumps(table))
    out = flexpert("status", "--placement")[1]
    assert out.splitlines() == [
        "epoch 3.4, 3 replicas",
        "a on pod-a: ready, 1.0 MiB, load 70.0%",
        "  layer 0: 0(25%) 1",
        "b on pod-b: ready, 1.0 MiB, load 30.0%",
        "  layer 0: 0(75%)",
    ]
    assert json.loads(flexpert("status", "--placement", "-o", "json")[1])["workers"][1]["layers"] == {"0": ["0(75%)"]}


def test_generate_prints_the_text_and_passes_its_parameters(flexpert: Run, server: tuple[Ingress, str]) -> None:
    ingress, address = server
    options = [
        "--max-tokens",
        "5",
        "--temperature",
        "0",
        "--top-p",
        "0.5",
        "--top-k",
        "3",
        "--seed",
        "9",
        "--stop",
        "x",
    ]
    assert flexpert("generate", "--endpoint", address, *options, "abc") == (0, "cba\n", "")
    parameters = ingress.requests[0].parameters
    assert (parameters.max_tokens, parameters.temperature, parameters.top_k, parameters.seed) == (5, 0, 3, 9)
    assert list(parameters.stop) == ["x"]
    assert parameters.HasField("temperature")


def test_a_stream_prints_the_prompt_and_its_continuation(flexpert: Run, server: tuple[Ingress, str]) -> None:
    assert flexpert("generate", "--stream", "--endpoint", server[1], "abc")[1] == "abccba\n"


def test_generate_as_json(flexpert: Run, server: tuple[Ingress, str]) -> None:
    found = json.loads(flexpert("generate", "-o", "json", "--endpoint", server[1], "abc")[1])
    assert (found["text"], found["finish_reason"], found["seed"], found["completion_tokens"]) == ("cba", "stop", 7, 3)


def test_generate_finds_the_ingress_of_the_only_moedeployment(
    flexpert: Run, kube: Kube, tmp_path: Path, server: tuple[Ingress, str]
) -> None:
    status, _, error = flexpert("generate", "abc")
    assert status == 1
    assert "apply one" in error
    flexpert("apply", "-f", write(tmp_path, MANIFEST))
    assert "no endpoint yet" in flexpert("generate", "abc")[2]
    set_status(kube, {"endpoints": {"grpc": "tiny-ingress.default.svc:9000"}})
    (tmp_path / "state" / "services.json").write_text(json.dumps({"tiny-ingress.default.svc:9000": server[1]}))
    assert flexpert("generate", "--name", "tiny", "abc")[1] == "cba\n"
    flexpert("apply", "-f", write(tmp_path, MANIFEST.replace("name: tiny", "name: other")))
    assert "name one of other, tiny" in flexpert("generate", "abc")[2]


def test_the_certificate_is_of_the_service_however_it_is_reached(flexpert: Run, kube: Kube, tmp_path: Path) -> None:
    front = Authority().issue(tmp_path / "front", "tiny-ingress.default.svc")
    identity = serving_identity({names.ENV_SERVING_CERTIFICATE: str(front)})
    assert identity is not None
    server = grpc.server(futures.ThreadPoolExecutor(4))
    generation_pb2_grpc.add_GenerationServicer_to_server(Ingress(), server)
    port = server.add_secure_port("127.0.0.1:0", rpc_server_credentials(identity))
    server.start()
    secured = "  security: {tls: {secretName: front}}\n"
    flexpert("apply", "-f", write(tmp_path, MANIFEST + secured))
    set_status(kube, {"endpoints": {"grpc": "tiny-ingress.default.svc:9000"}})
    table = {"tiny-ingress.default.svc:9000": f"127.0.0.1:{port}"}
    (tmp_path / "state" / "services.json").write_text(json.dumps(table))
    assert flexpert("generate", "abc", "--ca", str(front / "ca.crt")) == (0, "cba\n", "")
    assert flexpert("generate", "abc")[0] == 1  # TLS all the same, but not by an authority of this host's
    other = flexpert("generate", "abc", "--ca", str(front / "ca.crt"), "--server-name", "localhost")
    assert other[0] == 1
    server.stop(None)


def test_a_refused_request_is_one_clear_line(flexpert: Run, server: tuple[Ingress, str]) -> None:
    status, _, error = flexpert("generate", "--endpoint", server[1], "")
    assert (status, error) == (1, "flexpert: prompt: must not be empty\n")


def test_a_command_written_wrongly_exits_with_2(flexpert: Run) -> None:
    with pytest.raises(SystemExit) as exit_info:
        flexpert("generate", "--max-tokens", "many", "x")
    assert exit_info.value.code == 2
