"""A device profile from what a live pool measured, for `flexpert simulate --profile-from`.

The lines are those that decisions fit while serving (`autoscale.fit`), from the same observations; how unlike each
other answers are comes of the histograms of their times.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from flexpert_operator.autoscale import Observation
from flexpert_operator.autoscale.fit import ServiceFit
from flexpert_operator.autoscale.observation import finite
from flexpert_operator.simulate.device import Device
from flexpert_proto.measuring import Histogram

FEWEST_LOOKS = 8
"""Looks from which the price of prompt tokens is fitted."""
FEWEST_ANSWERS = 30
"""Answers from which their spread is told."""
MOMENTS = 16
"""Of each look, for which it is computed what an answer that ends then should have taken."""
LONG_AGO_S = 1e4
"""Before the first look, whose load is taken for that of the time before it."""
LEAST_PRICE, MOST_PRICE = 0.01, 2.0
ROUNDS = 5
"""In which a fit is the next one's expectation, so that the first expectation counts for little."""


class NothingMeasured(ValueError):
    """The pool made no step meanwhile; the message says what to do."""


def fitted(observations: Sequence[Observation], base: Device, answers: Sequence[Histogram] = ()) -> Device:
    """`base` with the times of steps that a pool measured.

    Args:
        observations: Looks at a pool that serves, in order; loads that differ tell more.
        base: What cannot be seen: how long members take to come, the model, bounds of an engine's step.
        answers: For each observation, the time per token of the answers that ended since the one before.

    Raises:
        NothingMeasured: No step was made in any of them.
    """
    seen = [one for one in observations if math.isfinite(one.engine_step_s + one.expert_step_s)]
    if not seen:
        raise NothingMeasured("no engine made a step meanwhile: send requests while the profile is measured")
    device = replace(base, prefill_price=prefill_price(seen, base.prefill_price))
    for _ in range(ROUNDS):
        device = _refitted(seen, device)
    return replace(device, spread=spread(observations, answers, device))


def _refitted(observations: Sequence[Observation], before: Device) -> Device:
    """With what was found before as what is expected."""
    fit = ServiceFit.of(before.profile())
    for observation in observations:
        fit = fit.updated(observation)
    (engine_step_s, engine_token_s), (expert_step_s, worker_token_s) = (
        line.coefficients() for line in (fit.engine, fit.expert)
    )
    return replace(
        before,
        engine_step_s=engine_step_s,
        engine_token_s=engine_token_s,
        expert_step_s=expert_step_s,
        worker_token_s=worker_token_s,
    )


def prefill_price(observations: Sequence[Observation], otherwise: float) -> float:
    """What a prompt token adds to a step over what a generated one adds; `otherwise` where that cannot be told."""
    engines = np.array([max(one.engines.ready, 1) for one in observations], dtype=np.float64)
    sequences = np.array([_sequences(one) for one in observations]) / engines
    prompt = np.array([one.prefill_tokens for one in observations]) / engines
    seconds = np.array([one.engine_step_s + one.expert_step_s for one in observations])
    columns = np.stack([np.ones(len(seconds)), sequences, prompt], axis=1)
    if len(seconds) < FEWEST_LOOKS or np.linalg.matrix_rank(columns) < columns.shape[1]:
        return otherwise
    _, generated, read = np.linalg.lstsq(columns, seconds, rcond=None)[0]
    if generated <= 0 or read <= 0:
        return otherwise
    return float(np.clip(read / generated, LEAST_PRICE, MOST_PRICE))


def spread(observations: Sequence[Observation], answers: Sequence[Histogram], device: Device) -> float:
    """Standard deviation of the logarithm of a time per token over what the load makes expected meanwhile.

    Each bucket counts at its middle; what its width adds to a variance is taken off (Sheppard's correction), and so is
    what a load that changed from look to look adds. Buckets without an end are left out. `device.spread` where fewer
    than `FEWEST_ANSWERS` ended.
    """
    rows = [
        (math.log(low * high) / 2 - mean, math.log(high / low) ** 2 / 12 + variance, count)
        for (mean, variance), times in zip(_expected(observations, device), answers, strict=False)
        for low, high, count in zip(times.bounds, times.bounds[1:], times.counts[1:], strict=False)
        if count > 0
    ]
    off, of_itself, weights = np.array(rows).T if rows else np.zeros((3, 0))
    if weights.sum() < FEWEST_ANSWERS:
        return device.spread
    mean = np.average(off, weights=weights)
    return math.sqrt(max(np.average((off - mean) ** 2 - of_itself, weights=weights), 0.0))


def _expected(observations: Sequence[Observation], device: Device) -> list[tuple[float, float]]:
    """Mean and variance of the logarithm of the time per token of answers that end in each look.

    They lived for as many steps as a mean answer has tokens, under the loads of this look and of those before.
    """
    first, last = observations[0].counters, observations[-1].counters
    finished = last.finished - first.finished
    tokens = max((last.finished_tokens - first.finished_tokens) / finished - 1, 1.0) if finished > 0 else 1.0
    step_s = [_step_s(one, device) for one in observations]
    at = [one.at for one in observations]
    edges = np.array([at[0] - LONG_AGO_S, *at])
    steps = np.concatenate([[0.0], np.cumsum(np.diff(edges) / step_s)])
    begins = [at[0] - (at[1] - at[0] if len(at) > 1 else 1.0), *at]
    found = []
    for begin, end in pairwise(begins):
        ends = np.linspace(begin, end, MOMENTS)
        lives = ends - np.interp(np.interp(ends, edges, steps) - tokens, steps, edges)
        logarithms = np.log(lives / tokens)
        found.append((float(logarithms.mean()), float(logarithms.var())))
    return found


def _step_s(observation: Observation, device: Device) -> float:
    """Of a step under the load of a look."""
    tokens = _sequences(observation) + device.prefill_price * observation.prefill_tokens
    engines, workers = max(observation.engines.ready, 1), max(observation.experts.ready, 1)
    return device.service().step_with(max(tokens, 1.0), engines, workers, max(observation.imbalance, 1.0))


def _sequences(observation: Observation) -> float:
    return finite(observation.step_sequences, observation.running)
