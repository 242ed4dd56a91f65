"""A device profile from what a live pool measured, for `flexpert simulate --profile-from`.

The lines are those that decisions fit while serving (`autoscale.fit`), from the same observations.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flexpert_operator.autoscale import Observation
from flexpert_operator.autoscale.fit import ServiceFit
from flexpert_operator.simulate.device import Device

FEWEST_LOOKS = 8
"""Looks from which the price of prompt tokens is fitted."""
LEAST_PRICE, MOST_PRICE = 0.01, 2.0
ROUNDS = 5
"""In which a fit is the next one's expectation, so that the first expectation counts for little."""


class NothingMeasured(ValueError):
    """The pool made no step meanwhile; the message says what to do."""


def fitted(observations: Sequence[Observation], base: Device) -> Device:
    """`base` with the times of steps that a pool measured.

    Args:
        observations: Looks at a pool that serves, in order; loads that differ tell more.
        base: What cannot be seen: how long members take to come, the model, bounds of an engine's step.

    Raises:
        NothingMeasured: No step was made in any of them.
    """
    seen = [one for one in observations if math.isfinite(one.engine_step_s + one.expert_step_s)]
    if not seen:
        raise NothingMeasured("no engine made a step meanwhile: send requests while the profile is measured")
    device = replace(base, prefill_price=prefill_price(seen, base.prefill_price))
    for _ in range(ROUNDS):
        device = _refitted(seen, device)
    return device


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


def _sequences(observation: Observation) -> float:
    in_step = observation.step_sequences
    return in_step if math.isfinite(in_step) else observation.running
