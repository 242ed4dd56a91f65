"""What a policy makes of a target: whole pods that the experts fit into, within the budget; and what is measured."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexpert_operator.api import Engines, Experts, Model, MoEDeployment, PlacementSpec, Resources, Serving
from flexpert_operator.api.autoscaling import (
    DeviceBudget,
    EngineBounds,
    IdleSpec,
    PolicySpec,
    ScaleUp,
    ScalingBehavior,
    ScalingRate,
    StaleSpec,
    TargetRef,
    WorkerBounds,
)
from flexpert_operator.autoscale import Counters, InvalidPolicy, Observation, PoolCount, Sizes, State
from flexpert_operator.autoscale.cost import GrowthCost
from flexpert_operator.autoscale.policy import Objectives, Select, Unit
from flexpert_operator.autoscale.sizes import Change
from flexpert_operator.decide import owning, policy_status, scaling
from flexpert_operator.decide.measured import Look, observation_of
from flexpert_operator.decide.observation import ModelFacts, Pool
from flexpert_proto.measuring import Figures, Histogram

Make = Callable[..., MoEDeployment]
PLAIN = MoEDeployment(
    name="tiny",
    namespace="default",
    uid="u",
    generation=1,
    resource_version="1",
    model=Model("file:///models/tiny"),
    engines=Engines(),
    experts=Experts(workers=2),
    placement=PlacementSpec(),
    serving=Serving(),
)
SPEC = PolicySpec(TargetRef("tiny"), EngineBounds(1, 4), WorkerBounds(2, 8), DeviceBudget(9))


def in_pods_of(deployment: MoEDeployment, step: int) -> MoEDeployment:
    return replace(deployment, experts=replace(deployment.experts, workers=2 * step, workers_per_pod=step))


def test_devices_are_gpus_where_there_are_any(deployment: MoEDeployment) -> None:
    assert scaling.devices_of(deployment) == (1, 1)
    gpus = Resources(limits={"nvidia.com/gpu": "4"})
    experts = replace(deployment.experts, resources=gpus, workers_per_pod=4)
    assert scaling.devices_of(replace(deployment, experts=experts)) == (0, 1)
    engines = replace(deployment.engines, resources=Resources(requests={"nvidia.com/gpu": 2}))
    assert scaling.devices_of(replace(deployment, engines=engines, experts=experts)) == (2, 1)


def test_the_experts_have_to_fit(deployment: MoEDeployment, facts: ModelFacts) -> None:
    narrow = replace(deployment, experts=replace(deployment.experts, memory_per_worker_bytes=3000))
    assert scaling.least_workers(deployment, facts) == 1
    assert scaling.least_workers(narrow, facts) == 4, "two of eight experts beside the free slot each"
    assert scaling.least_workers(in_pods_of(narrow, 3), facts) == 6
    small = replace(SPEC, experts=WorkerBounds(2, 2))
    with pytest.raises(InvalidPolicy, match=r"^spec\.experts\.max: 2 is below 4"):
        scaling.policy_of(small, narrow, facts)
    with pytest.raises(InvalidPolicy, match=r"^spec\.budget\.devices: 4 is below 5"):
        scaling.policy_of(replace(SPEC, budget=DeviceBudget(4)), narrow, facts)


def test_bounds_are_whole_pods(deployment: MoEDeployment) -> None:
    with pytest.raises(InvalidPolicy, match=r"^spec\.experts\.min: 2 is no multiple of 4"):
        scaling.policy_of(SPEC, in_pods_of(deployment, 4), None)
    with pytest.raises(InvalidPolicy, match=r"^spec\.experts\.max: 7 is no multiple of 2"):
        scaling.policy_of(replace(SPEC, experts=WorkerBounds(2, 7)), in_pods_of(deployment, 2), None)


def test_a_safe_floor_beyond_the_budget_is_refused(deployment: MoEDeployment) -> None:
    floor = StaleSpec(engines=4, experts=7)
    with pytest.raises(InvalidPolicy, match=r"^spec\.stale: this safe floor takes 11 devices.* allows 9"):
        scaling.policy_of(replace(SPEC, stale=floor), deployment, None)
    in_pods = replace(SPEC, stale=replace(floor, experts=5), experts=WorkerBounds(2, 8))
    assert scaling.policy_of(in_pods, deployment, None).stale.experts == 5
    with pytest.raises(InvalidPolicy, match=r"takes 10 devices"):
        scaling.policy_of(in_pods, in_pods_of(deployment, 2), None)


@pytest.mark.parametrize("rate", [ScalingRate(100, 60, Unit.PERCENT), None], ids=["percent of nothing", "disabled"])
def test_a_pool_that_sleeps_wakes_whatever_behavior_says_of_growth(
    deployment: MoEDeployment, rate: ScalingRate | None
) -> None:
    up = ScaleUp(policies=(rate,)) if rate is not None else ScaleUp(select_policy=Select.DISABLED)
    bounds = {"minimum": 0, "maximum": 4, "behavior": ScalingBehavior(scale_up=up)}
    spec = PolicySpec(TargetRef("tiny"), EngineBounds(**bounds), WorkerBounds(**bounds), idle=IdleSpec(5))
    policy = scaling.policy_of(spec, deployment, None)
    nobody = PoolCount(0, 0)
    nothing = Observation(100.0, nobody, nobody, 100.0)
    asleep = policy_status.begun(policy_status.restored({"desired": {"engines": 0, "experts": 0}}, 100.0), nothing)
    still, state = scaling.decide_sizes(nothing, asleep, policy, deployment, None)
    assert still.sizes == Sizes(0, 0)
    seen = Observation(110.0, nobody, nobody, 110.0, queued=1.0, queued_tokens=20.0)
    assert scaling.decide_sizes(seen, state, policy, deployment, None)[0].sizes == Sizes(1, 1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 200), st.floats(0.5, 30)), min_size=1, max_size=12),
)
def test_sizes_are_whole_pods_within_the_budget_also_while_they_change(
    step: int, looks: list[tuple[int, int, float]]
) -> None:
    deployment = in_pods_of(PLAIN, step)
    bounds = WorkerBounds(0, 6 * step)
    spec = replace(SPEC, experts=bounds, budget=DeviceBudget(4 * step + 3), idle=IdleSpec(5))
    policy = scaling.policy_of(spec, deployment, None)
    at, requests, state = 1000.0, 0.0, replace(State.initial(), sizes=Sizes(1, step))
    sizes = Sizes(1, step)
    for number, queued, seconds in looks:
        at, requests = at + seconds, requests + number
        counters = Counters(requests, 50 * requests, requests, 100 * requests)
        pools = PoolCount(sizes.engines, sizes.engines), PoolCount(sizes.experts, sizes.experts)
        seen = Observation(at, *pools, at, counters, queued=queued, queued_tokens=50 * queued)
        before = sizes
        decision, state = scaling.decide_sizes(seen, state, policy, deployment, None)
        sizes = decision.sizes
        assert sizes.experts % step == 0
        assert sizes.experts <= bounds.maximum
        held = Sizes(max(before.engines, sizes.engines), max(before.experts, sizes.experts))
        assert held.devices(policy) <= 4 * step + 3, (before, sizes)
        assert state.sizes == sizes


def figures(since: float = 0.0, at: float = 90.0, **counters: float) -> Figures:
    steps = int(counters.pop("steps", 0))
    histograms = {
        "engine_step_seconds": Histogram((60.0,), (steps, 0), 0.05 * steps),
        "engine_dispatch_seconds": Histogram((60.0,), (steps, 0), 0.03 * steps),
        "engine_step_tokens": Histogram((60.0,), (steps, 0), 8.0 * steps),
    }
    return Figures("one", since, at, counters, {"ingress_waiting": 3.0, "engine_waiting": 1.0}, histograms)


def test_an_observation_is_of_what_happened_since_the_last_look() -> None:
    before = Look(90.0, Pool("p", figures=figures(steps=100, engine_busy_seconds=10, engine_sequence_seconds=40)))
    now = Look(
        100.0,
        Pool(
            "p",
            figures=figures(
                at=100.0, steps=300, engine_busy_seconds=20, engine_sequence_seconds=120, ingress_requests=7
            ),
            layer_imbalance=(1.5, 1.1, 0.0),
        ),
    )
    found = observation_of(100.0, now, before, PoolCount(2, 2), PoolCount(3, 4), 1.2, 12.0)
    assert (found.measured_at, found.counters.requests, found.queued) == (100.0, 7, 4)
    assert found.running == pytest.approx(8.0), "on average, in ten seconds"
    assert found.step_sequences == pytest.approx(16.0), "eight in a step of each of two engines"
    assert (found.engine_step_s, found.expert_step_s) == (pytest.approx(0.02), pytest.approx(0.03))
    assert (found.imbalance, found.reachable_imbalance) == (pytest.approx(1.3), 1.2)


def test_requests_are_judged_by_the_histograms_of_the_times_that_have_an_objective() -> None:
    def look(at: float, within: int, late: int) -> Look:
        times = {
            "ingress_ttft_seconds": Histogram((0.5, 1.0), (within, late, 0)),
            "ingress_tpot_seconds": Histogram((0.05, 0.1), (within, 0, late)),
            "ingress_queue_seconds": Histogram((0.1,), (0, within + late)),
        }
        return Look(at, Pool("p", figures=Figures("one", 0.0, at, {}, {}, times)))

    def judged(before: Look | None, objectives: Objectives | None) -> tuple[float, float]:
        found = observation_of(20.0, look(20.0, 180, 20), before, *counts, None, 30.0, objectives)
        return found.judged, found.late

    counts, before = (PoolCount(1, 1), PoolCount(2, 2)), look(10.0, 90, 8)
    assert judged(before, Objectives(ttft_s=0.5)) == (102, pytest.approx(12.0))
    assert judged(before, Objectives(ttft_s=0.5, tpot_s=0.05)) == (102, pytest.approx(24.0)), "each miss counts"
    assert judged(before, Objectives(ttft_s=0.5, queue_wait_s=0.1)) == (102, 102), "no more than there are"
    assert judged(before, Objectives()) == judged(before, None) == judged(None, Objectives(ttft_s=0.5)) == (0, 0)


def test_without_figures_there_is_nothing_measured() -> None:
    counts = PoolCount(1, 1), PoolCount(2, 2)
    for look in (None, Look(5.0, Pool("p"))):
        assert observation_of(5.0, look, None, *counts, None, 30.0).measured_at is None
    found = observation_of(5.0, Look(5.0, Pool("p", figures=figures())), None, *counts, None, 30.0)
    assert found.measured_at == 5.0
    assert math.isnan(found.engine_step_s)


def test_what_a_decision_remembers_comes_back_from_the_status() -> None:
    state = replace(State.initial(), sizes=Sizes(1, 4), changes=(Change(990.0, 0, 2),), cost=GrowthCost(17.5))
    status = {
        "desired": {"engines": 1, "experts": 4},
        "changes": [{"time": "1970-01-01T00:16:30Z", "engines": 0, "experts": 2}],
        "learnt": policy_status.learnt_status(state, 12.5, {}),
    }
    found = policy_status.restored(status, 1000.0)
    assert (found.sizes, found.changes, found.cost) == (state.sizes, state.changes, state.cost)
    assert found.fit.engine.coefficients() == pytest.approx(state.fit.engine.coefficients(), rel=1e-3)
    asleep = policy_status.restored({"desired": {"engines": 0, "experts": 0}}, 1000.0)
    seen = Observation(1000.0, PoolCount(0, 0), PoolCount(0, 0), 1000.0, Counters(requests=50))
    assert policy_status.begun(asleep, seen).traffic.active_at == 0.0, "it is left idle"


def test_who_has_the_word(deployment: MoEDeployment) -> None:
    assert owning.owned(deployment, (), ()).condition is None
    assert owning.resized(in_pods_of(deployment, 4), Sizes(2, 5)).experts.workers == 8
