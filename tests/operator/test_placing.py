from collections.abc import Callable
from dataclasses import replace

import pytest

from flexpert_operator.api import MoEDeployment, PlacementSpec, Rebalance, Solver
from flexpert_operator.decide import placing
from flexpert_operator.decide.loads import SmoothedLoads
from flexpert_operator.decide.observation import (
    NO_EPOCH,
    Cause,
    Epoch,
    MemberState,
    Observation,
    Operation,
    Phase,
    Pool,
    Worker,
)
from flexpert_operator.decide.sizing import count_ready
from flexpert_placement.solver import solve
from flexpert_placement.types import Budget, ExpertId, SolverName

MakePool = Callable[..., Pool]
Observe = Callable[..., Observation]
MakeWorker = Callable[..., Worker]
Known = Callable[..., SmoothedLoads]


def ask(
    deployment: MoEDeployment, observed: Observation, pods: int = 2, settled: int = 2, victims: tuple[str, ...] = ()
) -> placing.PlacementRequest | None:
    cause = placing.placement_cause(deployment, observed, pods, settled, victims)
    pool = observed.pool
    return (
        placing.placement_request(deployment, pool, cause, victims) if cause is not None and pool is not None else None
    )


def test_a_placement_that_does_is_left_alone(deployment: MoEDeployment, pool: MakePool, observed: Observe) -> None:
    assert ask(deployment, observed(pool())) is None


def test_the_first_placement(deployment: MoEDeployment, pool: MakePool, observed: Observe, worker: MakeWorker) -> None:
    fresh = pool((), workers=(worker("a", experts=0), worker("b", experts=0)), epoch=NO_EPOCH)
    request = ask(deployment, observed(fresh), settled=0)
    assert request is not None
    assert request.cause is Cause.INITIAL
    assert [one.id for one in request.problem.workers] == ["w-a", "w-b"]
    assert {one.memory_bytes for one in request.problem.workers} == {9000}, "room for one expert stays free"
    assert request.problem.loads == ((0.0,) * 4,) * 2
    wanted = placing.reconfiguration(deployment, fresh, request, solve(request.problem))
    assert wanted is not None
    assert len(wanted.plan.target) == 8
    assert all(move.sources == () for move in wanted.plan.moves)


def test_growth(deployment: MoEDeployment, pool: MakePool, observed: Observe, worker: MakeWorker) -> None:
    grown = replace(pool(), workers=(*pool().workers, worker("c", experts=0), worker("d", experts=0)))
    request = ask(deployment, observed(grown, "abcd"), pods=4)
    assert request is not None
    assert request.cause is Cause.SCALE
    wanted = placing.reconfiguration(deployment, grown, request, solve(request.problem))
    assert wanted is not None
    assert {move.target for move in wanted.plan.moves} >= {"w-c", "w-d"}
    assert all(move.sources for move in wanted.plan.moves), "copied from peers"


def test_growth_waits_for_all(deployment: MoEDeployment, pool: MakePool, observed: Observe, worker: MakeWorker) -> None:
    starting = worker("d", MemberState.STARTING, experts=0)
    half = replace(pool(), workers=(*pool().workers, worker("c", experts=0), starting))
    assert ask(deployment, observed(half, "abcd"), pods=4) is None


def test_a_shrink_empties_the_victims(deployment: MoEDeployment, pool: MakePool, observed: Observe) -> None:
    four = pool("abcd")
    request = ask(deployment, observed(four, "abcd"), settled=4, victims=("d", "c"))
    assert request is not None
    assert request.cause is Cause.SCALE
    wanted = placing.reconfiguration(deployment, four, request, solve(request.problem))
    assert wanted is not None
    assert {worker for row in wanted.plan.target.values() for worker in row} == {"w-a", "w-b"}


def test_a_replacement_of_a_lost_worker(
    deployment: MoEDeployment, pool: MakePool, observed: Observe, worker: MakeWorker
) -> None:
    """The pool itself gave the lost experts to `a`; the replacement on the same pod stands empty."""
    survivors = {expert: {"w-a": 1.0} for expert in pool().placement}
    new = replace(worker("b", experts=0), id="w-new")
    request = ask(deployment, observed(pool(placement=survivors, workers=(worker("a", experts=8), new))))
    assert request is not None
    assert request.cause is Cause.FAILURE


def test_lost_experts_are_placed_when_the_workers_are_there(
    deployment: MoEDeployment, pool: MakePool, observed: Observe
) -> None:
    request = ask(deployment, observed(pool(lost=(ExpertId(0, 1),))))
    assert request is not None
    assert request.cause is Cause.FAILURE


def test_more_replicas_asked_for(deployment: MoEDeployment, pool: MakePool, observed: Observe) -> None:
    request = ask(replace(deployment, placement=PlacementSpec(min_replicas=2)), observed(pool()))
    assert request is not None
    assert request.cause is Cause.SCALE
    assert request.problem.min_replicas == 2


