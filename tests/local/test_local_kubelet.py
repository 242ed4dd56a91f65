import random
from dataclasses import replace
from typing import Any

import pytest
from local_objects import NOW, Object, born, container, ended, local_pod, running

from flexpert_operator.local.runtime import kubelet
from flexpert_operator.local.runtime.decide import decide
from flexpert_operator.local.runtime.values import (
    AdmitPod,
    Container,
    DeletePod,
    ForgetPod,
    KillPod,
    LocalPod,
    Observed,
    StartContainer,
    StopPod,
    WriteStatus,
)


def pod(*names: str, labels: dict[str, str] | None = None, **spec: Any) -> Object:
    manifest = {
        "metadata": {"name": "p", "namespace": "default", "labels": labels or {}},
        "spec": {
            "restartPolicy": "Always",
            "nodeName": "laptop",
            "containers": [container(name, "pass") for name in names],
            **spec,
        },
    }
    return born(manifest, phase="Pending", ready=False)


def actions(obj: Object, local: LocalPod | None, *, may_join: bool = True, now: float = NOW) -> list[Any]:
    return [a for a in kubelet.decide_pod(obj, local, may_join, now) if not isinstance(a, WriteStatus)]


def test_a_new_pod_is_admitted_and_its_containers_started() -> None:
    obj = pod("a", "b")
    assert actions(obj, None) == [AdmitPod(obj)]
    assert actions(obj, local_pod(obj)) == [StartContainer(obj, "a"), StartContainer(obj, "b")]


def test_a_pod_of_another_node_is_left_alone() -> None:
    assert actions(pod("a", nodeName="elsewhere"), None) == []


def test_a_ray_worker_waits_for_the_head_of_its_cluster() -> None:
    obj = pod("ray-worker", "beside")
    assert actions(obj, local_pod(obj), may_join=False) == [StartContainer(obj, "beside")]
    assert StartContainer(obj, "ray-worker") in actions(obj, local_pod(obj), may_join=True)


def test_the_may_join_once_its_ray_container_is_ready() -> None:
    head = pod("ray-head", labels={"ray.io/cluster": "moe", "ray.io/node-type": "head"})
    up = local_pod(head, running("ray-head"))
    assert kubelet.heads_up((head,), {up.uid: up}) == {("default", "moe")}
    for not_up in (local_pod(head, running("ray-head", ready=False)), replace(up, stopping_at=NOW)):
        assert kubelet.heads_up((head,), {not_up.uid: not_up}) == frozenset()


@pytest.mark.parametrize(
    ("policy", "code", "starts"),
    [("Always", 0, True), ("OnFailure", 0, False), ("OnFailure", 1, True), ("Never", 1, False)],
)
def test_the_restart_policy_decides_what_follows_an_end(policy: str, code: int, starts: bool) -> None:
    obj = pod("a", restartPolicy=policy)
    done = actions(obj, local_pod(obj, ended("a", code=code)), now=NOW + 1)
    assert done == ([StartContainer(obj, "a")] if starts else [])


@pytest.mark.parametrize(
    ("restarts", "ran_s", "pause_s"), [(0, 1, 0), (1, 1, 1), (2, 1, 2), (4, 1, 8), (30, 1, 30), (30, 60, 0)]
)
def test_the_pause_before_a_restart_doubles(restarts: int, ran_s: float, pause_s: float) -> None:
    obj = pod("a")
    local = local_pod(obj, ended("a", restarts=restarts, after_s=ran_s))
    due = NOW + ran_s + pause_s
    assert actions(obj, local, now=due) == [StartContainer(obj, "a")]
    if pause_s:
        assert actions(obj, local, now=due - 0.1) == []


def test_a_refused_container_is_not_tried_again() -> None:
    obj = pod("a")
    local = local_pod(obj, Container("a", refusal="no command"))
    assert actions(obj, local) == []
    state = kubelet.pod_status(obj, local, NOW)["containerStatuses"][0]["state"]
    assert state == {"waiting": {"reason": "CreateContainerError", "message": "no command"}}


