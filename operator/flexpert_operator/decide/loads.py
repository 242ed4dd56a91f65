"""Smoothed loads: what the experts' token counters say about the text of now. Pure; `reconciler` keeps the last value.

The pool controller counts tokens per expert since it started. `observe_loads` takes the differences between looks and
adds them up with weights that halve every half-life. Nothing is stored: an operator that starts anew begins with the
first look, and for one half-life nobody acts on what it has seen (`SmoothedLoads.filled`). A controller that starts
anew counts from 0 again, which is noticed by `Counter.origin`; another checkpoint's loads start afresh.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

SLOW = 4.0
"""Half-life of the slow sums, which drift is told by, in half-lives."""

SAMPLES_PER_HALF_LIFE = 8
SHORTEST_SAMPLE_S = 2.0
"""Workers are asked for their counters once a second, one after the other; a shorter sample would show that."""


@dataclass(frozen=True, eq=False)
class Counter:
    """The pool controller's counters at one look.

    Attributes:
        origin: What they count since, and by whom; where it differs, the counts cannot be subtracted.
        tokens: [layers, experts] tokens since then.
        at: When it was looked, seconds since the Unix epoch.
    """

    origin: tuple[str, float]
    tokens: NDArray[np.int64]
    at: float


@dataclass(frozen=True, eq=False)
class Window:
    """Sums over the past in which a sample's weight halves every `half_life_s`.

    Attributes:
        tokens: [layers, experts] weighted tokens.
        seconds: Weighted time; half_life_s / ln 2 when there has always been a sample.
        age_seconds: Weighted time times its age.
    """

    half_life_s: float
    tokens: NDArray[np.float64]
    seconds: float = 0.0
    age_seconds: float = 0.0

    def after(self, tokens: NDArray[np.float64], seconds: float) -> "Window":
        """With one more sample: `tokens` that came in the last `seconds`."""
        keep = 2.0 ** (-seconds / self.half_life_s)
        return replace(
            self,
            tokens=keep * self.tokens + tokens,
            seconds=keep * self.seconds + seconds,
            age_seconds=keep * (self.age_seconds + seconds * self.seconds) + seconds * seconds / 2,
        )

    @property
    def mean_age_s(self) -> float:
        """How old what it tells is on average."""
        return self.age_seconds / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, eq=False)
class SmoothedLoads:
    """What is known of the loads of one model revision.

    Attributes:
        revision: Digest of the checkpoint.
        counter: The last look that a sample ended with.
        observed_s: Time that all samples cover.
        fast: Sums at the half-life.
        slow: Sums at `SLOW` half-lives.
        squares: [layers, experts] weighted sum of tokens² / the layer's tokens of the sample.
        square_weights: [layers] sum of the squared weights of the samples.
    """

    revision: str
    counter: Counter
    fast: Window
    slow: Window
    squares: NDArray[np.float64]
    square_weights: NDArray[np.float64]
    observed_s: float = field(default=0.0)

    @property
    def filled(self) -> float:
        """How much of the window has been seen: 0 at first, 0.5 after one half-life, 1 in the end."""
        return min(1.0, self.fast.seconds * math.log(2) / self.fast.half_life_s)

    @property
    def layer_tokens(self) -> NDArray[np.float64]:
        """[layers] weighted tokens."""
        totals: NDArray[np.float64] = self.fast.tokens.sum(axis=1)
        return totals

    @property
    def flowing(self) -> bool:
        """Whether any token has come that still counts."""
        return bool(self.layer_tokens.sum() >= 1.0)

    @property
    def loads(self) -> NDArray[np.float64]:
        """[layers, experts] tokens per second."""
        return self.fast.tokens / self.fast.seconds if self.fast.seconds > 0 else self.fast.tokens

    @property
    def earlier(self) -> NDArray[np.float64]:
        """[layers, experts] loads of the slow window, each layer scaled to as many tokens as `loads` has."""
        totals = self.slow.tokens.sum(axis=1, keepdims=True)
        shares = np.divide(self.slow.tokens, totals, out=np.zeros_like(self.slow.tokens), where=totals > 0)
        scaled: NDArray[np.float64] = shares * self.loads.sum(axis=1, keepdims=True)
        return scaled

    @property
    def lag_s(self) -> float:
        """How much older what `earlier` tells is than what `loads` tells."""
        return self.slow.mean_age_s - self.fast.mean_age_s

    @property
    def moved(self) -> float:
        """Part of the tokens that lie with other experts than in the slow window, mean over the layers; 0 to 1."""
        totals = self.loads.sum(axis=1)
        apart = np.abs(self.loads - self.earlier).sum(axis=1) / 2
        return float((apart[totals > 0] / totals[totals > 0]).mean()) if np.any(totals > 0) else 0.0

    @property
    def deviation(self) -> NDArray[np.float64]:
        """[layers, experts] standard deviation of the loads from sample to sample, tokens per second.

        Of each expert's share of its layer: traffic that rises or falls as a whole does not count.
        """
        deviation: NDArray[np.float64] = np.sqrt(self._variance) * self.loads.sum(axis=1, keepdims=True)
        return deviation

    @property
    def error(self) -> NDArray[np.float64]:
        """[layers, experts] standard error of `loads`: of the mean of the samples, and no less than counting has."""
        totals = self.layer_tokens[:, None]
        shares = self._shares
        squares = self.square_weights[:, None]
        of_mean = self._variance * np.divide(squares, totals**2, out=np.ones_like(squares), where=totals > 0)
        of_counting = np.divide(shares * (1 - shares), totals, out=np.zeros_like(shares), where=totals > 0)
        of_shares: NDArray[np.float64] = np.sqrt(np.maximum(of_mean, of_counting))
        error: NDArray[np.float64] = of_shares * self.loads.sum(axis=1, keepdims=True)
        return error

    @property
    def _shares(self) -> NDArray[np.float64]:
        totals = self.layer_tokens[:, None]
        return np.divide(self.fast.tokens, totals, out=np.zeros_like(self.fast.tokens), where=totals > 0)

    @property
    def _variance(self) -> NDArray[np.float64]:
        totals = self.layer_tokens[:, None]
        mean_squares = np.divide(self.squares, totals, out=np.zeros_like(self.squares), where=totals > 0)
        return np.maximum(mean_squares - self._shares**2, 0.0)


def counter_of(
    incarnation: str, since: float, tokens: Sequence[int], shape: tuple[int, int], now: float
) -> Counter | None:
    """The counters of a look, or None when the pool does not tell them for a model of `shape` (layers, experts)."""
    if len(tokens) != shape[0] * shape[1]:
        return None
    return Counter((incarnation, since), np.asarray(tokens, dtype=np.int64).reshape(shape), now)


def observe_loads(
    known: SmoothedLoads | None, revision: str, counter: Counter | None, half_life_s: float
) -> SmoothedLoads | None:
    """What is known after one more look.

    Args:
        known: What was known before.
        revision: Digest of the checkpoint that is served.
        counter: The look; None when it showed nothing, which changes nothing.
        half_life_s: Time in which the weight of what was seen halves.
    """
    if counter is None:
        return known
    if known is None or known.revision != revision or known.counter.tokens.shape != counter.tokens.shape:
        return _nothing_yet(revision, counter, half_life_s)
    if known.fast.half_life_s != half_life_s:
        known = _with_half_life(known, half_life_s)
    seconds = counter.at - known.counter.at
    if known.counter.origin != counter.origin or seconds < 0 or np.any(counter.tokens < known.counter.tokens):
        return replace(known, counter=counter)
    if seconds < max(SHORTEST_SAMPLE_S, half_life_s / SAMPLES_PER_HALF_LIFE):
        return known
    return _with_sample(known, counter, seconds)


def _nothing_yet(revision: str, counter: Counter, half_life_s: float) -> SmoothedLoads:
    zeros = np.zeros(counter.tokens.shape)
    fast, slow = Window(half_life_s, zeros), Window(SLOW * half_life_s, zeros)
    return SmoothedLoads(revision, counter, fast, slow, zeros, np.zeros(counter.tokens.shape[0]))


def _with_half_life(known: SmoothedLoads, half_life_s: float) -> SmoothedLoads:
    """The same sums, which from now on fade at another rate."""
    fast, slow = replace(known.fast, half_life_s=half_life_s), replace(known.slow, half_life_s=SLOW * half_life_s)
    return replace(known, fast=fast, slow=slow)


def _with_sample(known: SmoothedLoads, counter: Counter, seconds: float) -> SmoothedLoads:
    tokens = (counter.tokens - known.counter.tokens).astype(np.float64)
    totals = tokens.sum(axis=1, keepdims=True)
    keep = 2.0 ** (-seconds / known.fast.half_life_s)
    squares = np.divide(tokens**2, totals, out=np.zeros_like(tokens), where=totals > 0)
    return replace(
        known,
        counter=counter,
        fast=known.fast.after(tokens, seconds),
        slow=known.slow.after(tokens, seconds),
        squares=keep * known.squares + squares,
        square_weights=keep**2 * known.square_weights + totals[:, 0] ** 2,
        observed_s=known.observed_s + seconds,
    )
