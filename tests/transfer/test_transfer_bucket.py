"""The token bucket, by a clock that stands still unless it is moved."""

import pytest
from transfer_harness import Clock

from flexpert_workers.transfer import TokenBucket


def test_a_burst_goes_at_once_and_then_the_rate_holds():
    clock = Clock()
    bucket = TokenBucket(1000.0, burst_bytes=500, clock=clock)
    assert bucket.take(500) == 0.0
    assert bucket.take(100) == pytest.approx(0.1)
    clock.now += 0.1
    assert bucket.take(100) == 0.0
    clock.now += 100
    assert [bucket.take(500), bucket.take(500)] == [0.0, pytest.approx(0.5)]


def test_more_than_a_burst_goes_and_is_paid_for_afterwards():
    clock = Clock()
    bucket = TokenBucket(1000.0, burst_bytes=500, clock=clock)
    assert bucket.take(2500) == 0.0
    assert bucket.take(1) == pytest.approx(2.001)


@pytest.mark.parametrize(("busy", "share"), [(0.0, 1.0), (0.5, 0.5), (1.0, 0.25), (7.0, 0.25), (-1.0, 1.0)])
def test_copies_yield_to_serving_and_never_starve(busy, share):
    clock = Clock()
    bucket = TokenBucket(1000.0, burst_bytes=100, busy=lambda: busy, clock=clock)
    bucket.take(100)
    sent = 0
    for _ in range(1000):
        clock.now += 0.01
        sent += 10 if bucket.take(10) == 0.0 else 0
    assert sent == pytest.approx(1000 * 10 * share, rel=0.02)


def handled(bucket, clock, seconds):
    """Chunks that are handled in so much time, each in a hundredth of a second."""
    until, chunks = clock.now + seconds, 0
    while clock.now < until:
        wait_s = bucket.take(1 << 20)
        clock.now += wait_s or 0.01
        if not wait_s:
            bucket.worked(0.01)
            chunks += 1
    return chunks


@pytest.mark.parametrize(("busy", "share"), [(0.0, 1.0), (0.5, 0.5), (0.7, 0.3), (1.0, 0.25), (-1.0, 1.0)])
def test_without_a_rate_copies_get_a_share_of_the_time(busy, share):
    clock = Clock()
    bucket = TokenBucket(None, busy=lambda: busy, clock=clock)
    assert handled(bucket, clock, 100.0) == pytest.approx(10_000 * share, rel=0.02)


def test_copies_speed_up_as_soon_as_serving_is_idle():
    clock, busy = Clock(), [1.0]
    for rate in (None, 100 * (1 << 20)):
        bucket = TokenBucket(rate, burst_bytes=1 << 20, busy=lambda: busy[0], clock=clock)
        busy[0] = 1.0
        slow = handled(bucket, clock, 10.0)
        busy[0] = 0.0
        assert handled(bucket, clock, 10.0) >= 3 * slow


def test_without_a_rate_everything_goes_while_serving_is_idle():
    bucket = TokenBucket(None)
    assert [bucket.take(1 << 40) for _ in range(3)] == [0.0] * 3


@pytest.mark.parametrize("settings", [(0.0, 1, 0.1), (-1.0, 1, 0.1), (1.0, 0, 0.1), (1.0, 1, 0.0), (1.0, 1, 1.5)])
def test_settings_that_mean_nothing_are_refused(settings):
    rate, burst, share = settings
    with pytest.raises(ValueError):
        TokenBucket(rate, burst, least_share=share)
