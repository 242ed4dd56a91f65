from collections.abc import Callable
from dataclasses import replace

import pytest

from flexpert_operator.api import Model, MoEDeployment
from flexpert_operator.decide.observation import (
    Cause,
    Engine,
    Epoch,
    MemberState,
    Observation,
    Operation,
    Phase,
    Pod,
    Pool,
    Worker,
)
from flexpert_operator.decide.sizing import GroupSize, Size, decide_size
from flexpert_operator.decide.sizing_state import FailedGrowth, Sizing

Make = Callable[..., MoEDeployment]
MakePool = Callable[..., Pool]
Observe = Callable[..., Observation]
MakeWorker = Callable[..., Worker]


def size(deployment: MoEDeployment, observed: Observation) -> Size:
    return decide_size(deployment, observed, provision_deadline_s=60, retry_s=300)


def test_the_first_ray_cluster_has_what_the_spec_asks_for(with_workers: Make) -> None:
    decided = size(with_workers(3), Observation(now=5.0))
    assert decided.experts == GroupSize(3)
    assert decided.engines == GroupSize(1)
    assert decided.sizing == Sizing(settled=0, aim=3, since=5.0)


def test_nothing_changes_when_all_is_as_asked(with_workers: Make, pool: MakePool, observed: Observe) -> None:
    decided = size(with_workers(2), observed(pool()))
    assert decided.experts == GroupSize(2)
    assert decided.sizing == Sizing(settled=2, aim=2)
    assert decided.problem is None


def test_growth_raises_replicas_and_starts_the_clock(with_workers: Make, pool: MakePool, observed: Observe) -> None:
    decided = size(with_workers(4), observed(pool()))
    assert decided.experts == GroupSize(4)
    assert decided.sizing == Sizing(settled=2, aim=4, since=1000.0)


def test_growth_settles_when_every_worker_is_ready(with_workers: Make, pool: MakePool, observed: Observe) -> None:
    grown = observed(pool("abcd"), "abcd", sizing=Sizing(settled=2, since=900.0))
    assert size(with_workers(4), grown).sizing.settled == 4


def test_a_shrink_drains_first(with_workers: Make, pool: MakePool, observed: Observe) -> None:
    decided = size(with_workers(2), observed(pool("abcd"), "abcd"))
    assert decided.experts == GroupSize(4), "no pod goes before it is drained"
    assert decided.sizing.victims == ("d", "c"), "the newest of those that hold equally much"
    assert decided.sizing.settled == 4


def test_those_that_hold_least_go_first(
    with_workers: Make, pool: MakePool, observed: Observe, worker: MakeWorker
) -> None:
    workers = (worker("a", experts=1), worker("b", experts=4), worker("c", experts=3))
    decided = size(with_workers(2), observed(pool("abc", workers=workers), "abc"))
    assert decided.sizing.victims == ("a",)


def drained(pool: MakePool, worker: MakeWorker) -> Pool:
    gone = tuple(worker(pod, MemberState.DRAINING, experts=0) for pod in "cd")
    return replace(pool("ab"), workers=(*pool("ab").workers, *gone))


def test_drained_pods_go_in_one_patch_that_names_them(
    with_workers: Make, pool: MakePool, observed: Observe, worker: MakeWorker
) -> None:
    sizing = Sizing(settled=4, victims=("d", "c"))
    decided = size(with_workers(2), observed(drained(pool, worker), "abcd", sizing=sizing))
    assert decided.experts == GroupSize(2, ("d", "c"))
    assert decided.sizing.victims == ()


def test_a_victim_that_still_holds_an_expert_stays(with_workers: Make, pool: MakePool, observed: Observe) -> None:
    sizing = Sizing(settled=4, victims=("d", "c"))
    decided = size(with_workers(2), observed(pool("abcd"), "abcd", sizing=sizing))
    assert decided.experts == GroupSize(4)
    assert decided.sizing.victims == ("d", "c")


