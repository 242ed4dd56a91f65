"""The operator for real (kopf, Kubernetes client, gRPC) against the embedded API, a simulated KubeRay and pool."""

import shutil
import subprocess
import threading
from pathlib import Path

import grpc
import pytest
import yaml
from simulated_cluster import NAMESPACE
from simulated_world import ROOT, SETTINGS, Object, Operator, World, pool_pods

from flexpert_operator.errors import KubeRefused
from flexpert_operator.kube import DEPLOYMENTS, MOE_DEPLOYMENTS, PODS, RAY_CLUSTERS, SERVICES
from flexpert_proto import pool_pb2 as pb

pytestmark = pytest.mark.usefixtures("clean")


def test_a_deployment_becomes_ready(world: World) -> None:
    pool = world.serve("ready")
    body = world.get("ready")
    status = body["status"]
    assert status["observedGeneration"] == 1
    assert status["experts"]["workers"] == status["experts"]["ready"] == status["experts"]["desired"] == 2
    assert status["experts"]["epoch"] == "1.1"
    assert status["engines"] == {"desired": 1, "ready": 1}
    assert status["endpoints"]["localGrpc"] == "127.0.0.1:45678"
    assert status["lastReconfiguration"]["cause"] == "Initial"
    assert status["lastReconfiguration"]["phase"] == "Succeeded"
    assert status["placement"]["objective"] >= status["placement"]["bound"] > 0
    assert body["metadata"]["finalizers"] == ["flexpert.io/drain"]
    assert body["metadata"]["annotations"]["flexpert.io/term"] == "1"
    assert [request.cause for request in pool.requests] == [pb.INITIAL]
    for resource, name in (
        (SERVICES, "ready-pool-control"),
        (SERVICES, "ready-ingress"),
        (DEPLOYMENTS, "ready-ingress"),
    ):
        assert world.kube.get(resource, NAMESPACE, name)["metadata"]["ownerReferences"][0]["kind"] == "MoEDeployment"
    wanted = ["Created", "ReconfigurationPrepare", "ReconfigurationCommit", "ReconfigurationSucceeded", "Ready"]
    world.until("its events", lambda: set(wanted) <= set(world.reasons("ready")))
    assert len([reason for reason in world.reasons("ready") if reason == "ReconfigurationSucceeded"]) == 1


def test_an_unchanged_object_is_not_written(world: World) -> None:
    world.serve("still")
    before = world.get("still")["metadata"]["resourceVersion"]
    cluster = world.kube.get(RAY_CLUSTERS, NAMESPACE, "still")["metadata"]["resourceVersion"]
    world.patch("still", {})
    threading.Event().wait(3 * SETTINGS.resync_s)
    assert world.get("still")["metadata"]["resourceVersion"] == before
    assert world.kube.get(RAY_CLUSTERS, NAMESPACE, "still")["metadata"]["resourceVersion"] == cluster


def test_scaling_up_and_down(world: World) -> None:
    pool = world.serve("scaled")
    world.scale("scaled", 4)
    world.until("four workers", lambda: world.is_settled("scaled") and len(pool.holders()) == 4)
    four = pool.holders()
    world.scale("scaled", 2)
    world.until("two workers", lambda: world.is_settled("scaled") and len(pool.holders()) == 2)
    assert pool.holders() < four
    assert [request.cause for request in pool.requests] == [pb.INITIAL, pb.SCALE, pb.SCALE]
    world.until("the list is cleared", lambda: world.group("scaled")["scaleStrategy"]["workersToDelete"] == [])
    assert world.group("scaled")["replicas"] == 2
    assert world.cluster.random_deletions == []
    assert world.get("scaled")["status"]["experts"]["workers"] == 2
    assert world.get("scaled")["status"]["selector"] == "flexpert.io/moedeployment=scaled,flexpert.io/role=experts"
    sources = {source for move in pool.requests[1].plan.moves for source in move.sources}
    assert sources > {""}, "copied from peers, with the file as the last resort"


def test_a_lost_worker_is_replaced(world: World) -> None:
    pool = world.serve("hurt")
    victim = sorted(pool.holders())[0]
    pool.lose(victim)
    world.until("both hold experts", lambda: len(pool.requests) == 2 and len(pool.holders()) == 2)
    assert pool.requests[1].cause == pb.FAILURE
    assert victim not in pool.holders()
    world.until("it is told", lambda: "WorkerLost" in world.reasons("hurt") and world.is_settled("hurt"))


