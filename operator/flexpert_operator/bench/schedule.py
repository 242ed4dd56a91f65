"""When requests are sent, whatever comes of those before: gaps between arrivals. Pure."""

import math

import numpy as np
from numpy.typing import NDArray


def arrivals(number: int, rate: float, burstiness: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """[number] seconds after the beginning at which requests are sent, ascending.

    Gaps are gamma-distributed with mean 1 / rate and shape `burstiness`: 1 is a Poisson process, less comes in bursts,
    more is more even, infinity is a fixed rate. They are scaled so that the last request is sent at number / rate,
    whatever the seed.

    Args:
        number: Of requests.
        rate: Requests a second; infinity sends all at once.
        burstiness: Above 0.
        rng: Draws the gaps.
    """
    if math.isinf(rate) or not number:
        return np.zeros(number)
    if math.isinf(burstiness):
        return np.arange(1, number + 1) / rate
    at = np.cumsum(rng.gamma(burstiness, 1.0 / (rate * burstiness), number))
    found: NDArray[np.float64] = at * (number / rate / at[-1])
    return found
