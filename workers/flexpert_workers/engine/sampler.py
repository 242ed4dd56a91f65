"""Draws each request's next token from its logits, in one go for all requests of a pass.

The noise of a draw is a function of (seed, absolute position) alone: whoever shares the batch, and whether the request
was preempted or resumed on another engine, it draws the same number. The token is the first, in the order of token ids,
whose cumulated probability exceeds it (inversion), after temperature, then top-k, then top-p, as transformers orders
them. Tokens that tie with the last one kept are kept. Log-probabilities are those of the model's own distribution: of
the raw logits, before temperature and cuts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from flexpert_workers.engine.request import Request

_CANDIDATES = 1024
"""Tokens that are sorted first to find where top-p cuts; all are when their mass does not reach it."""


class Draw(NamedTuple):
    """A request's next token.

    Attributes:
        logprob: Set when the request asked for log-probabilities; `top` are the (id, logprob) most likely then.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def sample(logits: torch.Tensor, requests: Sequence[Request]) -> list[Draw | None]:
    """The next token of each request, from [requests, vocabulary] logits as the model gave them.

    None where they are no distribution: not a number, or infinite at their best.
    """
    best = logits.max(dim=-1)
    usable = torch.isfinite(best.values).tolist()
    tokens = best.indices
    drawn = [row for row, request in enumerate(requests) if request.sampling.temperature > 0 and usable[row]]
    if drawn:
        rows = torch.tensor(drawn)
        tokens[rows] = _draw(logits[rows].float(), [requests[row] for row in drawn])
    draws = _with_logprobs(logits, tokens.tolist(), requests)
    return [draw if is_usable else None for draw, is_usable in zip(draws, usable, strict=True)]


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> npt.NDArray[np.float64]:
    """[n] numbers in [0, 1), each a function of its seed and position: 53 bits of two rounds of SplitMix64."""
    with np.errstate(over="ignore"):
        state = _mix(np.array(seeds, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        state = _mix(state + np.array(positions, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _draw(logits: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    """[n] tokens drawn by inversion from [n, vocabulary] logits."""
    temperatures = torch.tensor([request.sampling.temperature for request in requests])[:, None]
    # Subtracting first keeps a tiny temperature from overflowing: the best logit is 0 whatever it is divided by.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperatures
    scaled = _cut_top_k(scaled, [request.sampling.top_k for request in requests])
    probabilities = torch.softmax(scaled, dim=-1)
    probabilities = _cut_top_p(probabilities, [request.sampling.top_p for request in requests])
    cumulated = probabilities.double().cumsum(dim=-1)
    noise = uniforms([request.sampling.seed for request in requests], [request.num_tokens for request in requests])
    targets = torch.from_numpy(noise)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, targets, right=True)[:, 0]


def _cut_top_k(scaled: torch.Tensor, top_k: Sequence[int]) -> torch.Tensor:
    """-inf for what is below the k-th best of its row; 0 keeps all."""
    vocabulary = scaled.shape[-1]
    kept = [k if 0 < k < vocabulary else 0 for k in top_k]
    if not any(kept):
        return scaled
    best = scaled.topk(max(kept), dim=-1).values
    thresholds = [best[row, k - 1] if k else best.new_tensor(float("-inf")) for row, k in enumerate(kept)]
    return scaled.masked_fill(scaled < torch.stack(thresholds)[:, None], float("-inf"))


def _cut_top_p(probabilities: torch.Tensor, top_p: Sequence[float]) -> torch.Tensor:
    """0 for what is less likely than the last of the likeliest tokens that make up `top_p`; 1 keeps all."""
    wanted = torch.tensor(top_p, dtype=torch.float64)[:, None]
    if bool((wanted >= 1).all()):
        return probabilities
    count = min(_CANDIDATES, probabilities.shape[-1])
    best = probabilities.topk(count, dim=-1).values
    if count < probabilities.shape[-1] and bool(((best.double().sum(-1, keepdim=True) < wanted) & (wanted < 1)).any()):
        best = probabilities.sort(dim=-1, descending=True).values
    # A token is kept while the mass before it is less than wanted, so the likeliest always is.
    before = best.double().cumsum(dim=-1) - best.double()
    num_kept = (before < wanted).sum(dim=-1, keepdim=True).clamp(min=1)
    thresholds = best.gather(1, num_kept - 1).masked_fill(wanted >= 1, 0.0)
    return probabilities.masked_fill(probabilities < thresholds, 0.0)


def _with_logprobs(logits: torch.Tensor, tokens: list[int], requests: Sequence[Request]) -> list[Draw]:
    draws = [Draw(token) for token in tokens]
    asked = [row for row, request in enumerate(requests) if request.sampling.logprobs is not None]
    if not asked:
        return draws
    logprobs = torch.log_softmax(logits[torch.tensor(asked)].float(), dim=-1)
    for values, row in zip(logprobs, asked, strict=True):
        count = min(requests[row].sampling.logprobs or 0, values.shape[0])
        best = values.topk(count)
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        draws[row] = Draw(tokens[row], float(values[tokens[row]]), top)
    return draws
