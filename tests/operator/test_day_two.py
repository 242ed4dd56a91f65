"""The commands of the second day, as a user gives them, with the operator for real against the embedded API."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from simulated_cluster import NAMESPACE
from simulated_world import World, pool_pods

from flexpert_operator.api import names
from flexpert_operator.cli.main import main
from flexpert_operator.cli.redaction import REDACTED, Redaction, without_secrets
from flexpert_operator.kube import PODS
from flexpert_proto import names as pool_names

Run = Callable[..., tuple[int, str, str]]
QUICK = {"enabled": True, "intervalSeconds": 3600, "halfLifeSeconds": 2, "cooldownSeconds": 3600}


@pytest.fixture
def flexpert(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("FLEXPERT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("KUBECONFIG", str(world.kubeconfig))

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main([*arguments, "-n", NAMESPACE])
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


def test_a_look_that_is_asked_for_is_taken_at_once(world: World, flexpert: Run) -> None:
    """The interval and the cooldown are an hour, and looking is switched off at first: a request needs neither."""
    pool = world.serve("asked")
    pool.compute_skewed()
    world.patch("asked", {"placement": {"rebalance": QUICK | {"enabled": False}}})
    world.until("the loads are known", lambda: "imbalancePercent" in world.get("asked")["status"]["experts"])

    def rebalanced() -> bool:
        status, out, error = flexpert("rebalance", "asked", "--timeout", "60")
        assert status == 0, error
        assert out.startswith(("Rebalance (GainExceedsCost)", "Stay (WatchingLoads)", "Stay (NoTraffic)")), out
        return out.startswith("Rebalance")

    world.until("experts are moved because somebody asked", rebalanced)
    assert len(pool.requests) == 2
    placement = world.get("asked")["status"]["placement"]
    annotation = world.get("asked")["metadata"]["annotations"][names.REBALANCE_ANNOTATION]
    assert placement["lookAsked"] == annotation


def test_without_an_operator_a_request_is_given_up_with_a_reason(world: World, flexpert: Run) -> None:
    world.apply("idle", workers=0)
    world.until("it is idle", lambda: world.condition("idle", "Ready") == ("False", "Idle"))
    status, _, error = flexpert("rebalance", "idle", "--timeout", "0.1")
    assert status == 1
    assert "Ready is False, Idle" in error


def test_a_pod_that_is_drained_is_replaced(world: World, flexpert: Run) -> None:
    pool = world.serve("drained")
    worker = min(pool.holders())
    pods = {pod["metadata"]["name"] for pod in pool_pods(world, "drained")}
    assert flexpert("drain", "drained", "nobody")[::2] == (
        1,
        f"flexpert: drained has no expert pod or worker nobody; there are: {known(world, 'drained')}\n",
    )
    status, out, error = flexpert("drain", "drained", worker, "--timeout", "90")
    assert (status, error) == (0, "")
    assert "its experts are moved off" in out
    assert out.splitlines()[-1].endswith(": gone")
    world.until("two pods again", lambda: world.is_settled("drained") and len(pool.holders()) == 2)
    after = {pod["metadata"]["name"] for pod in pool_pods(world, "drained")}
    assert len(pods & after) == 1
    assert world.reasons("drained").count("WorkerLeaving") == 1
    assert world.cluster.random_deletions == []


def known(world: World, name: str) -> str:
    """Pods and workers, as the command lists them."""
    pods = {pod["metadata"]["name"] for pod in pool_pods(world, name)}
    return ", ".join(sorted(pods | set(world.cluster.pools[name].holders())))


@pytest.mark.parametrize(("name", "begun"), [("kept", False), ("held", True)])
def test_a_drain_can_be_taken_back(world: World, flexpert: Run, name: str, begun: bool) -> None:
    """At once, or when the pod that is to follow is asked for and waits for a node: one alone has no room for all."""
    world.serve(name, memoryPerWorker="6Mi")
    pod = pool_pods(world, name)[0]["metadata"]["name"]
    world.cluster.unschedulable.add(name)
    assert flexpert("drain", name, pod, "--no-wait")[0] == 0
    if begun:
        world.until("another is asked for", lambda: len(pool_pods(world, name)) == 3)
    assert flexpert("drain", name, pod, "--cancel")[0] == 0
    assert names.DRAIN_ANNOTATION not in (world.kube.get(PODS, NAMESPACE, pod)["metadata"].get("annotations") or {})
    world.cluster.unschedulable.clear()
    world.until("it goes on", lambda: world.is_settled(name) and world.group(name)["replicas"] == 2)


def test_a_support_bundle_has_everything_and_no_secret(world: World, flexpert: Run, tmp_path: Path) -> None:
    world.serve("bundled")
    environment = [{"name": "HF_TOKEN", "value": "hf_abcdefgh12345678"}, {"name": "PLAIN", "value": "shown"}]
    world.patch("bundled", {"engines": {"env": environment}})
    world.until("it is told", lambda: world.is_settled("bundled"))
    file = tmp_path / "bundle.tar.gz"
    status, out, error = flexpert("support-bundle", "bundled", "-o", str(file))
    assert (status, error) == (0, "")
    with tarfile.open(file) as bundle:
        texts = {
            member.name.partition("/")[2]: reader.read().decode()
            for member in bundle.getmembers()
            if (reader := bundle.extractfile(member)) is not None
        }
    assert {"moedeployment.yaml", "rayclusters.yaml", "pods.yaml", "events.yaml", "pool.json", "missing.txt"} <= set(
        texts
    )
    assert json.loads(texts["pool.json"])["placement"]
    shown = yaml.safe_load(texts["moedeployment.yaml"])["spec"]["engines"]["env"]
    assert shown == [{"name": "HF_TOKEN", "value": REDACTED}, {"name": "PLAIN", "value": "shown"}]
    assert not any("hf_abcdefgh12345678" in text for text in texts.values())
    assert not any("managedFields" in text for text in texts.values())
    assert all(line in out for line in texts["missing.txt"].splitlines())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abcdef123456", f"Authorization: Bearer {REDACTED}"),
        ("RAY_AUTH_TOKEN=0123456789abcdef done", f"RAY_AUTH_TOKEN={REDACTED} done"),
        ("password=hunter22", f"password={REDACTED}"),
        ("fetched with hf_abcdefghijk", f"fetched with {REDACTED}"),
        ("the laptop's own is known-secret, said it", f"the laptop's own is {REDACTED}, said it"),
        ('{"token": "abcdef123456"}', f'{{"token": "{REDACTED}"}}'),
        ("redis://user:hunter22@host:6379/0", f"redis://user:{REDACTED}@host:6379/0"),
        ("https://b.s3/x?X-Amz-Signature=0a1b2c3d4e&y=1", f"https://b.s3/x?X-Amz-Signature={REDACTED}&y=1"),
        ("12 tokens in 3 s, token 7 of layer 2", "12 tokens in 3 s, token 7 of layer 2"),
    ],
)
def test_secrets_are_taken_out_of_texts(text: str, expected: str) -> None:
    assert Redaction(["known-secret", ""]).text(text) == expected


def test_references_to_secrets_stay() -> None:
    entry = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    assert without_secrets([entry]) == [entry]


def test_kubectl_finds_the_plugin(world: World, tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not on PATH")
    plugin = tmp_path / "kubectl-flexpert"
    plugin.write_text(
        f"#!{sys.executable}\nimport sys\nfrom flexpert_operator.cli.main import plugin\nsys.exit(plugin())\n"
    )
    plugin.chmod(0o755)
    laptop = tmp_path / ".flexpert"
    laptop.mkdir()
    (laptop / "kubeconfig").write_text("not this one")
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "KUBECONFIG": str(world.kubeconfig),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        pool_names.ENV_SERVICES: os.environ[pool_names.ENV_SERVICES],
    }
    command = [kubectl, "flexpert", "status", "-n", NAMESPACE]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "NAME" in done.stdout or "no MoEDeployment" in done.stdout
