"""The election by itself, on a clock of its own; and two operators as processes, one stopped and continued."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.rest import ApiException
from kubernetes.leaderelection.leaderelectionrecord import LeaderElectionRecord
from operator_process import OperatorProcess, moe_deployment

from flexpert_operator.errors import KubeUnavailable
from flexpert_operator.kube import MOE_DEPLOYMENTS, RAY_CLUSTERS, Kube, Resource, api_client
from flexpert_operator.leadership import CountingLock, Leadership, Times
from flexpert_operator.local.kubeapi import KubeApiServer
from flexpert_operator.local.up import install_crds

LEASES = Resource("coordination.k8s.io", "v1", "leases")
TIMES = Times(lease_s=15.0, deadline_s=10.0, retry_s=0.001)
LEASE_S = 9.0


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with KubeApiServer() as api:
        path = api.write_kubeconfig(tmp_path_factory.mktemp("election") / "kubeconfig")
        install_crds(Kube(api_client(path)))
        yield path


@pytest.fixture
def candidate(kubeconfig: Path, request: pytest.FixtureRequest) -> Callable[..., Leadership]:
    def make(identity: str, clock: Clock) -> Leadership:
        lock = CountingLock(api_client(kubeconfig), lease_name(request.node.name), "default", identity, 10.0)
        return Leadership(lock, TIMES, clock)

    return make


def lease_name(test: str) -> str:
    return test.replace("_", "-")


def tries(candidate: Leadership) -> bool:
    """Whether one attempt succeeds."""

    class Once(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            self.set()
            return True

    return candidate.acquire(Once())


def test_one_leads_and_the_other_waits_for_the_end_of_the_lease(candidate: Callable[..., Leadership]) -> None:
    clock = Clock()
    one, other = candidate("one", clock), candidate("other", clock)
    assert tries(one)
    one.check()
    assert not tries(other)
    clock.now += 14.9
    assert not tries(other), "counted from when it was first seen"
    clock.now += 0.2
    assert tries(other)
    other.check()
    with pytest.raises(KubeUnavailable, match="does not lead"):
        one.check()
    told: list[str] = []
    one.keep(told.append)
    assert told == ["other leads"]


def test_a_lease_that_is_renewed_is_not_taken(candidate: Callable[..., Leadership]) -> None:
    clock = Clock()
    one, other = candidate("one", clock), candidate("other", clock)
    assert tries(one)
    for _ in range(4):
        assert not tries(other)
        clock.now += 9.0
        assert tries(one), "the leader renews"
    assert not tries(other)


def test_the_fence_closes_before_the_lease_ends(candidate: Callable[..., Leadership]) -> None:
    clock = Clock()
    one = candidate("one", clock)
    with pytest.raises(KubeUnavailable):
        one.check()
    assert tries(one)
    clock.now += TIMES.deadline_s - 0.1
    one.check()
    clock.now += 0.2
    with pytest.raises(KubeUnavailable):
        one.check()


def test_a_lease_that_is_given_up_is_taken_at_once(
    candidate: Callable[..., Leadership], kubeconfig: Path, request: pytest.FixtureRequest
) -> None:
    clock = Clock()
    one, other = candidate("one", clock), candidate("other", clock)
    assert tries(one)
    assert not tries(other)
    one.release()
    with pytest.raises(KubeUnavailable):
        one.check()
    assert tries(other)
    spec = Kube(api_client(kubeconfig)).get(LEASES, "default", lease_name(request.node.name))["spec"]
    assert spec["holderIdentity"] == "other"
    assert spec["leaseTransitions"] == 2


def test_an_api_server_that_is_away_ends_a_leader_only_past_the_deadline(
    candidate: Callable[..., Leadership], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    one = candidate("one", clock)
    assert tries(one)
    attempts = []

    def fail(*_: Any) -> tuple[bool, Any]:
        attempts.append(clock.now)
        clock.now += 3.0
        return False, ApiException(status=503)

    monkeypatch.setattr(one._lock, "get", fail)
    told: list[str] = []
    one.keep(told.append)
    assert told == ["the lease could not be renewed for 10 s"]
    assert len(attempts) == 4


def test_whatever_ends_the_renewing_is_told(
    candidate: Callable[..., Leadership], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = candidate("one", Clock())
    assert tries(one)

    def break_down(*_: Any) -> tuple[bool, Any]:
        raise AttributeError("a lease without a spec")

    monkeypatch.setattr(one._lock, "get", break_down)
    told: list[str] = []
    one.keep(told.append)
    assert told == ["renewing the lease broke: AttributeError('a lease without a spec')"]


def test_a_lease_that_was_emptied_is_renewed(
    candidate: Callable[..., Leadership], kubeconfig: Path, request: pytest.FixtureRequest
) -> None:
    one = candidate("one", Clock())
    assert tries(one)
    kube, name = Kube(api_client(kubeconfig)), lease_name(request.node.name)
    kube.patch(LEASES, "default", name, {"spec": None})
    assert tries(one)
    assert kube.get(LEASES, "default", name)["spec"]["holderIdentity"] == "one"


def test_times_are_written_as_the_api_server_reads_them(candidate: Callable[..., Leadership]) -> None:
    one = candidate("one", Clock())
    record = LeaderElectionRecord("one", "15", "2026-01-01 00:00:00+00:00", "2026-01-01 00:00:00+00:00")
    assert "." in one._lock.get_lease_spec(record).renew_time.isoformat(), "a whole second too has a fraction"


def test_times_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="longer than the deadline"):
        Times(lease_s=5.0, deadline_s=5.0)


def holder(kube: Kube) -> str:
    found = kube.find(LEASES, "default", "flexpert-operator")
    return str((found or {"spec": {}})["spec"].get("holderIdentity", ""))


def test_a_stopped_leader_is_replaced_and_ends_when_it_is_continued(kubeconfig: Path, tmp_path: Path) -> None:
    kube = Kube(api_client(kubeconfig))
    election = ("--leader-elect", "--lease-namespace", "default", "--lease-seconds", str(LEASE_S))
    with OperatorProcess(kubeconfig, tmp_path / "a.log", *election) as one:
        one.until("it leads", lambda: holder(kube))
        first = holder(kube)
        with OperatorProcess(kubeconfig, tmp_path / "b.log", *election) as other:
            kube.create(MOE_DEPLOYMENTS, "default", moe_deployment("before"))
            one.until("its RayCluster", lambda: kube.find(RAY_CLUSTERS, "default", "before"))
            other.until("it waits", lambda: "waits for the lease" in other.log())
            one.process.send_signal(signal.SIGSTOP)
            other.until("another leads", lambda: holder(kube) not in ("", first))
            kube.create(MOE_DEPLOYMENTS, "default", moe_deployment("meanwhile"))
            other.until("a RayCluster again", lambda: kube.find(RAY_CLUSTERS, "default", "meanwhile"))
            second = holder(kube)
            one.process.send_signal(signal.SIGCONT)
            assert one.process.wait(60) == 1
            assert "this operator ends" in one.log()
            assert holder(kube) == second
            assert len(kube.list(RAY_CLUSTERS, "default", "")) == 2
            other.process.send_signal(signal.SIGTERM)
            assert other.process.wait(60) == 0
            assert holder(kube) == "", "given up in the end"


def test_the_command_says_what_is_missing() -> None:
    command = [sys.executable, "-m", "flexpert_operator", "--kubeconfig", "/nowhere", "--leader-elect"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
