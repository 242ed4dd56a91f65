"""Smoothed loads for tests, of the model of `conftest.FACTS`."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flexpert_operator.decide.loads import Counter, SmoothedLoads, observe_loads

HALF_LIFE_S = 60.0
SAMPLE_S = 10.0
SHAPE = (2, 4)


def steady_loads(
    tokens: Sequence[int], seconds: float = 600.0, then: Sequence[int] | None = None, then_s: float = 0.0
) -> SmoothedLoads:
    """What is known after `tokens` a sample came for a time, and `then` others for another."""
    counter = Counter(("one", 0.0), np.zeros(SHAPE, dtype=np.int64), 0.0)
    known = observe_loads(None, "digest", counter, HALF_LIFE_S)
    for sample, duration in ((tokens, seconds), (then or tokens, then_s)):
        for _ in range(round(duration / SAMPLE_S)):
            grown = counter.tokens + np.asarray(sample, dtype=np.int64).reshape(SHAPE)
            counter = replace(counter, tokens=grown, at=counter.at + SAMPLE_S)
            known = observe_loads(known, "digest", counter, HALF_LIFE_S)
    assert known is not None
    return known