def test_no_pod_goes_while_a_reconfiguration_runs(
    with_workers: Make, pool: MakePool, observed: Observe, worker: MakeWorker
) -> None:
    running = Operation("x", Cause.SCALE, Phase.RETIRE, Epoch(1, 1))
    busy = replace(drained(pool, worker), operation=running)
    decided = size(with_workers(2), observed(busy, "abcd", sizing=Sizing(settled=4, victims=("d", "c"))))
    assert decided.experts == GroupSize(4)


def test_workers_that_are_gone_from_the_pool_count_as_drained(
    with_workers: Make, pool: MakePool, observed: Observe
) -> None:
    sizing = Sizing(settled=4, victims=("d", "c"))
    decided = size(with_workers(2), observed(pool("ab"), "abcd", sizing=sizing))
    assert decided.experts == GroupSize(2, ("d", "c"))


def test_the_list_is_cleared_once_the_pods_are_gone(with_workers: Make, pool: MakePool, observed: Observe) -> None:
    half = observed(pool("ab"), "abd", replicas=2, to_delete=("d", "c"), sizing=Sizing(settled=4))
    assert size(with_workers(2), half).experts == GroupSize(2, ("d",))
    done = observed(pool("ab"), "ab", to_delete=("d", "c"), sizing=Sizing(settled=4))
    decided = size(with_workers(2), done)
    assert decided.experts == GroupSize(2)
    assert decided.sizing.settled == 2


def test_a_stale_name_is_never_sent(with_workers: Make, pool: MakePool, observed: Observe) -> None:
    """The pod of a victim died and KubeRay made another: that one, which holds nothing, goes instead."""
    replaced = observed(pool("ab"), ("a", "b", "new"), sizing=Sizing(settled=3, victims=("c",)))
    decided = size(with_workers(2), replaced)
    assert decided.sizing.victims == () or decided.sizing.victims == ("new",)
    assert set(decided.experts.workers_to_delete) <= {"new"}


def test_no_victim_is_chosen_while_pods_are_missing(with_workers: Make, pool: MakePool, observed: Observe) -> None:
    """With a pod on its way, KubeRay's count and ours differ, and it would delete one of its own choice."""
    decided = size(with_workers(1), observed(pool("ab"), "ab", replicas=3, sizing=Sizing(settled=3)))
    assert decided.experts == GroupSize(3)
    assert decided.sizing.victims == ()


def test_growing_again_takes_victims_back(with_workers: Make, pool: MakePool, observed: Observe) -> None:
    sizing = Sizing(settled=4, victims=("d", "c"))
    decided = size(with_workers(3), observed(pool("abcd"), "abcd", sizing=sizing))
    assert decided.experts == GroupSize(4)
    assert decided.sizing.victims == ("d",)
    more = size(with_workers(5), observed(pool("abcd"), "abcd", sizing=sizing))
    assert more.experts == GroupSize(5)
    assert more.sizing.victims == ()


def test_to_idle_without_waiting_for_experts_to_find_another_home(
    with_workers: Make, pool: MakePool, observed: Observe
) -> None:
    decided = size(with_workers(0), observed(pool("ab"), "ab"))
    assert decided.experts == GroupSize(0, ("b", "a"))


def test_no_shrink_without_the_pool_controller(with_workers: Make, observed: Observe) -> None:
    decided = size(with_workers(1), observed(None, "ab", sizing=Sizing(settled=2, victims=("b",))))
    assert decided.experts == GroupSize(2)


def test_a_size_that_does_not_fit_leaves_what_runs(with_workers: Make, pool: MakePool, observed: Observe) -> None:
    """8 experts of 1000 bytes: 9 slots a worker fit one worker, 3 slots do not."""
    small = replace(with_workers(1).experts, memory_per_worker_bytes=4000)
    decided = size(replace(with_workers(1), experts=small), observed(pool("ab"), "ab"))
    assert decided.experts == GroupSize(2)
    assert decided.problem is not None
    assert decided.problem.reason == "ExpertsDoNotFit"


