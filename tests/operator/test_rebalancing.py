"""The rule that decides whether experts move for balance."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from load_samples import steady_loads

from flexpert_operator.api.fields import read
from flexpert_operator.api.spec import Rebalance
from flexpert_operator.decide import rebalancing
from flexpert_operator.decide.balance import Comparison, compare, imbalance_of
from flexpert_operator.decide.loads import SmoothedLoads
from flexpert_operator.decide.observation import Cause, Epoch, Operation, Phase
from flexpert_operator.decide.rebalancing import Action, Cost, History, Reason
from flexpert_placement.solver import solve
from flexpert_placement.types import ExpertId, PlacementProblem, WorkerCapacity

Known = Callable[..., SmoothedLoads]

WORKERS = (WorkerCapacity("a", 10_000), WorkerCapacity("b", 10_000))
SPLIT = {ExpertId(layer, index): {"ab"[index // 2]: 1.0} for layer in range(2) for index in range(4)}
"""Experts 0 and 1 on a, 2 and 3 on b."""
CROSSED = {ExpertId(layer, index): {"ab"[index % 2]: 1.0} for layer in range(2) for index in range(4)}
SKEWED = (40, 40, 10, 10, 40, 40, 10, 10)
"""80 % on a under SPLIT, even under CROSSED."""
FREE = Cost(moves=4, bytes=4000, seconds=0.0)


def test_what_another_placement_gains(known: Known) -> None:
    found = compare(known(SKEWED), SPLIT, CROSSED, WORKERS)
    assert found.imbalance == pytest.approx(1.6)
    assert found.imbalance_then == pytest.approx(1.0)
    assert found.gain == pytest.approx(1 - 1 / 1.6)
    assert found.drift == pytest.approx(0.0, abs=1e-9)
    assert 0.0 < found.error < 0.05
    back = compare(known(SKEWED), CROSSED, SPLIT, WORKERS)
    assert back.gain == pytest.approx(-0.6)
    assert compare(known((0,) * 8), SPLIT, CROSSED, WORKERS).gain == 0.0


def test_speeds_count(known: Known) -> None:
    uneven = (replace(WORKERS[0], speed=4.0), WORKERS[1])
    assert imbalance_of(known(SKEWED).loads, SPLIT, uneven) == pytest.approx(1.0)


def test_loads_that_change_shorten_the_hold(known: Known) -> None:
    changing = known(SKEWED, then=(10, 10, 40, 40, 10, 10, 40, 40), then_s=60.0)
    found = compare(changing, SPLIT, CROSSED, WORKERS)
    assert found.drift == pytest.approx(0.0, abs=1e-9), "the other placement is even under both"
    tilted = {expert: {"ab"[expert[1] in (0, 3)]: 1.0} for expert in SPLIT}
    towards = known(SKEWED, then=(40, 10, 10, 40, 40, 10, 10, 40), then_s=60.0)
    assert compare(towards, SPLIT, tilted, WORKERS).drift > 0.0


def look(
    known: SmoothedLoads | None, history: History | None = None, spec: Rebalance | None = None, imbalance: float = 1.6
) -> Reason | None:
    earlier = history or History()
    decision = rebalancing.before_solving(spec or Rebalance(), earlier, known, imbalance, now=1000.0)
    return decision.reason if decision is not None else None


def test_reasons_that_need_no_solver(known: Known) -> None:
    assert look(known(SKEWED), spec=Rebalance(enabled=False)) is Reason.DISABLED
    assert look(None) is Reason.WATCHING
    assert look(known((0,) * 8)) is Reason.NO_TRAFFIC
    assert look(known(SKEWED, seconds=30.0)) is Reason.WATCHING
    assert look(known(SKEWED), History(acted_at=950.0)) is Reason.COOLING_DOWN
    assert look(known(SKEWED), History(acted_at=940.0)) is None
    assert look(known(SKEWED), imbalance=1.04) is Reason.BALANCED
    assert look(known(SKEWED), imbalance=1.04, history=History(active=True)) is None
    assert (
        look(known(SKEWED), imbalance=1.0, spec=Rebalance(min_gain_percent=0, stop_gain_percent=0)) is Reason.BALANCED
    )
    assert look(known(SKEWED)) is None


def test_a_look_is_due_after_its_interval_and_what_is_switched_off_is_said_once() -> None:
    spec = Rebalance(interval_s=60)
    assert not rebalancing.is_due(spec, History(looked_at=941.0), 1000.0)
    assert rebalancing.is_due(spec, History(looked_at=940.0), 1000.0)
    assert rebalancing.is_due(spec, History(), 1000.0)
    off = Rebalance(enabled=False)
    assert rebalancing.is_due(off, History(), 1000.0)
    assert rebalancing.is_due(off, History(looked_at=999.0, reason="Balanced"), 1000.0)
    assert not rebalancing.is_due(off, History(looked_at=1.0, reason="Disabled"), 1000.0)


def judged(known: SmoothedLoads, comparison: Comparison, cost: Cost = FREE, **settings: float) -> Reason:
    history = History(active=bool(settings.pop("active", False)))
    decision = rebalancing.judge(replace(Rebalance(), **settings), history, known, comparison, cost)
    assert decision.active == (decision.action is Action.REBALANCE) == (decision.reason is Reason.GAIN_EXCEEDS_COST)
    return decision.reason


def test_reasons_after_solving(known: Known) -> None:
    seen = known(SKEWED, seconds=600.0)
    good = Comparison(imbalance=1.6, imbalance_then=1.0, gain=0.3, error=0.01, drift=0.0)
    assert judged(seen, good) is Reason.GAIN_EXCEEDS_COST
    assert judged(seen, replace(good, gain=0.04)) is Reason.GAIN_TOO_SMALL
    assert judged(seen, replace(good, gain=0.04), active=True) is Reason.GAIN_EXCEEDS_COST
    assert judged(seen, replace(good, gain=0.02), active=True) is Reason.GAIN_TOO_SMALL
    assert judged(seen, replace(good, error=0.3)) is Reason.UNCERTAIN
    assert judged(seen, good, replace(FREE, seconds=2000.0)) is Reason.COST_EXCEEDS_GAIN
    assert judged(seen, good, replace(FREE, seconds=2000.0), move_cost_percent=5) is Reason.GAIN_EXCEEDS_COST
    assert judged(seen, good, max_moves=3) is Reason.OVER_BUDGET
    assert judged(seen, good, max_bytes=3999) is Reason.OVER_BUDGET
    assert judged(seen, good, max_moves=4, max_bytes=4000) is Reason.GAIN_EXCEEDS_COST
    assert judged(seen, replace(good, drift=0.1), replace(FREE, seconds=10.0)) is Reason.COST_EXCEEDS_GAIN
    assert judged(seen, good, replace(FREE, seconds=100.0), max_hold_s=10) is Reason.COST_EXCEEDS_GAIN


def test_a_gain_holds_until_drift_has_used_it_up() -> None:
    spec = Rebalance(max_hold_s=100)
    assert rebalancing.expected_hold(spec, 1000.0, gain=0.2, drift=0.01) == pytest.approx(20.0)
    assert rebalancing.benefit(0.2, 0.01, 20.0) == pytest.approx(2.0)
    assert rebalancing.expected_hold(spec, 1000.0, gain=0.2, drift=0.0) == 100.0
    assert rebalancing.expected_hold(spec, 30.0, gain=0.2, drift=0.0) == 30.0
    assert rebalancing.expected_hold(spec, 1000.0, gain=-0.2, drift=0.0) == 0.0


fractions = st.floats(-1.0, 1.0, allow_nan=False)
positive = st.floats(0.0, 1.0)


@settings(max_examples=300, deadline=None)
@given(fractions, positive, positive, st.floats(0.0, 1e5), st.integers(0, 500), st.integers(0, 100), st.booleans())
def test_nothing_ever_moves_without_a_positive_net_gain(
    gain: float, error: float, drift: float, seconds: float, moves: int, threshold: int, active: bool
) -> None:
    spec = Rebalance(min_gain_percent=threshold, stop_gain_percent=threshold / 2)
    known = steady_loads(SKEWED, 600.0)
    comparison = Comparison(1.6, 1.0, gain, error, drift)
    decision = rebalancing.judge(spec, History(active=active), known, comparison, Cost(moves, moves * 1000, seconds))
    if decision.action is Action.REBALANCE:
        assert decision.benefit_s is not None
        assert decision.cost_s is not None
        assert decision.benefit_s > decision.cost_s >= 0.0
        assert gain > error
        assert 100 * gain >= (spec.stop_gain_percent if active else spec.min_gain_percent)
    else:
        assert decision.reason is not Reason.GAIN_EXCEEDS_COST
        assert not decision.active


counts = st.lists(st.integers(0, 1000), min_size=8, max_size=8)


@settings(max_examples=60, deadline=None)
@given(counts, counts, st.floats(2.0, 500.0))
def test_what_moves_makes_the_pool_faster_under_the_loads_that_were_seen(
    before: list[int], after: list[int], seconds: float
) -> None:
    """The rule over the solver's own answers, for placements that were right for other loads."""
    assume(sum(before) > 0)
    known = steady_loads(before, 600.0, after, seconds)
    problem = PlacementProblem(tuple(map(tuple, np.reshape(before, (2, 4)).astype(float))), 1000, WORKERS)
    now = solve(problem).placement
    then = solve(replace(problem, loads=tuple(map(tuple, known.loads.tolist())), current=now)).placement
    comparison = compare(known, now, then, WORKERS)
    decision = rebalancing.judge(Rebalance(), History(), known, comparison, Cost(8, 8000, 0.5))
    if decision.action is Action.REBALANCE:
        assert imbalance_of(known.loads, then, WORKERS) < imbalance_of(known.loads, now, WORKERS)
        assert comparison.gain > comparison.error > 0.0


