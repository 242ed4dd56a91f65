"""Which RayCluster serves, which follows and which goes; terms of two pools at once; what makes another head."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from flexpert_operator import manifests
from flexpert_operator.api import MoEDeployment
from flexpert_operator.decide.observation import Engine, Epoch, MemberState, Observation, Pool
from flexpert_operator.decide.sizing import GroupSize
from flexpert_operator.decide.sizing_state import Sizing
from flexpert_operator.decide.succession import (
    Plan,
    Standing,
    decide_succession,
    is_complete,
    may_go,
    standing_of,
    successor_name,
)
from flexpert_operator.decide.terms import annotations_of, decide_grant, forgotten, keys_of
from flexpert_operator.settings import GcsStore

FIRST = Standing("tiny", "h1", "2026-01-01T00:00:00Z")
SECOND = Standing(successor_name("tiny", "h2"), "h2", "2026-01-02T00:00:00Z")


@pytest.mark.parametrize(
    ("clusters", "wanted", "plan"),
    [
        ((), "h1", Plan("tiny")),
        ((FIRST,), "h1", Plan("tiny")),
        ((replace(FIRST, revision=""),), "h2", Plan("tiny")),
        ((FIRST,), "h2", Plan("tiny", SECOND.name)),
        ((FIRST, SECOND), "h2", Plan("tiny", SECOND.name)),
        ((FIRST, SECOND), "h1", Plan("tiny", abandoned=(SECOND.name,))),
        ((FIRST, SECOND), "h3", Plan("tiny", successor_name("tiny", "h3"), abandoned=(SECOND.name,))),
    ],
    ids=["new", "as wanted", "of an earlier operator", "new head", "comes up", "set back", "changed again"],
)
def test_before_a_switch(clusters: tuple[Standing, ...], wanted: str, plan: Plan) -> None:
    assert decide_succession("tiny", clusters, wanted) == plan


def test_after_a_switch() -> None:
    retired = replace(FIRST, retired_at=5.0)
    assert decide_succession("tiny", (retired, SECOND), "h2") == Plan(SECOND.name, retired=(retired,))
    assert decide_succession("tiny", (SECOND,), "h2") == Plan(SECOND.name)
    back = decide_succession("tiny", (retired, SECOND), "h1")
    assert back == Plan(SECOND.name, "tiny", returns=True), "what served before serves again at once"
    third = decide_succession("tiny", (retired, SECOND), "h3")
    assert third == Plan(SECOND.name, successor_name("tiny", "h3"), retired=(retired,))
    assert decide_succession("tiny", (retired,), "h1").active == "tiny", "somebody deleted the one that served"


def test_names_fit() -> None:
    assert len(successor_name("n" * 40, "h2")) <= 50, "Kubernetes cuts the names of KubeRay's pods there"


@pytest.mark.parametrize(
    ("waited", "in_flight", "gone"),
    [(10, 0, False), (50, 0, True), (50, 3, False), (50, None, False), (700, 3, True), (700, None, True)],
)
def test_a_retired_cluster_goes_when_its_streams_have_ended(waited: float, in_flight: int | None, gone: bool) -> None:
    assert may_go(replace(FIRST, retired_at=1000.0), 1000.0 + waited, in_flight, 45, 600) is gone


def test_a_successor_is_complete_when_all_of_it_serves(
    pool: Callable[..., Pool], observed: Callable[..., Observation]
) -> None:
    engines = (Engine("e", "p", MemberState.READY),)
    assert is_complete(observed(pool(engines=engines)), 2, 1, 1)
    assert not is_complete(observed(pool()), 2, 1, 1), "no engine"
    assert not is_complete(observed(pool(engines=engines)), 3, 1, 1), "a worker is missing"
    assert not is_complete(observed(pool(engines=engines)), 2, 1, 2), "it was told of an earlier spec"
    assert not is_complete(observed(None), 2, 1, 1)
    assert is_complete(observed(pool((), engines=engines)), 0, 1, 1), "idle"


def test_each_pool_has_terms_of_its_own_and_no_term_is_granted_twice(pool: Callable[..., Pool]) -> None:
    first, second = keys_of("tiny", "tiny"), keys_of("tiny", "tiny-0a1b2c")
    given = annotations_of(decide_grant({}, pool(term=0, epoch=Epoch(0, 0)), first), "one", first)
    other = replace(pool(term=0, epoch=Epoch(0, 0)), incarnation="7")
    grant = decide_grant(given, other, second)
    assert (grant.term, grant.taken) == (2, False)
    both = given | annotations_of(grant, "7", second)
    assert decide_grant(both, pool(term=1), first).taken
    assert decide_grant(both, replace(other, term=2), second).taken
    assert forgotten(both, "tiny", "tiny-0a1b2c") == dict.fromkeys(second)
    assert forgotten(both, "tiny", "tiny") == {}


def test_what_makes_another_head(deployment: MoEDeployment) -> None:
    revision = manifests.head_revision(deployment, "image:1", None)
    grown = replace(deployment, experts=replace(deployment.experts, workers=7))
    assert manifests.head_revision(grown, "image:1", None) == revision
    assert manifests.head_revision(deployment, "image:2", None) != revision
    assert manifests.head_revision(deployment, "image:1", GcsStore("rocksdb")) != revision


def made(deployment: MoEDeployment, image: str, cluster: str, replicas: int) -> dict[str, Any]:
    group = GroupSize(replicas)
    return manifests.ray_cluster(deployment, image, group, group, Sizing(), None, None, cluster)


def test_while_another_follows_only_sizes_change(deployment: MoEDeployment) -> None:
    live, wanted = made(deployment, "image:1", "tiny", 2), made(deployment, "image:2", "tiny", 3)
    kept = manifests.as_it_is(wanted, live)
    assert kept["spec"]["headGroupSpec"] == live["spec"]["headGroupSpec"]
    groups = list(zip(kept["spec"]["workerGroupSpecs"], live["spec"]["workerGroupSpecs"], strict=True))
    assert all(one["template"] == other["template"] and one["replicas"] == 3 for one, other in groups)
    assert standing_of(kept).revision == standing_of(live).revision != standing_of(wanted).revision


def test_another_ray_cluster_has_the_same_worker_templates_and_a_token_of_its_own(deployment: MoEDeployment) -> None:
    first, second = made(deployment, "image:1", "tiny", 1), made(deployment, "image:1", "tiny-0a1b2c", 1)
    assert first["spec"]["workerGroupSpecs"] == second["spec"]["workerGroupSpecs"]
    assert second["metadata"]["name"] == "tiny-0a1b2c"
    launcher = second["spec"]["headGroupSpec"]["template"]["spec"]["containers"][1]
    (token,) = [one for one in launcher["env"] if one["name"] == "RAY_AUTH_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"]["name"] == "tiny-0a1b2c"
