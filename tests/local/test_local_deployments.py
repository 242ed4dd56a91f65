import random
from typing import Any

from local_objects import NOW, Object, born, deployment

from flexpert_operator.local.runtime import deployments
from flexpert_operator.local.runtime.values import CreatePod, DeletePod, WriteStatus


def decide(obj: Object, pods: list[Object]) -> list[Any]:
    return list(deployments.decide_deployment(obj, tuple(pods), NOW, random.Random(0)))


def pods_of(obj: Object, **kwargs: Any) -> list[Object]:
    return [born(action.manifest, **kwargs) for action in decide(obj, []) if isinstance(action, CreatePod)]


def changes(actions: list[Any]) -> tuple[int, list[str]]:
    created = sum(isinstance(action, CreatePod) for action in actions)
    return created, [action.name for action in actions if isinstance(action, DeletePod)]


def test_replicas_follow_the_spec_and_the_unready_go_first() -> None:
    obj = deployment(3)
    pods = pods_of(obj)
    assert len(pods) == 3
    pods[1]["status"]["conditions"][0]["status"] = "False"
    assert changes(decide(deployment(2), pods)) == (0, [pods[1]["metadata"]["name"]])
    assert changes(decide(deployment(5), pods)) == (2, [])


def test_a_new_template_rolls_with_one_pod_more_and_never_fewer_ready() -> None:
    old = pods_of(deployment(2))
    new = deployment(2, image="b")
    assert changes(decide(new, old)) == (1, [])
    [fresh] = [born(a.manifest, ready=False) for a in decide(new, old) if isinstance(a, CreatePod)]
    assert changes(decide(new, [*old, fresh])) == (0, [])
    fresh["status"]["conditions"][0]["status"] = "True"
    created, deleted = changes(decide(new, [*old, fresh]))
    assert (created, len(deleted)) == (0, 1)
    left = [pod for pod in old if pod["metadata"]["name"] not in deleted]
    assert changes(decide(new, [*left, fresh])) == (1, [])


def test_an_unready_pod_of_an_earlier_template_does_not_hold_up_the_next() -> None:
    old = pods_of(deployment(1), ready=False)
    created, deleted = changes(decide(deployment(1, image="b"), old))
    assert (created, deleted) == (1, [old[0]["metadata"]["name"]])


def test_the_status_is_written_once() -> None:
    obj = deployment(1)
    pods = pods_of(obj)
    [status] = decide(obj, pods)
    assert isinstance(status, WriteStatus)
    assert (status.status["readyReplicas"], status.status["conditions"][0]["status"]) == (1, "True")
    obj["status"] = status.status
    assert decide(obj, pods) == []


def test_only_deployments_of_flexpert_are_run() -> None:
    owner = {"kind": "MoEDeployment", "uid": "u"}
    assert deployments.is_ours(deployment(1, labels={"app.kubernetes.io/managed-by": "flexpert-operator"}))
    assert deployments.is_ours(deployment(1, ownerReferences=[owner]))
    assert not deployments.is_ours(deployment(1))
