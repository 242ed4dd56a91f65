"""Shrinks on stale knowledge: a pod that nobody named must never go. The API is a table of pods here."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from flexpert_operator import manifests
from flexpert_operator.api import MoEDeployment
from flexpert_operator.api.names import RESTORED_ANNOTATION, WRITTEN_ANNOTATION
from flexpert_operator.cached import CachedKube
from flexpert_operator.children import check_shrink, ensure_ray_cluster, surplus_selectors, with_digest
from flexpert_operator.decide import drift
from flexpert_operator.decide.sizing import GroupSize, Size
from flexpert_operator.decide.sizing_state import Sizing
from flexpert_operator.decide.succession import Part
from flexpert_operator.errors import KubeConflict
from flexpert_operator.kube import Kube, Resource
from flexpert_operator.settings import Settings

Object = dict[str, Any]


class PodsOnly(Kube):
    """Lists pods."""

    def __init__(self, *pods: str, going: tuple[str, ...] = ()) -> None:
        self.pods = [{"metadata": {"name": name}} for name in pods]
        self.pods += [{"metadata": {"name": name, "deletionTimestamp": "now"}} for name in going]
        self.lists = 0

    def list(self, resource: Resource, namespace: str, selector: str) -> list[Object]:
        self.lists += 1
        return self.pods


@pytest.fixture
def cluster(deployment: MoEDeployment) -> Callable[..., Object]:
    def make(replicas: int, *names: str) -> Object:
        return manifests.ray_cluster(deployment, "image", GroupSize(1), GroupSize(replicas, names), Sizing(), None)

    return make


def test_pods_that_are_as_they_were_seen_may_go(deployment: MoEDeployment, cluster: Callable[..., Object]) -> None:
    check_shrink(PodsOnly("a", "b", "c"), deployment, cluster(3), cluster(2, "c"))


@pytest.mark.parametrize(
    "now",
    [
        PodsOnly("a", "b", "new"),
        PodsOnly("a", "b", "new", going=("c",)),
        PodsOnly("a", "b", "c", "new"),
    ],
    ids=["gone and replaced", "going and replaced", "one more"],
)
def test_a_stale_list_of_pods_deletes_nobody(
    deployment: MoEDeployment, cluster: Callable[..., Object], now: PodsOnly
) -> None:
    """The decision was made when there were a, b and c. KubeRay would delete one of its own choice."""
    with pytest.raises(KubeConflict):
        check_shrink(now, deployment, cluster(3), cluster(2, "c"))


def test_nobody_is_asked_while_nothing_shrinks(deployment: MoEDeployment, cluster: Callable[..., Object]) -> None:
    pods = PodsOnly()
    check_shrink(pods, deployment, cluster(2), cluster(4))
    check_shrink(pods, deployment, cluster(2, "c"), cluster(2, "c"))
    assert pods.lists == 0


def written(body: Object, generation: int, live: int) -> Object:
    annotations = body["metadata"]["annotations"] | {WRITTEN_ANNOTATION: str(generation)}
    return body | {"metadata": body["metadata"] | {"generation": live, "annotations": annotations}}


def test_a_spec_of_another_generation_is_somebody_elses(cluster: Callable[..., Object]) -> None:
    assert not drift.is_foreign(written(cluster(2), 3, 3))
    assert not drift.is_foreign(cluster(2)), "one that an earlier operator made"
    live = written(cluster(2), 3, 4)
    live["spec"]["suspend"] = True
    assert drift.is_foreign(live)
    body = drift.replacement(live, cluster(2))
    assert "suspend" not in body["spec"]
    assert body["metadata"]["annotations"][WRITTEN_ANNOTATION] == "5"
    again = live | {"metadata": live["metadata"] | {"annotations": body["metadata"]["annotations"]}}
    assert drift.is_tolerated(again)
    again["spec"]["managedBy"] = "another"
    assert not drift.is_tolerated(again)


def test_sizes_do_not_make_a_spec_another_one(cluster: Callable[..., Object]) -> None:
    assert drift.digest_of(cluster(2)["spec"]) == drift.digest_of(cluster(3, "p")["spec"])


def test_a_change_of_annotations_makes_no_generation(cluster: Callable[..., Object]) -> None:
    live = written(cluster(2), 3, 3)
    assert drift.replacement(live, cluster(2))["metadata"]["annotations"][WRITTEN_ANNOTATION] == "3"
    assert RESTORED_ANNOTATION not in drift.replacement(live, cluster(2))["metadata"]["annotations"]
    assert drift.replacement(live, cluster(3))["metadata"]["annotations"][WRITTEN_ANNOTATION] == "4"


def test_what_a_service_selects_by_beside_is_taken_away(deployment: MoEDeployment) -> None:
    wanted = manifests.pool_control_service(deployment, "tiny")
    live = {"spec": {"selector": wanted["spec"]["selector"] | {"extra": "label"}}}
    assert surplus_selectors(live, wanted) == {"extra": None}
    assert surplus_selectors(wanted, wanted) == {}


def test_what_is_dropped_was_written_so_and_is_nobody_elses_doing(cluster: Callable[..., Object]) -> None:
    wanted = with_digest(cluster(2))
    live = {**wanted, "spec": {key: value for key, value in wanted["spec"].items() if key != "authOptions"}}
    assert drift.dropped(live, wanted) == ("spec.authOptions",)
    assert drift.dropped(wanted, wanted) == ()
    assert drift.dropped(written(live, 3, 4), wanted) == (), "somebody else took it away"
    assert drift.dropped(live, with_digest(cluster(3))) == (), "something else is to be written first"
    assert "older than 1.6" in drift.why_dropped("tiny", ["spec.authOptions"])
    assert "older than 1.7" in drift.why_dropped("tiny", ["spec.gcsFaultToleranceOptions.storage"])


class Writes(CachedKube):
    """Notes the specs that are written, each a generation."""

    def __init__(self) -> None:
        self.live = PodsOnly()
        self.specs: list[Object] = []

    def replace(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any]) -> Object:
        self.specs.append(body["spec"])
        metadata = body["metadata"]
        return {**body, "metadata": {**metadata, "generation": metadata["generation"] + 1}}


@pytest.mark.parametrize("replicas", [3, 4])
def test_another_head_is_not_written_in_place(
    deployment: MoEDeployment, cluster: Callable[..., Object], replicas: int
) -> None:
    """The spec may change between the decision about a RayCluster's part and its being written."""
    live, kube = written(with_digest(cluster(3)), 1, 1), Writes()
    size = Size(GroupSize(1), GroupSize(replicas), replicas, Sizing())
    ensure_ray_cluster(kube, Settings(image="newer"), deployment, live, size, None, Part(live["metadata"]["name"]))
    made = cluster(replicas)["spec"]
    assert [(spec["headGroupSpec"], spec["workerGroupSpecs"]) for spec in kube.specs] == [
        (made["headGroupSpec"], made["workerGroupSpecs"])
    ] * (replicas != 3)
