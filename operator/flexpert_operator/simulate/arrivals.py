"""Arrivals: when requests come, with prompts and answers of how many tokens. Drawn, or read from a CSV."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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


def poisson(rate: float, duration_s: float, lengths: Lengths, seed: int = 0) -> Arrivals:
    """Requests at random, `rate` a second."""
    return varying(lambda at: np.full_like(at, rate), rate, duration_s, lengths, seed)


def bursty(
    rate: float, duration_s: float, lengths: Lengths, seed: int = 0, on_s: float = 60.0, off_s: float = 120.0
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

    return varying(of, max(high, low), duration_s, lengths, seed)


def diurnal(rate: float, duration_s: float, lengths: Lengths, seed: int = 0, season_s: float = 86400.0) -> Arrivals:
    """A day: `rate` on average, nearly twice that at noon and a tenth of it at midnight."""

    def of(at: Floats) -> Floats:
        return np.asarray(rate * (1.0 - 0.9 * np.cos(2 * np.pi * at / season_s)))

    return varying(of, 1.9 * rate, duration_s, lengths, seed)


def varying(of: Callable[[Floats], Floats], most: float, duration_s: float, lengths: Lengths, seed: int) -> Arrivals:
    """A Poisson process of rate `of(at)`, `most` at most, by thinning."""
    rng = np.random.default_rng(seed)
    number = rng.poisson(most * duration_s)
    at = np.sort(rng.random(number) * duration_s)
    at = at[rng.random(number) * most < of(at)]
    return Arrivals(
        at, _tokens(rng, len(at), lengths.prompt, lengths), _tokens(rng, len(at), lengths.answer, lengths), duration_s
    )


def _tokens(rng: np.random.Generator, number: int, mean: float, lengths: Lengths) -> Ints:
    drawn = rng.lognormal(np.log(mean) - lengths.sigma**2 / 2, lengths.sigma, number)
    return np.maximum(np.rint(drawn), 1).astype(np.int64)


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
