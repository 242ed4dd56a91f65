"""Arrivals: when requests come, with prompts and answers of how many tokens. Drawn, or read from a CSV."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GRID = 200_001
"""Moments at which a rate is looked up where not every request is drawn."""

PLASTIC = (0.7548776662466927, 0.5698402909980532)
"""Powers of the plastic number's inverse: steps of the evenest sequence in two dimensions."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
"""Of the Azure LLM inference traces."""


class InvalidArrivals(ValueError):
    """A file does not hold arrivals; the message says what is wrong with it."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and answers: log-normal, with these means, and σ of the logarithm."""

    prompt: float = 512.0
    answer: float = 128.0
    sigma: float = 0.6


@dataclass(frozen=True, eq=False)
class Arrivals:
    """Requests in the order in which they come.

    Attributes:
        at: [requests] seconds since the beginning, ascending.
        prompt: [requests] tokens.
        answer: [requests] tokens to generate, 1 at least.
        duration_s: Until when arrivals were looked for.
    """

    at: Floats
    prompt: Ints
    answer: Ints
    duration_s: float

    def __len__(self) -> int:
        return len(self.at)

    def scaled(self, factor: float) -> "Arrivals":
        """The same course with `factor` times the requests, each as often as that says on average."""
        copies = np.floor(factor * np.arange(1, len(self.at) + 1)) - np.floor(factor * np.arange(len(self.at)))
        rows = np.repeat(np.arange(len(self.at)), copies.astype(np.int64))
        gaps = np.diff(self.at, append=self.at[-1] if len(self.at) else 0.0)
        shift = np.random.default_rng(0).random(len(rows)) * gaps[rows] if len(rows) else np.zeros(0)
        order = np.argsort(self.at[rows] + shift, kind="stable")
        return Arrivals(
            (self.at[rows] + shift)[order], self.prompt[rows][order], self.answer[rows][order], self.duration_s
        )


def poisson(rate: float, duration_s: float, lengths: Lengths, seed: int = 0, weight: float = 1.0) -> Arrivals:
    """Requests at random, `rate` a second, each drawn one standing for `weight` of them."""
    return varying(lambda at: np.full_like(at, rate), rate, duration_s, lengths, seed, weight)


def bursty(
    rate: float,
    duration_s: float,
    lengths: Lengths,
    seed: int = 0,
    weight: float = 1.0,
    on_s: float = 60.0,
    off_s: float = 120.0,
) -> Arrivals:
    """Bursts: `rate` on average; four fifths of the requests come in the stretches of about `on_s`."""
    rng = np.random.default_rng(seed + 1)
    edges, at = [0.0], 0.0
    while at < duration_s:
        at += rng.uniform(0.7, 1.3) * (off_s if len(edges) % 2 else on_s)
        edges.append(at)
    part = on_s / (on_s + off_s)
    high, low = 0.8 * rate / part, 0.2 * rate / (1 - part)

    def of(at: Floats) -> Floats:
        return np.where(np.searchsorted(edges, at, side="right") % 2 == 0, high, low)

    return varying(of, max(high, low), duration_s, lengths, seed, weight)


def diurnal(
    rate: float, duration_s: float, lengths: Lengths, seed: int = 0, weight: float = 1.0, season_s: float = 86400.0
) -> Arrivals:
    """A day: `rate` on average, nearly twice that at noon and a tenth of it at midnight."""

    def of(at: Floats) -> Floats:
        return np.asarray(rate * (1.0 - 0.9 * np.cos(2 * np.pi * at / season_s)))

    return varying(of, 1.9 * rate, duration_s, lengths, seed, weight)