def test_standbys_take_growth_and_losses_at_once(world: World) -> None:
    pool = world.serve("warm", standbyWorkers=1)
    status = world.get("warm")["status"]["experts"]
    assert (status["workers"], status["ready"], status["standby"]) == (2, 2, 1)
    assert (world.group("warm")["replicas"], len(pool.holders())) == (3, 2)
    world.cluster.unschedulable.add("warm")
    world.scale("warm", 3)
    world.until("three hold experts though no pod comes", lambda: len(pool.holders()) == 3)
    world.until("a standby is missing", lambda: world.condition("warm", "Progressing") == ("True", "Replenishing"))
    world.cluster.unschedulable.clear()
    world.until("another stands by", lambda: world.is_settled("warm"))
    world.scale("warm", 2)
    world.until("two and a standby", lambda: world.is_settled("warm") and len(pool.holders()) == 2)
    world.until("the group is as asked", lambda: world.group("warm")["replicas"] == 3)
    assert world.cluster.random_deletions == []


def test_a_lost_pod_is_replaced(world: World) -> None:
    pool = world.serve("evicted")
    before = {pod["metadata"]["name"] for pod in pool_pods(world, "evicted")}
    gone = sorted(before)[0]
    first = pool.holders()
    world.kube.delete(PODS, NAMESPACE, gone)
    world.until("another holds experts", lambda: pool.holders() != first and len(pool.holders()) == 2)
    assert pool.requests[1].cause in (pb.FAILURE, pb.DRAIN), "found gone, or seen while it went"
    world.until("it serves", lambda: world.is_settled("evicted"))
    after = {pod["metadata"]["name"] for pod in pool_pods(world, "evicted")}
    assert gone not in after
    assert len(after) == 2


def test_a_rolled_back_reconfiguration_is_tried_again(world: World) -> None:
    pool = world.serve("stubborn")
    pool.fail_next = 1
    world.scale("stubborn", 3)
    world.until("it says so", lambda: "ReconfigurationRolledBack" in world.reasons("stubborn"))
    world.until("three workers", lambda: world.is_settled("stubborn") and len(pool.holders()) == 3)
    first, second = [request.operation_id for request in pool.requests[1:]]
    assert first != second
    assert world.condition("stubborn", "Degraded") == ("False", "AsExpected")


def test_experts_that_do_not_fit_leave_what_runs(world: World) -> None:
    pool = world.serve("tight", memoryPerWorker="6Mi")
    holders = pool.holders()
    world.scale("tight", 1)
    world.until("degraded", lambda: world.condition("tight", "Degraded") == ("True", "ExpertsDoNotFit"))
    assert pool.holders() == holders
    assert world.group("tight")["replicas"] == 2
    assert world.condition("tight", "Ready")[0] == "True"
    message = next(one for one in world.get("tight")["status"]["conditions"] if one["type"] == "Degraded")["message"]
    assert "memoryPerWorker to at least 9Mi" in message
    world.scale("tight", 2)
    world.until("fixed", lambda: world.condition("tight", "Degraded") == ("False", "AsExpected"))


def test_a_missing_checkpoint_is_named_and_looked_for_again(world: World) -> None:
    world.apply("absent")
    world.until("a pool", lambda: "absent" in world.cluster.pools)
    pool = world.cluster.pools["absent"]
    pool.refusal = (grpc.StatusCode.NOT_FOUND, "no folder /models/tiny")
    pool.restart()
    world.until("degraded", lambda: world.condition("absent", "Degraded") != ("", ""))
    if world.condition("absent", "Degraded")[0] == "True":
        assert world.condition("absent", "Degraded")[1] == "ModelNotFound"
    pool.refusal = None
    world.until("served", lambda: world.is_settled("absent"))


def test_another_model_and_another_source_are_refused_in_words(world: World) -> None:
    pool = world.serve("loyal")
    world.patch("loyal", {"model": {"source": "file:///models/other"}})
    world.until("degraded", lambda: world.condition("loyal", "Degraded") == ("True", "ModelChangeUnsupported"))
    assert world.condition("loyal", "Ready")[0] == "True"
    world.until("configured", lambda: pool.specs[-1].model.source == "file:///models/tiny")
    world.patch("loyal", {"model": {"source": "file:///models/tiny"}})
    world.until("fixed", lambda: world.condition("loyal", "Degraded") == ("False", "AsExpected"))


