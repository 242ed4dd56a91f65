"""How long pools wait before they shrink where the policy leaves that to us, and what is held meanwhile."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexpert_operator.autoscale import Observation, Policy, PoolCount, Sizes, State, calm
from flexpert_operator.autoscale.fit import Profile, ServiceFit
from flexpert_operator.autoscale.policy import Behavior, Bounds, Direction, Objectives
from flexpert_operator.autoscale.queueing import Demand, need
from flexpert_operator.autoscale.sizes import Wish, held

LEARNING = Policy("tiny", engines=Bounds(1, 40), experts=Bounds(1, 60), objectives=Objectives(ttft_s=1.0, tpot_s=0.05))
BURSTS = [*[150.0] * 4, *[5.0] * 12]
"""A minute of them, three minutes of little."""


def returns(*absences: float, requests: float = 10.0) -> list[calm.Return]:
    return [calm.Return(0.0, requests, absence) for absence in absences]


def test_the_window_leaves_out_as_few_requests_as_the_percentile_allows():
    often = returns(*[0.0] * 90, *[200.0] * 10)
    assert calm.window_s(often, 3600.0, calm.LEAST_S, 0.99) == pytest.approx(calm.MARGIN * 200.0)
    seldom = returns(*[0.0] * 996, *[200.0] * 4)
    assert calm.window_s(seldom, 3600.0, calm.LEAST_S, 0.99) == calm.LEAST_S
    assert calm.window_s(seldom, 3600.0, calm.LEAST_S, 0.999) > 200.0


def test_the_window_is_cautious_while_little_is_known_and_follows_the_time_to_scale_up():
    assert calm.window_s([], 60.0, calm.LEAST_S, 0.99) == calm.FIRST_S
    assert calm.window_s([], 3600.0, calm.least_s(10.0), 0.99) == calm.LEAST_S
    assert calm.window_s([], 3600.0, calm.least_s(200.0), 0.99) == calm.STARTS * 200.0
    assert calm.window_s(returns(1e9), 1e9, calm.LEAST_S, 0.99) == calm.MOST_S


def test_what_growing_costs_is_paid_for_by_keeping():
    assert calm.least_s(10.0, 20.0) == calm.LEAST_S
    assert calm.least_s(50.0, 40.0) == calm.STARTS * 50.0
    assert calm.least_s(50.0, 90.0) == 140.0
    assert calm.least_s(50.0, 1e9) == calm.MOST_S


def test_an_absence_counts_back_from_when_members_had_to_be_ordered():
    needed = [(200.0, 3), (100.0, 2), (0.0, 9)]
    assert calm.absence_s(needed, 9, 300.0, 50.0) == 150.0
    assert calm.absence_s(needed, 3, 300.0, 50.0) == 0.0
    assert calm.absence_s(needed, 3, 220.0, 50.0) == 70.0
    assert calm.absence_s(needed, 20, 300.0, 50.0) == 0.0


@settings(max_examples=60, deadline=None)
@given(
    absences=st.lists(st.floats(0, 2000), max_size=60),
    scale_up_s=st.floats(0, 500),
    percentile=st.floats(0.5, 0.999),
)
def test_a_stricter_percentile_never_shortens_the_window(absences, scale_up_s, percentile):
    known = returns(*absences)
    least_s = calm.least_s(scale_up_s)
    window_s = calm.window_s(known, 3600.0, least_s, percentile)
    assert least_s <= window_s <= max(calm.MOST_S, least_s)
    assert window_s <= calm.window_s(known, 3600.0, least_s, (1 + percentile) / 2)


def test_bursts_that_come_back_find_their_members_and_one_alone_is_soon_forgotten(follow):
    pool = follow(LEARNING)
    list(pool.looks(BURSTS * 6))
    busy = [pool.look(150.0).decision.wanted for _ in range(4)][-1]
    for looked in pool.looks([5.0] * 12):
        assert looked.decision.sizes.devices(LEARNING) >= busy.devices(LEARNING)
    calm_pool = follow(LEARNING)
    list(calm_pool.looks([5.0] * 60))
    small = calm_pool.sizes
    list(calm_pool.looks([150.0] * 4))
    list(calm_pool.looks([5.0] * 12))
    assert calm_pool.sizes == small


@settings(max_examples=20, deadline=None)
@given(rates=st.lists(st.floats(0, 300), min_size=10, max_size=50))
def test_what_grew_stays_for_twice_the_time_in_which_it_came(follow, rates):
    pool = follow(LEARNING)
    grew_at = {"engines": -math.inf, "experts": -math.inf}
    for rate in rates:
        before = pool.sizes
        pool.look(rate, scale_up_s=45.0)
        for name, at in grew_at.items():
            change = getattr(pool.sizes, name) - getattr(before, name)
            assert change >= 0 or pool.at - at >= calm.least_s(45.0)
            if change > 0:
                grew_at[name] = pool.at


def test_what_waits_is_served_quickly_and_not_remembered(follow):
    pool = follow(LEARNING)
    list(pool.looks([20.0] * 60))
    usual = pool.sizes
    grown = pool.look(20.0, queued=500.0, queued_tokens=100_000.0)
    assert grown.decision.sizes.devices(LEARNING) > usual.devices(LEARNING)
    list(pool.looks([20.0] * 6))
    assert pool.sizes == usual


def test_the_most_devices_are_held_and_what_is_wanted_now_wins_a_draw():
    wishes = [Wish(10.0, Sizes(1, 5), Sizes(1, 5)), Wish(20.0, Sizes(3, 9), Sizes(1, 2))]
    assert held(wishes, Sizes(1, 1), 0.0, LEARNING, Sizes(1, 5)) == Sizes(1, 5)
    assert held(wishes, Sizes(2, 4), 0.0, LEARNING, Sizes(1, 5)) == Sizes(2, 4)
    assert held(wishes, Sizes(1, 1), 10.0, LEARNING, Sizes(1, 5)) == Sizes(1, 2)


def test_engines_stay_as_many_where_that_takes_no_more_devices():
    service, demand = ServiceFit.of(Profile()).service(), Demand(10_000.0, 3_000.0, 20.0)
    best = need(service, demand, LEARNING, 1.0, (40, 60))
    cheapest = best.engines + best.experts
    for engines in range(1, 6):
        found = need(service, demand, LEARNING, 1.0, (40, 60), near=engines)
        assert found.engines + found.experts == cheapest
    kept = need(service, demand, LEARNING, 1.0, (40, 60), near=best.engines)
    assert kept.engines == best.engines


def test_where_one_pool_takes_over_from_the_other_it_comes_first(follow):
    def look(ready):
        backlog = {"queued": 3000.0, "queued_tokens": 600_000.0}
        counts = {"engines": PoolCount(40, 40), "experts": PoolCount(ready, pool.sizes.experts)}
        return pool.look(0.0, **counts, **backlog).decision.sizes

    now = Behavior(down=Direction(stabilisation_s=0.0))
    pool = follow(replace(LEARNING, engines_behavior=now, experts_behavior=now), Sizes(40, 1))
    grown = look(1)
    assert grown.experts > 1
    assert grown.engines == 40
    assert look(1).engines == 40
    assert look(grown.experts).engines < 40


def test_means_over_a_change_of_the_pools_teach_nothing():
    def seen(ready: int, expert_step_s: float) -> Observation:
        return Observation(
            at=0.0,
            engines=PoolCount(1, 1),
            experts=PoolCount(ready, ready),
            running=50.0,
            engine_step_s=0.01,
            expert_step_s=expert_step_s,
        )

    fit = State.initial(Profile()).fit
    for _ in range(50):
        fit = fit.updated(seen(4, 0.02))
    changed = fit.updated(seen(8, 0.09))
    assert changed.service() == fit.service()
    assert changed.updated(seen(8, 0.09)).service() != fit.service()


@settings(max_examples=40, deadline=None)
@given(slower=st.floats(0.3, 4.0), running=st.floats(5.0, 60.0))
def test_a_profile_that_is_wrong_by_a_factor_is_found_out_at_one_load(slower, running):
    profile = Profile()
    fit = ServiceFit.of(profile)
    for _ in range(60):
        load = running / 4
        observation = Observation(
            at=0.0,
            engines=PoolCount(1, 1),
            experts=PoolCount(4, 4),
            running=running,
            engine_step_s=slower * (profile.engine_step_s + profile.engine_token_s * running),
            expert_step_s=slower * (profile.expert_step_s + profile.worker_token_s * load),
        )
        fit = fit.updated(observation)
    service = fit.service()
    assert service.step_s == pytest.approx(slower * (profile.engine_step_s + profile.expert_step_s), rel=0.1)
    assert service.worker_token_s == pytest.approx(slower * profile.worker_token_s, rel=0.1)


def test_steady_load_at_the_edge_of_a_size_does_not_make_it_flap(follow):
    pool = follow(LEARNING)
    sizes = []
    for number in range(200):
        sizes.append(pool.look(60.0 * (1.06 if number % 3 else 0.94)).decision.sizes)
    assert sum(one != other for one, other in pairwise(sizes[40:])) <= 4
