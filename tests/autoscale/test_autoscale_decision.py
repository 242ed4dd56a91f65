"""What every decision keeps to, whatever is seen, and what is decided in plain cases."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexpert_operator.autoscale import Counters, Observation, Policy, PoolCount, Sizes, State, decide
from flexpert_operator.autoscale.policy import (
    Behavior,
    Bounds,
    Direction,
    Forecast,
    Idle,
    Objectives,
    Rate,
    Select,
    Stale,
    Unit,
    Window,
)
from flexpert_operator.autoscale.state import Limit

CALM_S = 120.0
CALM = Behavior(down=Direction(stabilisation_s=CALM_S))
WIDE = Policy(
    "tiny",
    engines=Bounds(1, 40),
    experts=Bounds(1, 60),
    objectives=Objectives(ttft_s=1.0, tpot_s=0.05),
    engines_behavior=CALM,
    experts_behavior=CALM,
)
LEARNING = replace(WIDE, engines_behavior=Behavior(), experts_behavior=Behavior())

numbers = st.one_of(
    st.floats(0, 1e7), st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 0.0]), st.floats(-1e3, 1e12)
)
counts = st.builds(lambda ready, more: PoolCount(ready, ready + more), st.integers(0, 80), st.integers(0, 5))
observations = st.builds(
    Observation,
    at=st.one_of(st.floats(0, 1e10), st.just(math.nan)),
    engines=counts,
    experts=counts,
    measured_at=st.one_of(st.none(), numbers),
    counters=st.builds(Counters, numbers, numbers, numbers, numbers),
    running=numbers,
    queued=numbers,
    queued_tokens=numbers,
    prefill_tokens=numbers,
    engine_step_s=numbers,
    expert_step_s=numbers,
    kv_used=numbers,
    imbalance=numbers,
    reachable_imbalance=numbers,
    scale_up_s=numbers,
)
policies = st.builds(
    lambda base, devices, idle, forecast: replace(base, devices=devices, idle=idle, forecast=forecast),
    st.sampled_from([WIDE, LEARNING]),
    st.one_of(st.none(), st.integers(2, 80)),
    st.one_of(st.none(), st.just(Idle(60.0))),
    st.one_of(st.none(), st.just(Forecast(3600.0, 12))),
)


@settings(max_examples=150, deadline=None)
@given(seen=st.lists(observations, min_size=1, max_size=6), policy=policies)
def test_bounds_and_budget_hold_whatever_is_seen(seen, policy):
    state = State.initial()
    for observation in seen:
        decision, state = decide(observation, state, policy)
        waits = Limit.BUDGET in decision.limits  # for the devices of what is about to go
        assert 0 <= decision.sizes.engines <= policy.engines.maximum
        assert 0 <= decision.sizes.experts <= policy.experts.maximum
        assert policy.engines.minimum <= decision.sizes.engines or waits
        assert policy.experts.minimum <= decision.sizes.experts or waits
        assert decision.reason
        if policy.devices is not None:
            assert decision.sizes.devices(policy) <= policy.devices


@settings(max_examples=25, deadline=None)
@given(rates=st.lists(st.floats(0, 400), min_size=5, max_size=40), devices=st.integers(4, 60))
def test_the_budget_holds_at_every_moment_also_while_members_go(follow, rates, devices):
    pool = follow(replace(WIDE, devices=devices))
    leaving = Sizes(0, 0)
    for rate in rates:
        before = pool.sizes
        existing = Sizes(before.engines + leaving.engines, before.experts + leaving.experts)
        pool.look(
            rate,
            engines=PoolCount(before.engines, existing.engines),
            experts=PoolCount(before.experts, existing.experts),
        )
        after = pool.sizes
        together = Sizes(max(existing.engines, after.engines), max(existing.experts, after.experts))
        assert together.devices(pool.policy) <= devices
        leaving = Sizes(max(before.engines - after.engines, 0), max(before.experts - after.experts, 0))


@settings(max_examples=30, deadline=None)
@given(rate=st.floats(0.1, 300), factor=st.floats(1.0, 4.0), queued=st.floats(0, 1e5))
def test_more_load_never_wants_fewer_devices(follow, rate, factor, queued):
    def wanted(rate, tokens):
        pool = follow(WIDE)
        for _ in range(4):
            looked = pool.look(rate, queued_tokens=tokens)
        return looked.decision.wanted.devices(WIDE)

    assert wanted(rate, 0.0) <= wanted(rate * factor, 0.0) <= wanted(rate * factor, queued)


@settings(max_examples=30, deadline=None)
@given(rates=st.lists(st.floats(0, 300), min_size=10, max_size=60))
def test_what_grew_does_not_shrink_within_the_window(follow, rates):
    pool = follow(WIDE)
    grew_at = {"engines": -math.inf, "experts": -math.inf}
    for rate in rates:
        before = pool.sizes
        pool.look(rate)
        for name, at in grew_at.items():
            change = getattr(pool.sizes, name) - getattr(before, name)
            if change < 0:
                assert pool.at - at >= CALM_S
            if change > 0:
                grew_at[name] = pool.at


@settings(max_examples=20, deadline=None)
@given(rates=st.lists(st.floats(0, 300), min_size=5, max_size=40), pieces=st.integers(1, 4))
def test_rates_bound_what_comes_and_goes_in_a_period(follow, rates, pieces):
    way = Direction((Rate(Unit.PIECES, pieces, 60.0),))
    policy = replace(WIDE, experts_behavior=Behavior(up=way, down=replace(way, stabilisation_s=30.0)))
    pool = follow(policy)
    sizes = [(pool.at, pool.sizes.experts)]
    for rate in rates:
        pool.look(rate)
        sizes.append((pool.at, pool.sizes.experts))
        lately = [size for at, size in sizes if at >= pool.at - 60.0]
        assert sum(max(new - old, 0) for old, new in pairwise(lately)) <= pieces
        assert sum(max(old - new, 0) for old, new in pairwise(lately)) <= pieces


def test_a_disabled_direction_and_the_lesser_of_two_rates(follow):
    never = replace(WIDE, experts_behavior=Behavior(up=Direction(select=Select.DISABLED)))
    slow = Direction((Rate(Unit.PIECES, 2, 60.0), Rate(Unit.PERCENT, 100, 60.0)), select=Select.MIN)
    for policy, most in ((never, 1), (replace(WIDE, experts_behavior=Behavior(up=slow)), 2)):
        pool = follow(policy)
        list(pool.looks([0.0, 200.0, 200.0]))
        assert pool.sizes.experts == most


def test_a_pool_grows_by_all_it_needs_at_once_says_why_and_comes_back(follow):
    pool = follow(WIDE)
    list(pool.looks([1.0] * 8))
    small = pool.sizes
    grown = pool.look(200.0)
    assert pool.sizes.experts > 4 * small.experts
    assert "requests/s" in grown.decision.reason
    assert grown.decision.reason.startswith(f"from {small} to {pool.sizes}")
    assert grown.decision.bottleneck == "experts"
    held = pool.look(1.0)
    assert Limit.STABILISED in held.decision.limits
    list(pool.looks([1.0] * 20))
    assert pool.sizes == small


def test_slow_engines_get_engines_and_slow_workers_get_workers(follow):
    for slow, grows in (("engine_step_s", "engines"), ("expert_step_s", "experts")):
        sizes = {}
        for seconds in (0.008, 0.03):
            pool = follow(WIDE, Sizes(4, 8))
            quick = {"engine_step_s": 0.008, "expert_step_s": 0.008, slow: seconds}
            for _ in range(30):
                wanted = pool.look(40.0, running=300.0, engines=PoolCount(4, 4), experts=PoolCount(8, 8), **quick)
            sizes[seconds] = wanted.decision.wanted
        assert getattr(sizes[0.03], grows) > getattr(sizes[0.008], grows)


def test_full_kv_memory_asks_for_engines(follow):
    pool = follow(WIDE, Sizes(4, 8))
    looked = pool.look(1.0, kv_used=0.99, engines=PoolCount(4, 4))
    assert looked.decision.wanted.engines == 5
    assert pool.look(1.0, kv_used=0.2, engines=PoolCount(5, 5)).decision.wanted.engines <= 2


def test_without_fresh_metrics_sizes_are_held_then_safe(follow):
    pool = follow(replace(WIDE, stale=Stale(45.0, 300.0, engines=2, experts=30)))
    list(pool.looks([20.0] * 5))
    before, measured = pool.sizes, pool.at
    for _ in range(3):
        pool.look(0.0, measured_at=None)
    held = pool.look(0.0, measured_at=measured)
    assert (pool.sizes, held.decision.limits) == (before, {Limit.STALE})
    for _ in range(20):
        pool.look(0.0, running=math.nan)
    assert pool.sizes == Sizes(max(before.engines, 2), 30)
    list(pool.looks([20.0] * 20))
    assert pool.sizes == before


def test_a_clock_that_jumps_and_counters_that_begin_anew_change_nothing(follow):
    pool = follow(WIDE)
    list(pool.looks([50.0] * 10))
    before = pool.sizes
    pool.look(50.0, at=pool.at - 100_000.0, measured_at=pool.at - 100_000.0)
    assert pool.sizes == before
    pool.counters = Counters()
    list(pool.looks([50.0] * 3))
    assert pool.sizes == before
    pool.at += 4000.0
    pool.look(50.0 * 4000 / 15)
    pool.look(50.0)
    assert pool.sizes.experts >= before.experts


@pytest.mark.parametrize("leap", [-1e6, 1e6])
def test_after_a_leap_of_the_clock_nothing_shrinks_and_load_is_followed_again(follow, leap):
    pool = follow(WIDE)
    list(pool.looks([50.0] * 10))
    before = pool.sizes
    pool.at += leap
    for looked in pool.looks([50.0] * 10):
        assert looked.decision.sizes.experts >= before.experts
    assert list(pool.looks([250.0] * 3))[-1].decision.sizes.experts > 2 * before.experts
    list(pool.looks([50.0] * 20))
    assert pool.sizes.experts <= before.experts + 1


def test_metrics_from_the_future_are_of_now(follow):
    pool = follow(WIDE)
    list(pool.looks([20.0] * 5))
    pool.look(20.0, measured_at=pool.at + 1e6)
    assert list(pool.looks([200.0] * 3))[-1].decision.sizes.experts > 5


def test_a_hot_expert_asks_for_a_replica_and_not_for_a_worker(follow):
    pool = follow(WIDE)
    for _ in range(5):
        even = pool.look(30.0)
    before = pool.sizes
    hot = pool.look(30.0, imbalance=1.8, reachable_imbalance=1.02)
    assert (even.decision.rebalance, hot.decision.rebalance) == (False, True)
    assert pool.sizes.experts <= before.experts + 1
    assert "a replica cures that" in hot.decision.reason


def test_an_idle_pool_goes_to_zero_and_one_request_wakes_it(follow):
    policy = replace(WIDE, engines=Bounds(0, 8), experts=Bounds(0, 8), idle=Idle(300.0))
    pool = follow(policy)
    list(pool.looks([5.0] * 3))
    list(pool.looks([0.0] * 15))
    assert pool.sizes.engines >= 1
    list(pool.looks([0.0] * 25))
    assert pool.sizes == Sizes(0, 0)
    pool.look(0.0, queued=1.0, queued_tokens=200.0)
    assert pool.sizes.engines >= 1
    assert pool.sizes.experts >= 1


def test_windows_raise_the_floor_before_they_begin(follow):
    nine = 1_767_258_000.0  # 2026-01-01 09:00 UTC
    policy = replace(WIDE, schedule=(Window("0 9 * * *", 3600.0, engines=3, experts=12),))
    early, soon, within, after = (
        follow(policy, start=nine + seconds).look(0.0).decision.sizes for seconds in (-600.0, -40.0, 1800.0, 3600.0)
    )
    assert soon == within == Sizes(3, 12)
    assert early == after == Sizes(1, 1)


def test_paused_and_dry_runs_do_not_act(follow):
    paused = follow(replace(WIDE, pause=True))
    looked = paused.look(300.0)
    assert (looked.decision.acts, looked.decision.sizes, looked.decision.limits) == (False, Sizes(1, 1), {Limit.PAUSED})
    dry = follow(replace(WIDE, dry_run=True))
    looked = list(dry.looks([300.0] * 5))[-1]
    assert not looked.decision.acts
    assert looked.decision.sizes.experts > 1 == dry.sizes.experts


def test_a_forecast_grows_ahead(follow):
    season = [10.0] * 20 + [60.0] * 20
    sizes = {}
    for forecast in (None, Forecast(40 * 15.0, 40)):
        pool = follow(replace(WIDE, forecast=forecast), start=40 * 15.0 * 1000)
        list(pool.looks(season * 3 + season[:18]))
        sizes[forecast] = pool.look(10.0, scale_up_s=60.0).decision.wanted.experts
    without, ahead = sizes.values()
    assert ahead > without


@pytest.mark.parametrize("devices", [2, 7])
def test_a_budget_that_is_too_small_is_used_up_and_said(follow, devices):
    pool = follow(replace(WIDE, devices=devices))
    looked = list(pool.looks([1.0, 400.0, 400.0]))[-1]
    assert Limit.BUDGET in looked.decision.limits
    assert pool.sizes.devices(pool.policy) == devices