def test_hysteresis_over_looks() -> None:
    """It takes 10 % to begin and 4 % to go on: gains that swing between the two are followed to their end, once."""
    spec = Rebalance(min_gain_percent=10, stop_gain_percent=4, cooldown_s=0)
    known, history, acts = steady_loads(SKEWED, 600.0), History(), []
    for gain in (0.06, 0.09, 0.12, 0.06, 0.05, 0.03, 0.06, 0.09):
        decision = rebalancing.judge(spec, history, known, Comparison(1.2, 1.0, gain, 0.0, 0.0), FREE)
        acts.append(decision.action is Action.REBALANCE)
        history = replace(history, active=decision.active)
    assert acts == [False, False, True, True, True, False, False, False]


def test_a_pause_does_not_end_a_rebalancing(known: Known) -> None:
    active = History(acted_at=990.0, active=True)
    pause = rebalancing.before_solving(Rebalance(), active, known(SKEWED), 1.6, 1000.0)
    assert pause is not None
    assert (pause.reason, pause.active) == (Reason.COOLING_DOWN, True)
    end = rebalancing.before_solving(Rebalance(), replace(active, acted_at=0.0), known(SKEWED), 1.0, 1000.0)
    assert end is not None
    assert (end.reason, end.active) == (Reason.BALANCED, False)


def test_what_the_status_and_the_pool_remember() -> None:
    assert rebalancing.history_of({}, None, 0.0, 0.0) == History()
    status = {
        "conditions": [{"type": "Rebalancing", "status": "True"}],
        "placement": {"lastDecision": {"reason": "CoolingDown"}},
    }
    moved = Operation("rebalance-x.0", Cause.REBALANCE, Phase.SUCCEEDED, Epoch(1, 1), finished_at=500.0)
    assert rebalancing.history_of(status, moved, 700.0, 400.0) == History(700.0, True, 500.0, "CoolingDown")
    other = replace(moved, cause=Cause.SCALE)
    assert rebalancing.history_of(status, other, 700.0, 400.0).acted_at == 400.0


def test_the_spec_is_read_with_its_defaults() -> None:
    assert read(Rebalance, {}) == Rebalance()
    assert read(Rebalance, {"minGainPercent": 8}).go_on_percent == 4.0
    assert read(Rebalance, {"minGainPercent": 8, "stopGainPercent": 1}).go_on_percent == 1
    assert read(Rebalance, {"maxBytes": "2Mi"}).max_bytes == 2 * 2**20
