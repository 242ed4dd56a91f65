"""Rollouts on paper, step by step."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_cluster import PaperCluster

from flexpert_operator.api import Engines, Experts, Model, MoEDeployment, PlacementSpec, Serving
from flexpert_operator.decide import rollout
from flexpert_operator.decide.budget import Budget
from flexpert_operator.decide.observation import Cause


def deployed(workers: int, per_pod: int = 1, **changes: int) -> MoEDeployment:
    return MoEDeployment(
        name="tiny",
        namespace="default",
        uid="uid-1",
        generation=1,
        resource_version="7",
        model=Model("file:///models/tiny"),
        engines=Engines(replicas=changes.get("engines", 1)),
        experts=Experts(
            workers=workers,
            workers_per_pod=per_pod,
            memory_per_worker_bytes=10_000,
            standby_workers=changes.get("standby", 0),
        ),
        placement=PlacementSpec(),
        serving=Serving(),
    )


def running(workers: int, **changes: int) -> PaperCluster:
    paper = PaperCluster(deployed(workers, **changes))
    paper.run(20)
    assert len(paper.placed) == workers
    assert paper.sizing.settled == workers
    assert not paper.sizing.rolling
    paper.causes.clear()
    return paper


def unharmed(paper: PaperCluster) -> None:
    assert paper.random_deletions == []
    assert paper.killed_holders == []


@pytest.mark.parametrize("standby", [0, 1])
def test_one_by_one(standby: int) -> None:
    paper = running(3, standby=standby)
    paper.rules = replace(paper.rules, experts="x2")
    paper.run()
    unharmed(paper)
    assert paper.revisions() == ["x2"] * (3 + standby)
    assert paper.most_pods == 4 + standby
    assert paper.fewest_holders == 3
    assert set(paper.causes) == {Cause.UPGRADE}
    assert not paper.sizing.rolling
    assert paper.size is not None
    assert (paper.size.experts.replicas, paper.size.experts.workers_to_delete) == (3 + standby, ())


def test_several_at_a_time() -> None:
    paper = running(4)
    paper.rules = replace(paper.rules, experts="x2", max_surge=2)
    paper.run()
    unharmed(paper)
    assert paper.revisions() == ["x2"] * 4
    assert paper.most_pods == 6


def test_a_broken_template_costs_nothing_and_is_told() -> None:
    paper = running(3)
    before = [pod.name for pod in paper.experts]
    paper.broken.add("x2")
    paper.rules = replace(paper.rules, experts="x2")
    paper.run()
    unharmed(paper)
    assert paper.revisions() == ["x1", "x1", "x1", "x2"]
    assert paper.causes == []
    assert paper.size is not None
    assert paper.size.problem is not None
    assert paper.size.problem.reason == "RolloutStuck"
    assert "ImagePullBackOff" in paper.size.problem.message
    paper.rules = replace(paper.rules, experts="x1")
    paper.run(20)
    assert [pod.name for pod in paper.experts] == before
    assert paper.size.problem is None
    assert paper.causes == []
    unharmed(paper)


def test_a_rollback_half_way_goes_back_in_the_same_manner() -> None:
    paper = running(4)
    paper.rules = replace(paper.rules, experts="x2")
    while paper.revisions().count("x2") < 3:
        paper.step()
    paper.rules = replace(paper.rules, experts="x1")
    paper.run()
    unharmed(paper)
    assert paper.revisions() == ["x1"] * 4
    assert paper.fewest_holders == 4


def test_a_broken_template_that_is_mended_goes_on() -> None:
    paper = running(2)
    paper.broken.add("x2")
    paper.rules = replace(paper.rules, experts="x2")
    paper.run(20)
    paper.rules = replace(paper.rules, experts="x3")
    paper.run()
    unharmed(paper)
    assert paper.revisions() == ["x3", "x3"]


def test_without_headroom_one_worker_at_a_time_makes_place() -> None:
    paper = running(3)
    paper.room = 3
    paper.rules = replace(paper.rules, experts="x2")
    paper.run()
    unharmed(paper)
    assert paper.revisions() == ["x2"] * 3
    assert paper.fewest_holders == 2
    assert set(paper.causes) == {Cause.UPGRADE}


def test_without_headroom_and_room_for_its_experts_it_waits() -> None:
    paper = running(1)
    paper.room = 1
    paper.rules = replace(paper.rules, experts="x2")
    paper.run()
    assert paper.revisions() == ["x1", "x2"]
    assert paper.size is not None
    assert paper.size.problem is not None
    assert paper.size.problem.reason == "RolloutBlocked"
    assert "no node" in paper.size.problem.message
    paper.room = 2
    paper.run()
    unharmed(paper)
    assert paper.revisions() == ["x2"]


def test_without_headroom_a_broken_template_stops_at_one_worker() -> None:
    paper = running(3)
    paper.room, paper.broken = 3, {"x2"}
    paper.rules = replace(paper.rules, experts="x2")
    paper.run()
    unharmed(paper)
    assert paper.revisions() == ["x1", "x1", "x2"]
    assert len(paper.placed) == 2
    assert paper.size is not None
    assert paper.size.problem is not None
    assert paper.size.problem.reason == "RolloutStuck"


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_changed_size_during_a_rollout(workers: int) -> None:
    paper = running(3)
    paper.rules = replace(paper.rules, experts="x2")
    paper.run(6)
    paper.deployment = deployed(workers)
    paper.run()
    unharmed(paper)
    assert paper.revisions() == ["x2"] * workers
    assert len(paper.placed) == workers


@pytest.mark.parametrize("engines", [1, 3])
def test_engines_one_by_one(engines: int) -> None:
    paper = running(2, engines=engines)
    paper.rules = replace(paper.rules, engines="e2")
    paper.run()
    unharmed(paper)
    assert paper.revisions("engines") == ["e2"] * engines
    assert paper.fewest_engines == engines


def test_engines_of_a_broken_template_leave_the_others_alone() -> None:
    paper = running(2, engines=2)
    before = [pod.name for pod in paper.engines]
    paper.broken.add("e2")
    paper.rules = replace(paper.rules, engines="e2")
    paper.run()
    assert paper.revisions("engines") == ["e1", "e1", "e2"]
    assert paper.size is not None
    assert paper.size.problem is not None
    assert paper.size.problem.reason == "RolloutStuck"
    paper.rules = replace(paper.rules, engines="e1")
    paper.run()
    assert [pod.name for pod in paper.engines] == before
    unharmed(paper)


@pytest.mark.parametrize(("spare", "held", "holders"), [(0, 3, 2), (1, 4, 3)])
def test_a_budget_without_room_has_an_older_pod_make_place(spare: int, held: int, holders: int) -> None:
    """Also a pod that is on its way out holds its devices."""
    paper = running(3)
    paper.lingers = 4
    paper.rules = replace(paper.rules, experts="x2", budget=Budget(2 * 4 + 2 * spare, engine_pod=2, expert_pod=2))
    paper.run(120)
    unharmed(paper)
    assert paper.revisions() == ["x2"] * 3
    assert (paper.most_held, paper.fewest_holders) == (1 + held, holders)
    assert not paper.sizing.rolling


def test_a_budget_without_room_for_another_pod_or_its_experts_is_told() -> None:
    paper = running(1)
    paper.rules = replace(paper.rules, experts="x2", engines="e2", budget=Budget(2, 1, 1))
    paper.run()
    assert (paper.revisions(), paper.revisions("engines")) == (["x1"], ["e1"])
    assert paper.size is not None
    assert paper.size.problem is not None
    assert paper.size.problem.reason == "RolloutBlocked"
    assert "the policy's budget of 2 devices" in paper.size.problem.message
    paper.rules = replace(paper.rules, budget=Budget(3, 1, 1))
    paper.run()
    unharmed(paper)
    assert (paper.revisions(), paper.revisions("engines")) == (["x2"], ["e2"])
    assert paper.most_held == 3


def test_a_pool_without_devices_takes_nothing_of_the_budget() -> None:
    paper = running(2)
    paper.rules = replace(paper.rules, engines="e2", budget=Budget(2, engine_pod=0, expert_pod=1))
    paper.run()
    assert paper.revisions("engines") == ["e2"]
    assert paper.fewest_engines == 1


@settings(max_examples=40, deadline=None)
@given(
    workers=st.integers(2, 5),
    engines=st.integers(2, 3),
    spare=st.integers(0, 3),
    surge=st.integers(1, 3),
    standby=st.integers(0, 1),
    lingers=st.integers(0, 3),
)
def test_a_rollout_of_both_groups_keeps_the_budget(
    workers: int, engines: int, spare: int, surge: int, standby: int, lingers: int
) -> None:
    paper = running(workers, engines=engines, standby=standby)
    paper.lingers = lingers
    budget = Budget(workers + standby + engines + spare, 1, 1)
    paper.rules = replace(paper.rules, experts="x2", engines="e2", max_surge=surge, budget=budget)
    paper.run(200)
    unharmed(paper)
    assert paper.revisions() == ["x2"] * (workers + standby)
    assert paper.revisions("engines") == ["e2"] * engines
    assert paper.most_held <= budget.devices
    assert paper.fewest_engines >= engines - 1


def test_how_far_it_is() -> None:
    paper = running(2)
    assert rollout.progress_of(paper.observe(), paper.rules) == ""
    paper.rules = replace(paper.rules, experts="x2")
    assert "0 of 2 expert pods" in rollout.progress_of(paper.observe(), paper.rules)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), workers=st.integers(1, 5), surge=st.integers(1, 3), standby=st.integers(0, 1))
def test_whatever_happens_no_pod_goes_with_experts_on_it(seed: int, workers: int, surge: int, standby: int) -> None:
    """Templates, sizes and room change at any time; in the end all is as asked for."""
    rng = random.Random(seed)
    paper = running(workers, standby=standby)
    paper.rules = replace(paper.rules, max_surge=surge)
    paper.broken.add("x0")
    changes: list[Callable[[], None]] = [
        lambda: setattr(paper, "rules", replace(paper.rules, experts=f"x{rng.randrange(4)}")),
        lambda: setattr(paper, "rules", replace(paper.rules, engines=f"e{rng.randrange(3)}")),
        lambda: setattr(paper, "deployment", deployed(rng.randint(1, 6), standby=rng.randrange(2))),
        lambda: setattr(paper, "room", rng.randint(2, 9)),
    ]
    for _ in range(12):
        rng.choice(changes)()
        paper.run(rng.randint(1, 12))
    paper.room = 20
    paper.rules = replace(paper.rules, experts="x5")
    paper.run(400)  # past the time after which a growth that failed is tried again
    unharmed(paper)
    total = paper.deployment.experts.pods + paper.deployment.experts.standby_pods
    assert paper.revisions() == ["x5"] * total
    assert len(paper.placed) == paper.deployment.experts.workers
