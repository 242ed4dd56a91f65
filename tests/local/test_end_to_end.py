"""The main path on this machine: up, apply, Ready, text, growing and shrinking under load, threads, down."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import local_ports
import psutil
import pytest

from flexpert_operator.api import names as operator_names
from flexpert_operator.kube import MERGE_PATCH, MOE_DEPLOYMENTS, Kube, api_client
from flexpert_operator.local import processes, state
from flexpert_operator.local.layout import Layout
from flexpert_operator.local.processes import ProcessId
from flexpert_operator.local.runtime import books
from flexpert_proto import names, pool_pb2
from flexpert_proto.client import GenerationClient
from flexpert_proto.pool_pb2_grpc import PoolControlStub

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
NAME = "tiny-moe"
READY_S = 300.0
PROMPT = "def "


class Cluster:
    """A laptop cluster of the test's own, driven through the command line as a user would."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def flexpert(self, *arguments: str) -> str:
        environment = {**os.environ, "FLEXPERT_STATE_DIR": str(self.layout.root)}
        command = [sys.executable, "-m", "flexpert_operator.cli.main", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def kube(self) -> Kube:
        return Kube(api_client(self.layout.kubeconfig))

    def status(self) -> dict[str, Any]:
        return dict(self.kube.get(MOE_DEPLOYMENTS, "default", NAME).get("status") or {})

    def is_ready(self) -> bool:
        conditions = self.status().get("conditions") or []
        return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)

    def scale(self, workers: int) -> None:
        path = MOE_DEPLOYMENTS.path("default", NAME, "scale")
        self.kube.request("PATCH", path, {"spec": {"replicas": workers}}, content_type=MERGE_PATCH)

    def has_settled_at(self, workers: int) -> bool:
        """Whether exactly so many workers live, and each holds experts of the newest table."""
        pool = self.pool()
        ready = {worker.id for worker in pool.workers if worker.state == pool_pb2.Worker.READY}
        live = [worker for worker in pool.workers if worker.state != pool_pb2.Worker.LOST]
        return len(live) == len(ready) == workers and {replica.worker for replica in pool.placement} == ready

    def pool(self) -> pool_pb2.Pool:
        address = names.resolve(operator_names.pool_control_address(NAME, "default"))
        with grpc.insecure_channel(address) as channel:
            return PoolControlStub(channel).GetPool(pool_pb2.GetPoolRequest(with_placement=True), timeout=20)

    def ingress(self) -> str:
        return names.resolve(operator_names.ingress_address(NAME, "default", 9000))

    def wait(self, what: Callable[[], bool], timeout_s: float = READY_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._holds(what):
            assert time.monotonic() < deadline, f"{self.status()}\n{self.tails()}"
            time.sleep(0.5)

    @staticmethod
    def _holds(what: Callable[[], bool]) -> bool:
        try:
            return what()
        except grpc.RpcError:  # the controller starts anew: no failure, unless it never comes back
            return False

    def tails(self) -> str:
        logs = sorted(self.layout.logs.glob("*.log"))
        return "\n".join(f"== {log.name}\n{processes.tail(log, 8)}" for log in logs)

    def containers(self) -> list[ProcessId]:
        local = books.load(self.layout.pods).values()
        return [item.process for pod in local for item in pod.containers if item.process is not None]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    layout = Layout(tmp_path / "state")
    monkeypatch.setenv(names.ENV_SERVICES, str(layout.services))
    here = Cluster(layout)
    yield here
    processes.end_sessions(state.read_parts(layout).values(), 0)
    processes.end_sessions(here.containers(), 0)
    shutil.rmtree(layout.scratch, ignore_errors=True)


class Load:
    """Streams of one greedy prompt, over and over, until told to stop; every text must be the same."""

    def __init__(self, cluster: Cluster, expected: str) -> None:
        self.num_texts = 0
        self.failures: list[str] = []
        self._cluster = cluster
        self._expected = expected
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with GenerationClient(self._cluster.ingress) as client:
            while not self._stop.is_set():
                try:
                    text = client.generate(PROMPT, max_tokens=24, temperature=0, timeout_s=120).text
                except Exception as error:  # noqa: BLE001  whatever fails is counted, and the test fails for it
                    text = repr(error)
                self.num_texts += 1
                if text != self._expected:
                    self.failures.append(text)


def test_from_up_to_down(cluster: Cluster) -> None:
    cluster.flexpert("local", "up")
    cluster.flexpert("apply", "-f", str(ROOT / "examples" / "tiny-moe.yaml"))
    cluster.wait(cluster.is_ready)

    greedy = ("--temperature", "0", "--max-tokens", "24")
    text = cluster.flexpert("generate", *greedy, PROMPT).removesuffix("\n")
    assert len(text) > 20
    assert cluster.flexpert("generate", "--stream", *greedy, PROMPT) == f"{PROMPT}{text}\n"

    check_threads(cluster)
    check_ports(cluster)

    with Load(cluster, text) as load:
        cluster.scale(3)
        cluster.wait(lambda: cluster.has_settled_at(3))
        cluster.scale(2)
        cluster.wait(lambda: cluster.has_settled_at(2))
        trace = str(cluster.layout.root.parent / "trace.npz")
        said = cluster.flexpert("trace", "record", NAME, "--tokens", "100", "--seconds", "240", "-o", trace)
        assert f"{trace}: 100 tokens" in said
        plan = json.loads(cluster.flexpert("plan", "--live", NAME, "--trace", trace, "--format", "json"))
        assert plan["predicted"]["refusal"] == ""
        assert plan["after"]["imbalance"] <= plan["before"]["imbalance"] + 1e-6
        check_views(cluster)
    assert load.failures == []
    assert load.num_texts > 0
    assert [engine.expert_bytes for engine in cluster.pool().engines] == [0]

    leaders = [*cluster.containers(), *state.read_parts(cluster.layout).values()]
    cluster.flexpert("local", "down")
    assert [leader for leader in leaders if processes.session_members(leader)] == []
    assert mentioning(str(cluster.layout.root), str(cluster.layout.scratch)) == []
    assert not cluster.layout.scratch.exists()


def check_views(cluster: Cluster) -> None:
    """What `top` and a small load by `bench serve` say of a pool that serves."""
    seen = json.loads(cluster.flexpert("top", NAME, "--once", "-o", "json"))
    assert [worker["state"] for worker in seen["workers"]] == ["Ready", "Ready"]
    assert sum(worker["loadPercent"] for worker in seen["workers"]) == pytest.approx(100, abs=0.1)
    assert seen["engines"][0]["epoch"] == seen["epoch"]
    assert seen["operation"]["phase"] == "Succeeded"
    assert all(imbalance >= 1 for imbalance in seen["layerImbalance"])
    shown = cluster.flexpert("top", "--once")
    assert f"{NAME} (default)  Ready" in shown
    load = ("--num-prompts", "4", "--dataset-name", "random", "--random-input-len", "8", "--random-output-len", "4")
    for backend in ("openai", "grpc"):
        told = cluster.flexpert("bench", "serve", NAME, "--backend", backend, *load, "--ignore-eos")
        assert "Successful requests:                     4" in told
        assert "Total generated tokens:                  16" in told


def check_threads(cluster: Cluster) -> None:
    """Every process of the pool computes with its share, one thread here, and waits passively.

    What torch says is each process's own report. The environment is looked up from outside; Ray writes the titles of
    its own daemons over theirs, so only what can still be read of those is checked.
    """
    pool = cluster.pool()
    members = [*pool.workers, *pool.engines]
    assert len(members) == 3
    assert [member.threads for member in members] == [1, 1, 1]
    for member in members:
        assert openmp(member.pid) == ("1", "PASSIVE")
    for leader in cluster.containers():
        assert openmp(leader.pid) == ("1", "PASSIVE")
        found = [openmp(pid) for pid in processes.session_members(leader)]
        assert {value for value in found if value != (None, None)} == {("1", "PASSIVE")}


def check_ports(cluster: Cluster) -> None:
    """Every open port stands in docs/security.md and no other, and Ray's answer nobody without its token."""
    leaders = [*cluster.containers(), *state.read_parts(cluster.layout).values()]
    for _ in range(30):  # a process that Ray has just started gets its title a moment after its port
        found = local_ports.listeners(pid for leader in leaders for pid in processes.session_members(leader))
        if not (wrong := local_ports.unlisted(found)):
            break
        time.sleep(1)
    assert wrong == []
    assert local_ports.unguarded(found) == []
    for secret in (cluster.layout.ray_token, cluster.layout.token):
        assert secret.stat().st_mode & 0o777 == 0o600
    assert cluster.layout.root.stat().st_mode & 0o777 == 0o700


def openmp(pid: int) -> tuple[str | None, str | None]:
    """A process's OpenMP settings, as it was started with them."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except FileNotFoundError:
        return None, None
    values = dict(entry.partition("=")[::2] for entry in entries)
    threads, policy = values.get("OMP_NUM_THREADS"), values.get("OMP_WAIT_POLICY")
    return (threads, policy) if threads and policy else (None, None)


def mentioning(*paths: str) -> list[str]:
    """Command lines of processes that name one of these paths."""
    lines = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if any(path in line for path in paths):
            lines.append(line)
    return lines