def test_pods_that_do_not_come_are_taken_back(with_workers: Make, pool: MakePool, observed: Observe) -> None:
    sizing = Sizing(settled=2, aim=4, since=900.0)
    decided = size(with_workers(4), observed(pool("ab"), "abcd", sizing=sizing))
    assert decided.experts == GroupSize(2, ("d", "c")), "the new pods are the ones deleted"
    assert decided.sizing.failed == FailedGrowth(4, generation=1, at=1000.0)
    assert decided.problem is not None
    assert decided.problem.reason == "ProvisionFailed"
    assert [event.reason for event in decided.events] == ["ProvisionFailed"]


def test_before_the_deadline_they_are_waited_for(with_workers: Make, pool: MakePool, observed: Observe) -> None:
    decided = size(with_workers(4), observed(pool("ab"), "abcd", sizing=Sizing(settled=2, aim=4, since=990.0)))
    assert decided.experts == GroupSize(4)
    assert decided.problem is None


FAILED = Sizing(settled=2, failed=FailedGrowth(4, generation=1, at=990.0))


def test_a_failed_growth_stays_back_for_a_while(with_workers: Make, pool: MakePool, observed: Observe) -> None:
    waiting = observed(pool("ab"), "ab", sizing=FAILED)
    hint = replace(waiting.cluster.experts, pods=(Pod("a"), Pod("b", message="0/3 nodes have enough memory")))
    waiting = replace(waiting, cluster=replace(waiting.cluster, experts=hint))
    decided = size(with_workers(4), waiting)
    assert decided.experts == GroupSize(2)
    assert decided.problem is not None
    assert "0/3 nodes have enough memory" in decided.problem.message


@pytest.mark.parametrize(("generation", "now"), [(2, 1000.0), (1, 1290.0)], ids=["spec changed", "time passed"])
def test_a_failed_growth_is_tried_again(
    with_workers: Make, pool: MakePool, observed: Observe, generation: int, now: float
) -> None:
    decided = size(with_workers(4, generation=generation), observed(pool("ab"), "ab", sizing=FAILED, now=now))
    assert decided.experts == GroupSize(4)
    assert decided.sizing.failed is None
    assert decided.sizing.since == now


def test_the_first_pods_are_not_taken_back(with_workers: Make, pool: MakePool, observed: Observe) -> None:
    first = observed(pool((), epoch=Epoch(0, 0)), "ab", sizing=Sizing(settled=0, aim=2, since=0.0))
    decided = size(with_workers(2), first)
    assert decided.experts == GroupSize(2)
    assert decided.problem is not None
    assert decided.problem.reason == "ProvisionFailed"


def test_late_pods_clear_the_problem(with_workers: Make, pool: MakePool, observed: Observe) -> None:
    late = observed(pool("ab"), "ab", sizing=Sizing(failed=FailedGrowth(2, generation=1, at=999.0)))
    decided = size(with_workers(2), late)
    assert decided.problem is None
    assert decided.sizing.settled == 2


@pytest.mark.parametrize(
    ("engines_there", "wanted", "expected"),
    [
        ((), 3, GroupSize(3)),
        (("e1", "e2"), 1, GroupSize(2)),
        (("e1",), 1, GroupSize(1, ("e2",))),
        (("e2",), 1, GroupSize(1, ("e1",))),
    ],
    ids=["up at once", "down waits for the pool", "the idle pod goes", "whichever it is"],
)
def test_engines(
    deployment: MoEDeployment,
    pool: MakePool,
    observed: Observe,
    engines_there: tuple[str, ...],
    wanted: int,
    expected: GroupSize,
) -> None:
    engines = tuple(Engine(f"engine-{pod}", pod, MemberState.READY) for pod in engines_there)
    seen = observed(pool(engines=engines))
    group = replace(seen.cluster.engines, replicas=2, pods=(Pod("e1"), Pod("e2")))
    seen = replace(seen, cluster=replace(seen.cluster, engines=group))
    asked = replace(deployment, engines=replace(deployment.engines, replicas=wanted))
    assert size(asked, seen).engines == expected