def test_pods_that_do_not_come_are_given_up(world: World) -> None:
    pool = world.serve("poor")
    holders = pool.holders()
    world.cluster.unschedulable.add("poor")
    world.scale("poor", 4)
    world.until("given up", lambda: world.condition("poor", "Degraded") == ("True", "ProvisionFailed"))
    world.until("the old size", lambda: world.group("poor")["replicas"] == 2)
    degraded = next(one for one in world.get("poor")["status"]["conditions"] if one["type"] == "Degraded")
    assert "Insufficient cpu" in degraded["message"]
    world.until("the new pods are gone", lambda: len(pool_pods(world, "poor")) == 2)
    assert pool.holders() == holders
    world.cluster.unschedulable.clear()
    world.patch("poor", {"experts": {"workers": 3}})
    world.until("three workers", lambda: world.is_settled("poor") and len(pool.holders()) == 3)
    assert world.cluster.random_deletions == []


def test_idle_and_back(world: World) -> None:
    pool = world.serve("sleepy")
    world.scale("sleepy", 0)
    world.until("idle", lambda: world.condition("sleepy", "Ready") == ("False", "Idle"))
    world.until("no pods", lambda: not pool_pods(world, "sleepy"))
    world.scale("sleepy", 2)
    world.until("awake", lambda: world.is_settled("sleepy") and len(pool.holders()) == 2)


def test_engines_scale_too(world: World) -> None:
    pool = world.serve("wide")
    world.patch("wide", {"engines": {"replicas": 3}})
    world.until(
        "three engines", lambda: world.is_settled("wide") and world.get("wide")["status"]["engines"]["ready"] == 3
    )
    world.patch("wide", {"engines": {"replicas": 1}})
    world.until("one engine", lambda: world.is_settled("wide") and world.group("wide", "engines")["replicas"] == 1)
    assert pool.specs[-1].engines.replicas == 1
    assert world.cluster.random_deletions == []


def test_a_new_controller_gets_a_new_term(world: World) -> None:
    pool = world.serve("reborn")
    pool.restart()
    world.until("granted", lambda: len(pool.seen_terms) == 2)
    assert [term for _, term in pool.seen_terms] == [1, 2]
    world.scale("reborn", 3)
    world.until("it works", lambda: world.is_settled("reborn") and len(pool.holders()) == 3)
    assert world.get("reborn")["status"]["experts"]["epoch"].startswith("2.")


def test_the_operator_may_die_in_mid_operation(world: World) -> None:
    pool = world.serve("lasting")
    pool.hold = True
    world.scale("lasting", 4)
    world.until("preparing", lambda: world.condition("lasting", "Progressing") == ("True", "Preparing"))
    world.operator.stop()
    pool.release()
    world.operator = Operator(world.kubeconfig)
    world.until("four workers", lambda: world.is_settled("lasting") and len(pool.holders()) == 4)
    assert len({request.operation_id for request in pool.requests}) == len(pool.requests) == 2
    world.until("both are told", lambda: world.reasons("lasting").count("ReconfigurationSucceeded") == 2)


def test_deletion_waits_for_running_requests(world: World) -> None:
    pool = world.serve("going")
    pool.engine_requests = 1
    world.kube.delete(MOE_DEPLOYMENTS, NAMESPACE, "going")
    world.until("engines are told", lambda: pool.specs[-1].engines.replicas == 0)
    assert world.kube.find(RAY_CLUSTERS, NAMESPACE, "going") is not None
    pool.engine_requests = 0
    world.until("gone", lambda: world.kube.find(MOE_DEPLOYMENTS, NAMESPACE, "going") is None)
    assert world.kube.find(RAY_CLUSTERS, NAMESPACE, "going") is None
    assert not pool_pods(world, "going")


def test_deletion_without_a_controller(world: World) -> None:
    world.serve("silent")
    world.cluster.pools["silent"].stop()
    world.kube.delete(MOE_DEPLOYMENTS, NAMESPACE, "silent")
    world.until("gone", lambda: world.kube.find(MOE_DEPLOYMENTS, NAMESPACE, "silent") is None)


# ---- the CRD


