"""Events: counted where they are the same, limited, and posted beside the reconciling."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flexpert_operator import correlation
from flexpert_operator.correlation import Correlator, Reference
from flexpert_operator.decide.observation import Event
from flexpert_operator.errors import KubeRefused, KubeUnavailable
from flexpert_operator.events import EVENTS, EventWriter, write
from flexpert_operator.kube import Kube, api_client
from flexpert_operator.local.kubeapi import KubeApiServer

Object = dict[str, Any]
BODY: Object = {
    "apiVersion": "flexpert.io/v1alpha1",
    "kind": "MoEDeployment",
    "metadata": {"namespace": "default", "name": "tiny", "uid": "u-1"},
}
ABOUT = Reference("flexpert.io/v1alpha1", "MoEDeployment", "default", "tiny", "u-1")
LOST = Event("WorkerLost", "worker 1 was lost", warning=True)


@pytest.fixture(scope="module")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    folder: Path = tmp_path_factory.mktemp("events")
    with KubeApiServer() as api:
        yield Kube(api_client(api.write_kubeconfig(folder / "kubeconfig")))


def test_the_same_event_is_counted_in_one_object(kube: Kube) -> None:
    times = iter((1000.0, 1010.0, 1020.0, 1030.0))
    writer = EventWriter(kube, lambda: next(times))
    for event in (LOST, LOST, Event("Ready", "requests are answered"), LOST):
        writer.tell(BODY, event)
    writer.close()
    found = {one["reason"]: one for one in kube.list(EVENTS, "default", "")}
    assert len(kube.list(EVENTS, "default", "")) == 2
    lost = found["WorkerLost"]
    assert (lost["count"], lost["type"], lost["message"]) == (3, "Warning", "worker 1 was lost")
    assert (lost["firstTimestamp"], lost["lastTimestamp"]) == ("1970-01-01T00:16:40Z", "1970-01-01T00:17:10Z")
    assert lost["involvedObject"]["uid"] == "u-1"
    assert found["Ready"]["count"] == 1
    assert writer.left_out == 0


def test_an_event_that_the_api_server_forgot_is_made_anew(kube: Kube) -> None:
    correlator = Correlator()
    event = Event("Scaling", "pods of experts: 1 to 2")
    first = correlator.note(ABOUT, event, 5000.0)
    second = correlator.note(ABOUT, event, 5001.0)
    assert first is not None
    assert second is not None
    assert (second.name, second.count) == (first.name, 2)
    write(kube, first)
    write(kube, first)
    kube.delete(EVENTS, "default", first.name)
    write(kube, second)
    assert kube.get(EVENTS, "default", first.name)["count"] == 2


def test_after_the_window_it_is_another_event() -> None:
    correlator = Correlator()
    first = correlator.note(ABOUT, LOST, 0.0)
    later = correlator.note(ABOUT, LOST, correlation.WINDOW_S)
    assert first is not None
    assert later is not None
    assert (later.count, later.name != first.name) == (1, True)


def test_events_that_differ_in_their_message_alone_are_combined() -> None:
    correlator = Correlator()
    told = [correlator.note(ABOUT, Event("WorkerLost", f"worker {i}"), float(i)) for i in range(20)]
    names = {one.name for one in told if one is not None}
    assert len(names) == correlation.MOST_ALIKE + 1
    last = told[-1]
    assert last is not None
    assert last.message == f"{correlation.COMBINED}worker 19"
    assert last.count == 20 - correlation.MOST_ALIKE


def test_an_object_is_heard_at_a_limited_rate() -> None:
    correlator = Correlator()
    other = ABOUT._replace(uid="u-2", name="other")
    told = [correlator.note(ABOUT, Event(f"Reason{i}", "again"), 0.0) for i in range(correlation.BURST + 5)]
    assert [one is None for one in told] == [False] * correlation.BURST + [True] * 5
    assert correlator.note(other, LOST, 0.0) is not None
    assert correlator.note(ABOUT, LOST, 1 / correlation.REFILL_PER_S) is not None
    assert correlator.note(ABOUT, LOST, 1 / correlation.REFILL_PER_S) is None


def test_what_is_known_is_bounded() -> None:
    correlator = Correlator()
    for i in range(correlation.MOST_KNOWN + 10):
        correlator.note(ABOUT._replace(uid=f"u-{i}"), LOST, float(i))
    assert len(correlator.told) == len(correlator.alike) == len(correlator.tokens) == correlation.MOST_KNOWN


def test_names_are_never_used_twice() -> None:
    correlator = Correlator()
    told = [correlator.note(ABOUT._replace(uid=f"u-{i}"), LOST, 7.0) for i in range(100)]
    assert len({one.name for one in told if one is not None}) == 100


class Silent(Kube):
    """An API server that does not answer until it is told to."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.answers = threading.Event()
        self.made: list[Object] = []

    def create(self, resource: Any, namespace: str, body: Any) -> Object:
        self.asked.set()
        if not self.answers.wait(60):
            raise KubeUnavailable("nobody answers")
        self.made.append(body)
        return dict(body)

    def patch(self, resource: Any, namespace: str, name: str, body: Any, subresource: str = "") -> Object:
        return {}


def test_telling_never_waits_and_what_does_not_fit_is_left_out() -> None:
    kube = Silent()
    writer = EventWriter(kube, most_waiting=3)
    writer.tell(BODY, LOST)
    assert kube.asked.wait(60)
    for number in range(5):
        writer.tell(BODY, Event(f"Reason{number}", "again"))
    assert writer.left_out == 2
    kube.answers.set()
    writer.close()
    assert [one["reason"] for one in kube.made] == ["WorkerLost", "Reason0", "Reason1", "Reason2"]


def test_what_is_refused_is_left_out() -> None:
    class Refusing(Silent):
        def create(self, resource: Any, namespace: str, body: Any) -> Object:
            raise KubeRefused("the namespace is being deleted")

    writer = EventWriter(Refusing())
    writer.tell(BODY, LOST)
    writer.close()
    assert writer.left_out == 1


def test_a_writer_that_told_nothing_ends() -> None:
    EventWriter(Silent()).close()