def test_workers_per_pod(deployment: MoEDeployment, pool: MakePool, observed: Observe) -> None:
    asked = replace(deployment, experts=replace(deployment.experts, workers=4, workers_per_pod=2))
    decided = size(asked, observed(pool("ab"), "ab", sizing=Sizing(settled=1, since=990.0)))
    assert decided.experts == GroupSize(2)
    assert decided.sizing.settled == 1, "two of four workers are ready"


def test_the_state_survives_its_annotation() -> None:
    state = Sizing(settled=2, aim=4, since=3.5, victims=("a",), failed=FailedGrowth(4, 7, 9.25))
    assert Sizing.decode(state.encode()) == state
    assert Sizing.decode(None) == Sizing()


def test_the_served_model_is_what_fits(with_workers: Make, pool: MakePool, observed: Observe) -> None:
    seen = observed(pool("ab"), "ab")
    assert seen.cluster.served_model == Model("file:///models/tiny")
    assert size(with_workers(1), seen).problem is None


@pytest.fixture
def standing_by(with_workers: Make) -> Callable[[int, int], MoEDeployment]:
    """`workers` that serve and `standby` beside them."""

    def make(workers: int, standby: int) -> MoEDeployment:
        asked = with_workers(workers)
        return replace(asked, experts=replace(asked.experts, standby_workers=standby))

    return make


StandingBy = Callable[[int, int], MoEDeployment]


def with_standby(pool: Pool, worker: MakeWorker, *pods: str) -> Pool:
    return replace(pool, workers=(*pool.workers, *(worker(pod, MemberState.STANDBY, experts=0) for pod in pods)))


def test_standbys_get_pods_of_their_own(
    standing_by: StandingBy, pool: MakePool, observed: Observe, worker: MakeWorker
) -> None:
    assert size(standing_by(2, 1), Observation(now=5.0)).experts == GroupSize(3)
    full = observed(with_standby(pool("ab"), worker, "c"), "abc", sizing=Sizing(settled=2, aim=2))
    decided = size(standing_by(2, 1), full)
    assert decided.experts == GroupSize(3)
    assert (decided.pods, decided.sizing) == (2, Sizing(settled=2, aim=2))


def test_standbys_come_in_whole_pods(standing_by: StandingBy) -> None:
    asked = standing_by(4, 1)
    asked = replace(asked, experts=replace(asked.experts, workers_per_pod=2))
    assert size(asked, Observation(now=5.0)).experts == GroupSize(3)


def test_growth_with_a_standby_starts_another_behind_it(
    standing_by: StandingBy, pool: MakePool, observed: Observe, worker: MakeWorker
) -> None:
    before = observed(with_standby(pool("ab"), worker, "c"), "abc", sizing=Sizing(settled=2, aim=2))
    decided = size(standing_by(3, 1), before)
    assert decided.experts == GroupSize(4)
    assert decided.sizing == Sizing(settled=2, aim=3, since=1000.0)
    promoted = observed(pool("abc"), "abc", replicas=4, sizing=decided.sizing, now=2000.0)
    late = size(standing_by(3, 1), promoted)
    assert late.problem is None, "the standby alone is missing: the size asked for is served"
    assert late.experts == GroupSize(4)
    assert late.sizing.settled == 3


def test_a_shrink_keeps_the_standbys(
    standing_by: StandingBy, pool: MakePool, observed: Observe, worker: MakeWorker
) -> None:
    full = observed(with_standby(pool("abc"), worker, "d"), "abcd", sizing=Sizing(settled=3, aim=3))
    assert size(standing_by(2, 1), full).sizing.victims == ("c",)
    assert size(standing_by(3, 0), full).sizing.victims == ("d",)
    assert size(standing_by(2, 0), full).sizing.victims == ("c", "d")


