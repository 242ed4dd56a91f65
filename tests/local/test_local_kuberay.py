"""KubeRay's semantics, traps included, as the runtime plays them."""

import random
from typing import Any

import pytest
from local_objects import NOW, Object, born, group, ray_cluster

from flexpert_operator.local.runtime import kuberay
from flexpert_operator.local.runtime.values import CreatePod, DeletePod, WriteStatus


def decide(cluster: Object, pods: list[Object], seed: int = 0) -> list[Any]:
    return list(kuberay.decide_cluster(cluster, tuple(pods), NOW, random.Random(seed)))


def pods_of(cluster: Object, **kwargs: Any) -> list[Object]:
    """The pods of a cluster that has come to rest."""
    made = [action.manifest for action in decide(cluster, []) if isinstance(action, CreatePod)]
    return [born(manifest, **kwargs) for manifest in made]


def workers(pods: list[Object]) -> list[str]:
    return [pod["metadata"]["name"] for pod in pods if pod["metadata"]["labels"]["ray.io/node-type"] == "worker"]


def changes(actions: list[Any]) -> tuple[int, list[str]]:
    created = sum(isinstance(action, CreatePod) for action in actions)
    return created, [action.name for action in actions if isinstance(action, DeletePod)]


def test_a_new_cluster_gets_a_head_and_its_groups_with_kuberays_labels_and_owner() -> None:
    cluster = ray_cluster(group("experts", 2), group("engines", 1))
    pods = pods_of(cluster)
    assert len(pods) == 4
    head = next(pod for pod in pods if pod["metadata"]["labels"]["ray.io/node-type"] == "head")
    assert head["metadata"]["labels"]["ray.io/group"] == "headgroup"
    worker = next(pod for pod in pods if pod["metadata"]["labels"]["ray.io/group"] == "experts")
    assert worker["metadata"]["labels"] == {
        "app": "experts",
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
        "ray.io/is-ray-node": "yes",
        "ray.io/cluster": "moe",
        "ray.io/node-type": "worker",
        "ray.io/group": "experts",
        "ray.io/identifier": "moe-worker",
    }
    owner = worker["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("RayCluster", "uid-moe", True)


def test_what_is_at_rest_stays_at_rest() -> None:
    cluster = ray_cluster(group("experts", 2))
    pods = pods_of(cluster)
    [status] = decide(cluster, pods)
    assert isinstance(status, WriteStatus)
    cluster["status"] = status.status
    assert decide(cluster, pods) == []


@pytest.mark.parametrize(
    ("replicas", "bounds", "wanted"),
    [
        (3, {}, 3),
        (12, {"maxReplicas": 4}, 4),
        (0, {"minReplicas": 2}, 2),
        (None, {}, 0),
        (2, {"numOfHosts": 2}, 4),
        (3, {"suspend": True}, 0),
    ],
)
def test_replicas_are_held_between_their_bounds(replicas: int | None, bounds: dict[str, Any], wanted: int) -> None:
    assert len(workers(pods_of(ray_cluster(group("experts", replicas, **bounds))))) == wanted


# A group of four pods; `named` are the ones (by position) in workersToDelete, "gone" a name without a pod.
@pytest.mark.parametrize(
    ("replicas", "named", "created", "deleted_named", "deleted_random"),
    [
        pytest.param(3, [1], 0, 1, 0, id="a shrink by a named pod"),
        pytest.param(2, [0, 3], 0, 2, 0, id="a shrink by two named pods"),
        pytest.param(3, [], 0, 0, 1, id="no name: a random pod"),
        pytest.param(3, ["gone"], 0, 0, 1, id="a stale name costs a random pod"),
        pytest.param(2, ["gone", 2], 0, 1, 1, id="a stale name beside a fresh one"),
        pytest.param(4, [1], 1, 1, 0, id="a name without fewer replicas: the pod is replaced"),
        pytest.param(4, ["gone"], 0, 0, 0, id="a stale name without fewer replicas does nothing"),
        pytest.param(6, [], 2, 0, 0, id="a growth"),
        pytest.param(6, [0], 3, 1, 0, id="a growth with a name"),
        pytest.param(0, [], 0, 0, 4, id="to nothing"),
    ],
)
def test_workers_to_delete(
    replicas: int, named: list[int | str], created: int, deleted_named: int, deleted_random: int
) -> None:
    pods = pods_of(ray_cluster(group("experts", 4)))
    names = workers(pods)
    asked = tuple(names[item] if isinstance(item, int) else item for item in named)
    num_created, deleted = changes(decide(ray_cluster(group("experts", replicas, to_delete=asked)), pods))
    assert num_created == created
    assert len(deleted) == len(set(deleted)) == deleted_named + deleted_random
    assert {names[item] for item in named if isinstance(item, int)} <= set(deleted)


def test_the_random_pods_are_random() -> None:
    pods = pods_of(ray_cluster(group("experts", 4)))
    cluster = ray_cluster(group("experts", 3))
    assert len({changes(decide(cluster, pods, seed))[1][0] for seed in range(40)}) == 4


def test_a_group_never_loses_another_groups_pods() -> None:
    pods = pods_of(ray_cluster(group("experts", 2), group("engines", 2)))
    engines = {pod["metadata"]["name"] for pod in pods if pod["metadata"]["labels"]["ray.io/group"] == "engines"}
    _, deleted = changes(decide(ray_cluster(group("experts", 0), group("engines", 2)), pods))
    assert len(deleted) == 2
    assert not engines & set(deleted)


def test_a_changed_template_applies_to_new_pods_only() -> None:
    pods = pods_of(ray_cluster(group("experts", 2)))
    changed = group("experts", 3)
    changed["template"]["spec"]["containers"][0]["image"] = "new"
    actions = decide(ray_cluster(changed), pods)
    created = [action.manifest for action in actions if isinstance(action, CreatePod)]
    assert [pod["spec"]["containers"][0]["image"] for pod in created] == ["new"]
    assert changes(actions)[1] == []


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_a_pod_that_has_ended_goes_first_and_is_replaced_in_the_next_round(phase: str) -> None:
    cluster = ray_cluster(group("experts", 2))
    pods = pods_of(cluster)
    over = next(pod for pod in pods if pod["metadata"]["labels"]["ray.io/node-type"] == "worker")
    over["status"]["phase"] = phase
    assert changes(decide(cluster, pods)) == (0, [over["metadata"]["name"]])
    left = [pod for pod in pods if pod is not over]
    assert changes(decide(cluster, left)) == (1, [])


def test_a_pod_that_is_being_deleted_is_replaced_at_once() -> None:
    cluster = ray_cluster(group("experts", 2))
    pods = pods_of(cluster)
    pods[-1]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert changes(decide(cluster, pods)) == (1, [])


def test_a_suspended_cluster_has_no_pods() -> None:
    pods = pods_of(ray_cluster(group("experts", 2)))
    created, deleted = changes(decide(ray_cluster(group("experts", 2), suspend=True), pods))
    assert (created, len(deleted)) == (0, 3)


def test_a_cluster_that_is_being_deleted_makes_nothing() -> None:
    cluster = ray_cluster(group("experts", 2))
    cluster["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert changes(decide(cluster, [])) == (0, [])


def test_the_status_counts_and_remembers_that_all_were_ready_once() -> None:
    cluster = ray_cluster(group("experts", 2))
    pods = pods_of(cluster)
    status = kuberay.cluster_status(cluster, pods, NOW)
    assert (status["state"], status["desiredWorkerReplicas"], status["readyWorkerReplicas"]) == ("ready", 2, 2)
    assert status["head"]["podIP"] == "127.0.0.1"
    cluster["status"] = status
    later = kuberay.cluster_status(cluster, pods[:2], NOW)
    assert (later["state"], later["readyWorkerReplicas"]) == ("ready", 1)


def test_a_cluster_without_ready_pods_has_no_state() -> None:
    cluster = ray_cluster(group("experts", 1))
    status = kuberay.cluster_status(cluster, pods_of(cluster, ready=False), NOW)
    assert status["state"] == ""
    assert {item["type"]: item["status"] for item in status["conditions"]} == {
        "HeadPodReady": "False",
        "RayClusterProvisioned": "False",
    }