@pytest.mark.parametrize("gone", [True, False])
def test_the_end_of_a_pod_is_sigterm_then_its_grace_then_sigkill(gone: bool) -> None:
    obj = pod("a")
    obj["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

    def due(local: LocalPod, now: float) -> list[Any]:
        return list(kubelet.decide_orphan(local, now)) if gone else actions(obj, local, now=now)

    local = local_pod(obj, running("a"), grace_s=10)
    assert due(local, NOW) == [StopPod(local.uid)]
    stopping = replace(local, stopping_at=NOW)
    assert due(stopping, NOW + 9) == []
    assert due(stopping, NOW + 10) == [KillPod(local.uid)]
    assert due(replace(stopping, killed=True), NOW + 11) == []
    [last] = due(replace(stopping, containers=(ended("a"),)), NOW + 11)
    if gone:
        assert last == ForgetPod(local.uid)
    else:
        assert isinstance(last, DeletePod)
        assert last.at_once


def test_the_status_follows_the_containers() -> None:
    obj = pod("a", "b")
    status = kubelet.pod_status(obj, local_pod(obj, running("a"), running("b", ready=False)), NOW)
    assert (status["phase"], status["podIP"]) == ("Running", "127.0.0.1")
    conditions = {item["type"]: item for item in status["conditions"]}
    assert (conditions["Ready"]["status"], conditions["Ready"]["message"]) == (
        "False",
        "containers with unready status: [b]",
    )
    ready = kubelet.pod_status(obj, local_pod(obj, running("a"), running("b")), NOW)
    assert {item["type"]: item["status"] for item in ready["conditions"]}["Ready"] == "True"


@pytest.mark.parametrize(
    ("policy", "codes", "phase"),
    [("Never", (0, 0), "Succeeded"), ("Never", (0, 1), "Failed"), ("Always", (0, 0), "Running")],
)
def test_the_phase_after_all_containers_have_ended(policy: str, codes: tuple[int, int], phase: str) -> None:
    obj = pod("a", "b", restartPolicy=policy)
    local = local_pod(obj, *(ended(name, code=code) for name, code in zip("ab", codes, strict=True)))
    assert kubelet.pod_status(obj, local, NOW)["phase"] == phase


def test_a_death_by_a_signal_has_the_exit_code_that_a_kubelet_gives_it() -> None:
    obj = pod("a", restartPolicy="Never")
    status = kubelet.pod_status(obj, local_pod(obj, ended("a", code=-9)), NOW)
    assert status["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137


def test_deciding_again_on_a_written_status_gives_nothing() -> None:
    obj = pod("a")
    local = local_pod(obj, running("a"))
    [write] = kubelet.decide_pod(obj, local, True, NOW)
    assert isinstance(write, WriteStatus)
    obj["status"] = {**obj["status"], **write.status}
    assert list(kubelet.decide_pod(obj, local, True, NOW + 100)) == []


def test_a_local_pod_without_an_object_is_stopped() -> None:
    local = local_pod(pod("a"), running("a"))
    assert decide(Observed(local={local.uid: local}, now=NOW), random.Random(0)) == [StopPod(local.uid)]


def test_only_so_many_ray_nodes_start_at_a_time() -> None:
    labels = {"ray.io/cluster": "moe"}
    head = pod("ray-head", labels={**labels, "ray.io/node-type": "head"})
    workers = [pod("ray-worker", labels={**labels, "ray.io/node-type": "worker"}) for _ in range(4)]
    for number, worker in enumerate(workers):
        worker["metadata"] |= {"name": f"w{number}", "uid": f"w{number}"}
    local = {head["metadata"]["uid"]: local_pod(head, running("ray-head"))}
    local |= {worker["metadata"]["uid"]: local_pod(worker) for worker in workers}

    def started() -> list[str]:
        observed = Observed(pods=(head, *workers), local=local, now=NOW, max_starting=2)
        return [a.pod["metadata"]["name"] for a in decide(observed, random.Random(0)) if isinstance(a, StartContainer)]

    assert started() == ["w0", "w1"]
    local["w0"] = local_pod(workers[0], running("ray-worker", ready=False))
    local["w1"] = local_pod(workers[1], running("ray-worker"))
    assert started() == ["w2"]