def varying(
    of: Callable[[Floats], Floats], most: float, duration_s: float, lengths: Lengths, seed: int, weight: float = 1.0
) -> Arrivals:
    """A Poisson process of rate `of(at)`, `most` at most, of which one request in `weight` is drawn.

    The drawn ones are as far apart as so many requests are, and any stretch of them has short and long ones in their
    proportions, so that counts and sums are nearly as smooth as those of all requests.
    """
    rng = np.random.default_rng(seed)
    if weight <= 1:
        at = _thinned(of, most, duration_s, rng)
        drawn = [rng.standard_normal(len(at)) for _ in range(2)]
    else:
        at = _sampled(of, duration_s, weight, rng)
        drawn = [_evenly(len(at), step) for step in PLASTIC]
    prompt, answer = (
        _tokens(mean, lengths.sigma, one) for mean, one in zip((lengths.prompt, lengths.answer), drawn, strict=True)
    )
    return Arrivals(at, prompt, answer, duration_s)


def _thinned(of: Callable[[Floats], Floats], most: float, duration_s: float, rng: np.random.Generator) -> Floats:
    number = rng.poisson(most * duration_s)
    at = np.sort(rng.random(number) * duration_s)
    return np.asarray(at[rng.random(number) * most < of(at)])


def _sampled(of: Callable[[Floats], Floats], duration_s: float, weight: float, rng: np.random.Generator) -> Floats:
    """Every `weight`-th request: gaps of a gamma distribution in a time in which requests come at rate 1."""
    at = np.linspace(0.0, duration_s, GRID)
    come = np.concatenate([[0.0], np.cumsum((of(at)[1:] + of(at)[:-1]) / 2 * np.diff(at))])
    number = int(come[-1] / weight + 8 * np.sqrt(come[-1] / weight) + 8)
    drawn = np.cumsum(rng.gamma(weight, 1.0, number))
    return np.asarray(np.interp(drawn[drawn < come[-1]], come, at))


def _evenly(number: int, step: float) -> Floats:
    """Normal numbers of which every stretch has all sizes in their proportions: a Kronecker sequence."""
    from scipy.special import ndtri  # takes long to import, and few need it

    return np.asarray(ndtri((0.5 + step * np.arange(number)) % 1.0))


def _tokens(mean: float, sigma: float, drawn: Floats) -> Ints:
    """Log-normal numbers of tokens of standard normal ones."""
    drawn = np.exp(np.log(mean) - sigma**2 / 2 + sigma * drawn)
    return np.asarray(np.maximum(np.rint(drawn), 1), dtype=np.int64)


def read_csv(path: Path | str) -> Arrivals:
    """Arrivals from a CSV with the Azure LLM inference traces' columns.

    Raises:
        InvalidArrivals: It cannot be read, or lacks a column.
    """
    try:
        with Path(path).open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidArrivals(f"cannot read {path}: {error}") from error
    missing = [name for name in COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise InvalidArrivals(
            f"{path} lacks {', '.join(missing)}, or rows: its first line has to be {','.join(COLUMNS)}"
        )
    try:
        at = np.array([_second(row["TIMESTAMP"]) for row in rows])
        prompt = np.array([int(row["ContextTokens"]) for row in rows], dtype=np.int64)
        answer = np.array([int(row["GeneratedTokens"]) for row in rows], dtype=np.int64)
    except (TypeError, ValueError) as error:
        raise InvalidArrivals(f"{path}: {error}") from error
    order = np.argsort(at, kind="stable")
    at = at[order] - at.min()
    return Arrivals(at, np.maximum(prompt[order], 1), np.maximum(answer[order], 1), float(at[-1]) + 1e-6)


def write_csv(path: Path | str, arrivals: Arrivals) -> None:
    """Write arrivals as `read_csv` reads them, with seconds as timestamps."""
    with Path(path).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(zip(arrivals.at.tolist(), arrivals.prompt.tolist(), arrivals.answer.tolist(), strict=True))


def _second(text: str) -> float:
    """A timestamp, or a number of seconds."""
    try:
        return float(text)
    except ValueError:
        date, dot, fraction = text.strip().replace(" ", "T").partition(".")
        return datetime.fromisoformat(date).timestamp() + (float(f"0.{fraction}") if dot else 0.0)