RUNNING = Operation("x.0", Cause.SCALE, Phase.PREPARE, Epoch(1, 1))


@pytest.mark.parametrize(
    "change",
    [{"term": 0}, {"model": None}],
    ids=["no term", "no model"],
)
def test_nothing_is_asked_when_nothing_can_be_done(
    deployment: MoEDeployment, pool: MakePool, observed: Observe, worker: MakeWorker, change: dict[str, object]
) -> None:
    grown = replace(pool(), workers=(*pool().workers, worker("c", experts=0)))
    assert ask(deployment, observed(grown, "abc"), pods=3) is not None
    assert ask(deployment, observed(replace(grown, **change), "abc"), pods=3) is None  # type: ignore[arg-type]


def test_one_at_a_time(pool: MakePool) -> None:
    assert placing.may_start(pool(), now=1000.0)
    assert not placing.may_start(pool(operation=RUNNING), now=1000.0)


def undone(attempt: int, finished_at: float) -> Operation:
    return Operation(f"scale-x.{attempt}", Cause.SCALE, Phase.ROLLED_BACK, Epoch(1, 1), finished_at=finished_at)


@pytest.mark.parametrize(
    ("attempt", "ago", "waits"), [(0, 1.0, True), (0, 2.0, False), (3, 15.0, True), (3, 16.0, False), (9, 60.0, False)]
)
def test_what_came_to_nothing_is_tried_again_ever_later(pool: MakePool, attempt: int, ago: float, waits: bool) -> None:
    last = undone(attempt, 1000.0 - ago)
    assert placing.may_start(pool("abcd", operation=last), now=1000.0) != waits


def test_an_operation_is_known_by_what_it_leads_to(
    deployment: MoEDeployment, pool: MakePool, observed: Observe
) -> None:
    four = pool("abcd")

    def identity(deployment: MoEDeployment, pool: Pool) -> str:
        request = ask(deployment, observed(pool, "abcd"), victims=("d", "c"))
        assert request is not None
        wanted = placing.reconfiguration(deployment, pool, request, solve(request.problem))
        assert wanted is not None
        return wanted.operation_id

    first = identity(deployment, four)
    assert first == identity(deployment, four), "a retry is the same operation"
    assert first.startswith("scale-")
    assert first.endswith(".0")
    assert first != identity(replace(deployment, generation=2), four)
    assert first != identity(deployment, replace(four, epoch=Epoch(1, 2)))
    again = identity(deployment, replace(four, operation=undone(0, 0.0)))
    assert again == first[:-1] + "1", "an operation that came to nothing is not repeated under its id"


SKEWED = (90, 0, 0, 30, 0, 90, 30, 0)
"""Under the fixture's placement everything is on worker a (layer 0: index 0) and b (layer 0: 3), and so on."""


def test_the_solver_is_told_of_the_loads_of_now_and_of_the_budget(
    deployment: MoEDeployment, pool: MakePool, known: Known
) -> None:
    spec = PlacementSpec(rebalance=Rebalance(max_moves=3, max_bytes=5000), solver=Solver(SolverName.HIGHS))
    asked = replace(deployment, placement=spec)
    request = placing.placement_request(asked, pool(loads=(1,) * 8), Cause.REBALANCE, (), known(SKEWED))
    assert request is not None
    first, second = request.problem.loads
    assert (first, second) == (pytest.approx((9.0, 0.0, 0.0, 3.0)), pytest.approx((0.0, 9.0, 3.0, 0.0)))
    assert request.problem.traffic.deviation is not None
    assert request.problem.budget == Budget(moves=3, bytes=5000)
    assert request.problem.solver is SolverName.HIGHS
    grown = placing.placement_request(asked, pool(loads=(1,) * 8), Cause.SCALE, (), known(SKEWED))
    assert grown is not None
    assert grown.problem.budget == Budget(), "what has to be is not limited"
    unknown = placing.placement_request(asked, pool(loads=SKEWED), Cause.SCALE, (), known((0,) * 8))
    assert unknown is not None
    assert unknown.problem.loads == ((90.0, 0.0, 0.0, 30.0), (0.0, 90.0, 30.0, 0.0)), "what was counted since ever"


def test_shares_alone_are_a_rebalancing(deployment: MoEDeployment, pool: MakePool, known: Known) -> None:
    """Replicas stay where they are; who serves how much changes. For any other cause that is nothing to do."""
    both = {expert: {"w-a": 0.9, "w-b": 0.1} for expert in pool().placement}
    placed = pool(placement=both)
    for cause, changes in ((Cause.REBALANCE, True), (Cause.SCALE, False)):
        request = placing.placement_request(deployment, placed, cause, (), known(SKEWED))
        assert request is not None
        target = {expert: {"w-a": 0.5, "w-b": 0.5} for expert in both}
        result = replace(solve(request.problem), placement=target)
        wanted = placing.reconfiguration(deployment, placed, request, result)
        assert (wanted is not None) == changes
        assert wanted is None or wanted.plan.moves == ()
        assert placing.reconfiguration(deployment, placed, request, replace(result, placement=both)) is None