BAD_SPECS: dict[str, tuple[Object, str]] = {
    "no model": ({"experts": {}}, "spec.model"),
    "no scheme": ({"model": {"source": "/models/tiny"}}, "spec.model.source"),
    "a revision of a folder": ({"model": {"source": "file:///m", "revision": "v2"}}, "spec.model.revision"),
    "a hub's folder": ({"model": {"source": "hf://org/name/folder"}}, "spec.model.source"),
    "a revision of a bucket": ({"model": {"source": "s3://b/m", "revision": "v2"}}, "spec.model.revision"),
    "a token for a bucket": (
        {"model": {"source": "s3://b/m", "tokenSecretRef": {"name": "t"}}},
        "spec.model.tokenSecretRef",
    ),
    "keys for a hub": (
        {"model": {"source": "hf://org/name", "credentialsSecretRef": {"name": "t"}}},
        "spec.model.credentialsSecretRef",
    ),
    "two caches": (
        {"model": {"source": "hf://org/name", "cache": {"hostPath": "/models", "claim": "models"}}},
        "spec.model.cache.hostPath",
    ),
    "an unknown dtype": ({"model": {"source": "file:///m", "dtype": "float32"}}, "spec.model.dtype"),
    "negative workers": ({"model": {"source": "file:///m"}, "experts": {"workers": -1}}, "spec.experts.workers"),
    "half a pod": (
        {"model": {"source": "file:///m"}, "experts": {"workers": 3, "workersPerPod": 2}},
        "spec.experts.workers",
    ),
    "no quantity": (
        {"model": {"source": "file:///m"}, "experts": {"memoryPerWorker": "much"}},
        "spec.experts.memoryPerWorker",
    ),
    "more replicas than workers": (
        {"model": {"source": "file:///m"}, "experts": {"workers": 2}, "placement": {"minReplicasPerExpert": 3}},
        "spec.placement.minReplicasPerExpert",
    ),
    "one port twice": (
        {"model": {"source": "file:///m"}, "serving": {"grpcPort": 8000, "httpPort": 8000}},
        "spec.serving.httpPort",
    ),
    "standby workers": (
        {"model": {"source": "file:///m"}, "experts": {"standbyWorkers": -1}},
        "spec.experts.standbyWorkers",
    ),
    "another solver": (
        {"model": {"source": "file:///m"}, "placement": {"solver": {"name": "Gurobi"}}},
        "spec.placement.solver.name",
    ),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_a_bad_spec_is_refused_with_the_fields_path(world: World, case: str) -> None:
    spec, path = BAD_SPECS[case]
    body = {"apiVersion": "flexpert.io/v1alpha1", "kind": "MoEDeployment", "metadata": {"name": "bad"}, "spec": spec}
    with pytest.raises(KubeRefused, match=path.replace(".", r"\.")):
        world.kube.create(MOE_DEPLOYMENTS, NAMESPACE, body)


@pytest.mark.parametrize(("name", "says"), [("a" * 41, "at most 40"), ("a.b", "RFC 1035"), ("1a", "RFC 1035")])
def test_a_bad_name_is_refused(world: World, name: str, says: str) -> None:
    spec = {"model": {"source": "file:///m"}}
    body = {"apiVersion": "flexpert.io/v1alpha1", "kind": "MoEDeployment", "metadata": {"name": name}, "spec": spec}
    with pytest.raises(KubeRefused, match=says):
        world.kube.create(MOE_DEPLOYMENTS, NAMESPACE, body)


def test_workers_per_pod_cannot_be_changed(world: World) -> None:
    world.apply("fixed", workers=0)
    with pytest.raises(KubeRefused, match="workersPerPod cannot be changed"):
        world.patch("fixed", {"experts": {"workersPerPod": 2}})


@pytest.mark.kubectl
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_applies_the_example(world: World) -> None:
    def kubectl(*arguments: str) -> str:
        command = ["kubectl", "--kubeconfig", str(world.kubeconfig), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    kubectl("apply", "-f", str(ROOT / "examples" / "tiny-moe.yaml"))
    kubectl("wait", "--for=condition=Ready", "moed/tiny-moe", "--timeout=30s")
    kubectl("scale", "moed/tiny-moe", "--replicas=3")
    kubectl("wait", "--for=jsonpath={.status.experts.ready}=3", "moed/tiny-moe", "--timeout=30s")
    header, row = kubectl("get", "moed", "tiny-moe").splitlines()
    assert header.split() == ["NAME", "WORKERS", "READY", "IMBALANCE", "EPOCH", "AGE"]
    assert row.split()[:3] == ["tiny-moe", "3", "True"]
    assert "ReconfigurationSucceeded" in kubectl("describe", "moed", "tiny-moe")


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "sources").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_of_a_source_is_accepted(world: World, path: Path) -> None:
    body = yaml.safe_load(path.read_text())
    body["spec"]["experts"]["workers"] = 0
    accepted = world.kube.create(MOE_DEPLOYMENTS, NAMESPACE, body)
    assert accepted["spec"]["model"]["source"] == body["spec"]["model"]["source"]
