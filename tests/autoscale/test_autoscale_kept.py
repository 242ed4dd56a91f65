"""How sizes follow what requests were measured to get."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexpert_operator.autoscale import Observation, Policy, PoolCount
from flexpert_operator.autoscale.kept import MOST_USED, Kept
from flexpert_operator.autoscale.policy import Bounds, Objectives

WIDE = Policy("tiny", engines=Bounds(1, 60), experts=Bounds(1, 120), objectives=Objectives(ttft_s=1.0, tpot_s=0.03))
GOAL = WIDE.objectives
numbers = st.one_of(st.floats(0, 1e6), st.sampled_from([math.nan, math.inf, -1.0]))


def seen(at: float, judged: float, late: float) -> Observation:
    return Observation(at, PoolCount(1, 1), PoolCount(1, 1), measured_at=at, judged=judged, late=late)


def after(*looks: tuple[float, float]) -> Kept:
    kept = Kept()
    for number, (judged, late) in enumerate(looks):
        kept = kept.updated(seen(10.0 * number, judged, late), GOAL.percentile)
    return kept


def test_the_model_is_believed_until_something_is_measured():
    assert Kept().aimed(GOAL).percentile == pytest.approx(GOAL.percentile)
    assert after(*[(0.0, 0.0)] * 50).aimed(GOAL).percentile == pytest.approx(GOAL.percentile)


def test_as_many_late_ones_as_are_allowed_change_nothing_fewer_less_head_room_and_more_more():
    as_allowed, none, many = (after(*[(500.0, late)] * 100) for late in (5.0, 0.0, 9.0))
    assert as_allowed.aimed(GOAL).percentile == pytest.approx(GOAL.percentile)
    assert 0.85 < none.aimed(GOAL).percentile < 0.95
    assert many.aimed(GOAL).percentile > 0.995


def test_a_surprise_is_forgotten_within_the_hour_and_a_quiet_night_leaves_the_model_alone():
    calm = [(200.0, 0.0)] * 100
    surprised = after(*calm, *[(200.0, 200.0)] * 6)
    assert surprised.used > 1.5
    later = surprised
    for number in range(360):
        later = later.updated(seen(1060.0 + 10.0 * number, 200.0, 0.0), GOAL.percentile)
    assert later.used < 0.5
    night = later.updated(seen(1e6, 0.0, 0.0), GOAL.percentile)
    assert night.aimed(GOAL).percentile == pytest.approx(GOAL.percentile)


@settings(max_examples=60, deadline=None)
@given(looks=st.lists(st.tuples(numbers, numbers), max_size=30), goal=st.floats(0.5, 1 - 1e-13))
def test_whatever_is_measured_the_head_room_stays_within_its_bounds(looks, goal):
    kept = Kept()
    for number, (judged, late) in enumerate(looks):
        kept = kept.updated(seen(10.0 * number, judged, late), goal)
        assert 0.0 < kept.used <= MOST_USED
    assert 0.5 <= kept.aimed(replace(GOAL, percentile=goal)).percentile < 1.0


def test_pools_that_keep_more_than_was_asked_for_shrink_and_late_requests_let_them_grow(follow):
    def sizes(late):
        pool = follow(WIDE)
        for _ in range(20):
            looked = pool.look(300.0, judged=4500.0, late=late)
        return looked.decision.wanted.devices(WIDE)

    assert sizes(0.0) <= sizes(45.0) <= sizes(90.0)
    assert sizes(0.0) < sizes(90.0)


def test_a_dry_run_learns_nothing_of_a_pool_that_others_size(follow):
    pool = follow(replace(WIDE, dry_run=True))
    for _ in range(20):
        looked = pool.look(300.0, judged=4500.0, late=0.0)
    assert looked.state.kept == Kept()
