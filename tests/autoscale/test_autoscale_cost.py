"""What growing costs beside its time, and what is kept for it."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexpert_operator.autoscale import Observation, Policy, PoolCount, Sizes
from flexpert_operator.autoscale.cost import GrowthCost
from flexpert_operator.autoscale.fit import Profile, ServiceFit
from flexpert_operator.autoscale.policy import Behavior, Bounds, Direction

PROFILE = Profile(engine_step_s=0.01, engine_token_s=0.0, expert_step_s=0.01, worker_token_s=0.002, prefill_price=0.0)
FIT = ServiceFit.of(PROFILE)
POLICY = Policy("tiny", engines=Bounds(1, 9), experts=Bounds(1, 9), engine_devices=1, worker_devices=2)
USUAL_S = 0.02 + 0.002 * 10 / 2
numbers = st.one_of(st.floats(0, 1e9), st.sampled_from([math.nan, math.inf, -1.0]))


def seen(at: float, experts: int, step_s: float = USUAL_S) -> Observation:
    """Ten sequences on one engine."""
    return Observation(
        at,
        PoolCount(1, 1),
        PoolCount(experts, 4),
        measured_at=at,
        step_sequences=10.0,
        engine_step_s=step_s / 2,
        expert_step_s=step_s / 2,
    )


def grown(cost: GrowthCost, slower: float, begins: float = 0.0) -> GrowthCost:
    """From two workers to four in 40 s, in which steps take so many times what they take else."""
    asked = Sizes(1, 4)
    for at, experts, step_s in ((0, 2, USUAL_S), (20, 2, slower * USUAL_S), (40, 4, slower * USUAL_S), (60, 4, 0.025)):
        cost = cost.updated(seen(begins + at, experts, step_s), Sizes(1, 2) if at == 0 else asked, FIT, POLICY)
    return cost


def test_what_is_lost_while_members_come_is_what_they_cost():
    found = grown(GrowthCost(), 1.25)
    lost_s = 40 * (1 + 2 * 2) * (1 - 1 / 1.25)
    assert found.device_s == pytest.approx(lost_s / (2 * 2))
    assert (found.coming, found.lost_s) == (0, 0.0)


@pytest.mark.parametrize("slower", [1.0, 0.8, math.nan])
def test_steps_that_take_no_longer_cost_nothing(slower):
    assert grown(GrowthCost(), slower).device_s == pytest.approx(0.0)


def test_the_newest_growth_counts_for_half():
    once = grown(GrowthCost(), 1.25)
    twice = grown(once, 1.0, begins=1000.0)
    assert twice.device_s == pytest.approx(once.device_s / 2)


def test_slow_steps_of_a_pool_that_does_not_grow_cost_nothing():
    cost = GrowthCost()
    for at in range(0, 100, 10):
        cost = cost.updated(seen(at, 2, 2.0), Sizes(1, 2), FIT, POLICY)
    assert cost.device_s == 0.0


def test_a_growth_that_is_called_off_is_at_its_end():
    cost = GrowthCost()
    for at, asked in ((0, 2), (20, 4), (40, 4), (60, 2)):
        cost = cost.updated(seen(at, 2, 1.25 * USUAL_S), Sizes(1, asked), FIT, POLICY)
    assert cost.coming == 0
    assert cost.device_s > 0.0


@settings(max_examples=60, deadline=None)
@given(looks=st.lists(st.tuples(numbers, st.integers(0, 9), st.integers(0, 9), numbers, numbers, numbers), max_size=20))
def test_whatever_is_measured_it_is_a_number_within_bounds(looks):
    cost, at = GrowthCost(), 0.0
    for passed, ready, asked, step_s, sequences, imbalance in looks:
        at += passed if math.isfinite(passed) else 0.0
        look = replace(seen(at, ready, step_s), step_sequences=sequences, imbalance=imbalance)
        cost = cost.updated(look, Sizes(1, asked), FIT, POLICY)
        assert 0.0 <= cost.device_s <= 3600.0


def test_members_that_cost_much_to_bring_back_are_kept_longer(follow):
    """The same load and the same sizes; in one pool steps took ten times as long while members came."""

    def held_s(slower: float) -> float:
        wide = Policy("tiny", engines=Bounds(1, 1), experts=Bounds(1, 40))
        pool = follow(wide)
        list(pool.looks([5.0] * 45))
        small = pool.sizes
        service = pool.state.fit.service()
        for _ in range(4):
            usual_s = service.step_s + 200.0 * service.worker_token_s / small.experts
            coming = PoolCount(small.experts, 40)
            pool.look(100.0, experts=coming, engine_step_s=usual_s * slower / 2, expert_step_s=usual_s * slower / 2)
        since = pool.at
        while pool.look(5.0).decision.sizes != small and pool.at - since < 3600:
            pass
        return pool.at - since

    assert held_s(10.0) >= held_s(1.0) + 15.0


def test_a_window_of_the_policy_holds_whatever_growing_costs(follow):
    behavior = Behavior(down=Direction(stabilisation_s=0.0))
    pool = follow(replace(Policy("tiny", engines=Bounds(1, 1), experts=Bounds(1, 40)), experts_behavior=behavior))
    list(pool.looks([100.0] * 4))
    pool.state = replace(pool.state, cost=GrowthCost(1000.0))
    grown_to = pool.sizes.experts
    list(pool.looks([1.0] * 8))
    assert pool.sizes.experts < grown_to