def test_exactly_the_new_pods_are_given_back(
    standing_by: StandingBy, pool: MakePool, observed: Observe, worker: MakeWorker
) -> None:
    """The standby that was promoted for a growth that failed is older than the pods that came for it."""
    sizing = Sizing(settled=2, aim=5, since=900.0)
    there = replace(pool("ab"), workers=(*pool("ab").workers, worker("z", experts=0), worker("c", experts=0)))
    seen = observed(there, "abzcd", replicas=6, sizing=sizing)
    pods = tuple(Pod(name, created_at=at) for name, at in (("a", 1), ("b", 1), ("z", 2), ("c", 910), ("d", 910)))
    experts = replace(seen.cluster.experts, pods=pods)
    decided = size(standing_by(5, 1), replace(seen, cluster=replace(seen.cluster, experts=experts)))
    assert decided.experts == GroupSize(3, ("d", "c"))
    assert decided.pods == 2
    assert decided.problem is not None
    assert decided.problem.reason == "ProvisionFailed"


def leaving(seen: Observation, *names: str) -> Observation:
    """The same, with these pods about to go."""
    assert seen.cluster is not None
    pods = tuple(replace(pod, leaving="cordoned" if pod.name in names else "") for pod in seen.cluster.experts.pods)
    return replace(seen, cluster=replace(seen.cluster, experts=replace(seen.cluster.experts, pods=pods)))


def test_who_leaves_is_replaced_before_it_goes(with_workers: Make, pool: MakePool, observed: Observe) -> None:
    first = size(with_workers(2), leaving(observed(pool()), "b"))
    assert first.sizing.victims == ("b",)
    assert first.experts == GroupSize(3), "another pod is asked for, and none is taken away"
    assert first.pods == 2
    waiting = observed(pool("ab"), "ab", replicas=3, sizing=Sizing(settled=2, aim=2, victims=("b",)))
    still = size(with_workers(2), leaving(waiting, "b"))
    assert (still.experts, still.sizing.victims) == (GroupSize(3), ("b",)), "it still holds experts"


def test_who_leaves_goes_once_it_is_empty(
    with_workers: Make, pool: MakePool, observed: Observe, worker: MakeWorker
) -> None:
    empty = replace(worker("b", MemberState.DRAINING, experts=0))
    emptied = pool("a", workers=(worker("a", experts=8), empty))
    sizing = Sizing(settled=2, aim=2, victims=("b",))
    gone = size(with_workers(2), leaving(observed(emptied, "ab", replicas=3, sizing=sizing), "b"))
    assert gone.experts == GroupSize(2, ("b",)), "whether or not the other pod has come"
    assert gone.sizing.victims == ()


def test_who_is_named_for_deletion_already_is_not_replaced_twice(
    with_workers: Make, pool: MakePool, observed: Observe
) -> None:
    going = observed(pool("a"), "ab", replicas=2, to_delete=("b",), sizing=Sizing(settled=2, aim=2))
    decided = size(with_workers(2), leaving(going, "b"))
    assert (decided.experts, decided.sizing.victims) == (GroupSize(2, ("b",)), ())


def test_a_shrink_takes_those_that_leave(with_workers: Make, pool: MakePool, observed: Observe) -> None:
    decided = size(with_workers(2), leaving(observed(pool("abcd"), "abcd"), "a", "b"))
    assert decided.sizing.victims == ("a", "b")
    assert decided.experts == GroupSize(4)


def test_a_node_that_stays_after_all_costs_no_size(with_workers: Make, pool: MakePool, observed: Observe) -> None:
    """Uncordoned before the other pod came: what was asked for comes, and the one that was to go is taken away."""
    sizing = Sizing(settled=2, aim=2, victims=("b",))
    decided = size(with_workers(2), observed(pool(), replicas=3, sizing=sizing))
    assert (decided.experts, decided.sizing.victims) == (GroupSize(3), ("b",))
