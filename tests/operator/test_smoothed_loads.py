import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexpert_operator.decide.loads import SLOW, Counter, SmoothedLoads, counter_of, observe_loads

SHAPE = (1, 4)
EVEN = np.array([[10, 10, 10, 10]])
HOT = np.array([[37, 1, 1, 1]])


class Stream:
    """Looks at counters that grow."""

    def __init__(self, half_life_s: float = 60.0, step_s: float = 10.0) -> None:
        self.half_life_s, self.step_s = half_life_s, step_s
        self.now, self.tokens, self.origin = 0.0, np.zeros(SHAPE, dtype=np.int64), ("one", 0.0)
        self.revision = "r"
        self.known: SmoothedLoads | None = None
        self.look()

    def look(self) -> SmoothedLoads:
        counter = Counter(self.origin, self.tokens.copy(), self.now)
        self.known = observe_loads(self.known, self.revision, counter, self.half_life_s)
        assert self.known is not None
        return self.known

    def go(self, tokens: np.ndarray, seconds: float) -> SmoothedLoads:
        """`tokens` a step, for some time."""
        for _ in range(round(seconds / self.step_s)):
            self.now, self.tokens = self.now + self.step_s, self.tokens + tokens
            known = self.look()
        return known


def test_steady_loads_are_told_as_they_are() -> None:
    known = Stream().go(HOT, 60.0)
    assert known.loads == pytest.approx(HOT / 10.0)
    assert known.deviation == pytest.approx(np.zeros(SHAPE), abs=1e-6)
    assert known.filled == pytest.approx(0.5, abs=0.05)
    assert known.observed_s == 60.0
    assert known.moved == pytest.approx(0.0, abs=1e-9)


def test_what_was_seen_counts_half_after_a_half_life() -> None:
    stream = Stream(half_life_s=60.0, step_s=60.0)
    stream.go(EVEN, 6000.0)
    known = stream.go(HOT, 60.0)
    shares = known.loads / known.loads.sum()
    assert shares[0, 0] == pytest.approx(0.5 * 37 / 40 + 0.5 * 10 / 40)
    slow = known.earlier / known.earlier.sum()
    assert slow[0, 0] == pytest.approx((1 - 2 ** (-1 / SLOW)) * 37 / 40 + 2 ** (-1 / SLOW) * 10 / 40)
    assert known.moved == pytest.approx(shares[0, 0] - slow[0, 0])
    assert known.lag_s == pytest.approx((SLOW - 1) * 60.0 / math.log(2), rel=0.05)


def test_nothing_is_known_at_first_nor_without_counters() -> None:
    stream = Stream()
    assert stream.known is not None
    assert (stream.known.flowing, stream.known.filled) == (False, 0.0)
    assert observe_loads(None, "r", None, 60.0) is None
    assert observe_loads(stream.known, "r", None, 60.0) is stream.known
    assert counter_of("one", 0.0, (1, 2, 3), SHAPE, 0.0) is None
    counter = counter_of("one", 5.0, (1, 2, 3, 4), SHAPE, 9.0)
    assert counter is not None
    assert (counter.origin, counter.tokens.tolist(), counter.at) == (("one", 5.0), [[1, 2, 3, 4]], 9.0)


def test_looks_in_quick_succession_make_one_sample() -> None:
    stream = Stream(step_s=0.5)
    assert stream.go(EVEN, 7.0).observed_s == 0.0
    assert stream.go(EVEN, 0.5).observed_s == 7.5


def restart(stream: Stream) -> None:
    stream.origin, stream.tokens = ("two", stream.now), np.zeros(SHAPE, dtype=np.int64)


def lose_counts(stream: Stream) -> None:
    stream.tokens = stream.tokens // 2


@pytest.mark.parametrize("break_it", [restart, lose_counts])
def test_counters_that_start_anew_cost_one_sample(break_it: Callable[[Stream], None]) -> None:
    stream = Stream()
    before = stream.go(HOT, 120.0)
    break_it(stream)
    after = stream.go(HOT, 10.0)
    assert after.observed_s == before.observed_s
    assert after.loads == pytest.approx(before.loads)
    assert stream.go(HOT, 10.0).observed_s == before.observed_s + 10.0


def test_another_revision_starts_afresh() -> None:
    stream = Stream()
    stream.go(HOT, 120.0)
    stream.revision = "another"
    known = stream.look()
    assert (known.revision, known.observed_s, known.flowing) == ("another", 0.0, False)


def test_idle_time_lets_loads_fall_but_not_shift() -> None:
    stream = Stream()
    busy = stream.go(HOT, 600.0)
    idle = stream.go(np.zeros(SHAPE, dtype=np.int64), 60.0)
    assert idle.loads.sum() == pytest.approx(busy.loads.sum() / 2, rel=0.05)
    assert idle.loads / idle.loads.sum() == pytest.approx(busy.loads / busy.loads.sum())
    assert not stream.go(np.zeros(SHAPE, dtype=np.int64), 3600.0).flowing


def test_uncertainty_is_of_shares_and_falls_with_time() -> None:
    rising = Stream()
    for factor in range(1, 20):
        rising.go(HOT * factor, 10.0)
    assert rising.look().deviation == pytest.approx(np.zeros(SHAPE), abs=1e-6), "traffic grew, its mixture stayed"
    varied = Stream()
    varied.go(EVEN, 10.0)
    first = varied.go(HOT, 10.0)
    assert first.deviation[0, 0] > 0
    for _ in range(20):
        varied.go(EVEN, 10.0)
        last = varied.go(HOT, 10.0)
    assert last.error[0, 0] / last.loads.sum() < first.error[0, 0] / first.loads.sum()
    few = Stream().go(np.array([[1, 0, 0, 1]]), 60.0)
    assert few.error[0, 0] > 0, "twelve tokens are a small sample however alike they come"


def test_another_half_life_keeps_what_is_known() -> None:
    stream = Stream()
    before = stream.go(HOT, 120.0)
    stream.half_life_s = 30.0
    after = stream.go(HOT, 10.0)
    assert after.fast.half_life_s == 30.0
    assert after.loads == pytest.approx(before.loads, rel=0.2)


rates = st.lists(st.integers(0, 10_000), min_size=4, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(rates, st.floats(0.1, 500.0)), min_size=1, max_size=12), st.floats(1.0, 300.0))
def test_whatever_comes_the_numbers_stay_sound(steps: list[tuple[list[int], float]], half_life_s: float) -> None:
    counter = Counter(("one", 0.0), np.zeros(SHAPE, dtype=np.int64), 0.0)
    known = observe_loads(None, "r", counter, half_life_s)
    for tokens, seconds in steps:
        counter = replace(counter, tokens=counter.tokens + np.array([tokens]), at=counter.at + seconds)
        known = observe_loads(known, "r", counter, half_life_s)
    assert known is not None
    for numbers in (known.loads, known.earlier, known.deviation, known.error):
        assert np.isfinite(numbers).all()
        assert (numbers >= 0).all()
    assert 0.0 <= known.filled <= 1.0
    assert 0.0 <= known.moved <= 1.0 + 1e-9
    assert known.lag_s >= -1e-6
    assert known.loads.max() <= max((max(tokens) / 0.1 for tokens, _ in steps), default=0.0) + 1e-6