def test_a_question_whose_answer_was_to_stay_is_known_again(
    deployment: MoEDeployment, pool: MakePool, observed: Observe
) -> None:
    """Nine workers for eight experts: one stays empty for ever, and is not asked about for ever."""
    request = ask(deployment, observed(pool("abcd"), "abcd"), victims=("d", "c"))
    assert placing.question_of(request) == placing.question_of(request)
    later = ask(deployment, observed(pool("abcd", epoch=Epoch(1, 2)), "abcd"), victims=("d", "c"))
    assert placing.question_of(later) != placing.question_of(request)
    assert placing.question_of(None) is None


def test_the_solution_in_whole_numbers(deployment: MoEDeployment, pool: MakePool, observed: Observe) -> None:
    request = ask(deployment, observed(pool("abcd"), "abcd"), victims=("d", "c"))
    assert request is not None
    solution = placing.solution_of(request, solve(request.problem))
    assert 10000 <= solution.bound <= solution.objective
    assert solution.gap_percent >= 0


def test_imbalance_now(pool: MakePool, known: Known) -> None:
    assert placing.imbalance_now(pool(), None) is None
    assert placing.imbalance_now(pool(), known((0,) * 8)) is None
    assert placing.imbalance_now(pool(), known((1,) * 8)) == pytest.approx(1.0)
    assert placing.imbalance_now(pool(), known((3, 1, 3, 1, 1, 3, 1, 3))) == pytest.approx(1.5)


def leaving(observed: Observe, pool: Pool, *names: str) -> Observation:
    """The observation in which these pods are about to go."""
    seen = observed(pool, sorted({worker.pod for worker in pool.workers}))
    assert seen.cluster is not None
    pods = tuple(replace(pod, leaving="cordoned" if pod.name in names else "") for pod in seen.cluster.experts.pods)
    return replace(seen, cluster=replace(seen.cluster, experts=replace(seen.cluster.experts, pods=pods)))


def test_who_leaves_is_emptied_at_once_where_the_others_have_room(
    deployment: MoEDeployment, pool: MakePool, observed: Observe
) -> None:
    seen = leaving(observed, pool(), "b")
    assert seen.leaving_pods == ("b",)
    assert placing.placement_cause(deployment, seen, 2, 2, ("b",)) is Cause.DRAIN
    request = placing.placement_request(deployment, pool(), Cause.DRAIN, ("b", *seen.leaving_pods))
    assert request is not None
    assert [worker.id for worker in request.problem.workers] == ["w-a"]
    wanted = placing.reconfiguration(deployment, pool(), request, solve(request.problem))
    assert wanted is not None
    assert wanted.operation_id.startswith("drain-")
    assert {worker for row in wanted.plan.target.values() for worker in row} == {"w-a"}


def test_who_leaves_waits_for_others_where_there_is_no_room(
    deployment: MoEDeployment, pool: MakePool, observed: Observe, worker: MakeWorker
) -> None:
    tight = tuple(replace(one, memory_bytes=6000) for one in pool().workers)
    full = pool(workers=tight)
    assert placing.placement_cause(deployment, leaving(observed, full, "b"), 2, 2, ("b",)) is None
    more = pool(workers=(*tight, replace(worker("c", experts=0), memory_bytes=6000)))
    assert placing.placement_cause(deployment, leaving(observed, more, "b"), 2, 2, ("b",)) is Cause.DRAIN
    twice = replace(deployment, placement=PlacementSpec(min_replicas=2))
    assert placing.placement_cause(twice, leaving(observed, pool(), "b"), 2, 2, ("b",)) is None


def test_who_leaves_and_holds_nothing_is_no_reason(
    deployment: MoEDeployment, pool: MakePool, observed: Observe
) -> None:
    moved = pool(placement={expert: {"w-a": 1.0} for expert in pool().placement})
    assert placing.placement_cause(deployment, leaving(observed, moved, "b"), 2, 2, ("b",)) is None
    assert placing.placement_cause(deployment, leaving(observed, pool(), "a", "b"), 2, 2, ("a", "b")) is None


def test_ready_workers(pool: MakePool, worker: MakeWorker) -> None:
    assert count_ready(pool("ab", workers=(worker("a"), worker("b", MemberState.DRAINING)))) == 1


def test_what_stopped_between_two_waves_goes_on(deployment: MoEDeployment, pool: MakePool, observed: Observe) -> None:
    """The pool controller died after the first of several commits: the table in force is no operation's last."""
    request = ask(deployment, observed(pool(table_operation="scale-0a1b.0#1")))
    assert request is not None
    assert request.cause is Cause.SCALE
    assert ask(deployment, observed(pool(table_operation="scale-0a1b.0"))) is None
