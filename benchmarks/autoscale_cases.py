"""The cases of `bench_autoscale`: arrivals, and every way of scaling with the settings that are tried."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from flexpert_operator.autoscale import Policy, Sizes
from flexpert_operator.autoscale.policy import Bounds, Objectives
from flexpert_operator.autoscale.queueing import Demand, need
from flexpert_operator.simulate import Arrivals, Device, Scaler
from flexpert_operator.simulate.arrivals import Lengths, bursty, diurnal, poisson
from flexpert_operator.simulate.scalers import ColdRestart, Fixed, Hpa, Oracle, Ours

Setting = dict[str, float]

DEVICE = Device()
EXPECTED = 1.3
"""What our policy is told beforehand of the device's times, over the true ones."""
RATE, SECONDS = 20.0, 2700.0
STEP_S, WARM_UP_S = 0.2, 300.0
LENGTHS = Lengths()
PATTERNS = ("poisson", "bursty", "diurnal", "replay")
POLICY = Policy(
    "simulated",
    engines=Bounds(1, 40),
    experts=Bounds(1, 100),
    objectives=Objectives(ttft_s=0.5, tpot_s=0.05, percentile=0.99),
)
SURGE_DEVICES = 60

SETTINGS: dict[str, list[Setting]] = {
    "flexpert": [{}],
    "none": [{"factor": factor} for factor in (0.7, 0.8, 0.9, 1.0)],
    "replicas": [{"target": target, "down_s": 300.0} for target in (0.4, 0.55, 0.7)],
    "restart": [{"between_s": seconds} for seconds in (240.0, 900.0)],
    "hpa": [
        {"target": target, "sequences": sequences, "down_s": seconds}
        for target, sequences, seconds in product((0.62, 0.7, 0.78, 0.86), (64.0, 96.0), (60.0, 300.0))
    ],
    "hpa_tokens": [
        {"target": target, "engine_target": engines, "down_s": seconds}
        for target, engines, seconds in product((0.25, 0.3, 0.35, 0.4), (0.25, 0.35), (60.0, 300.0))
    ],
    "oracle": [
        {"headroom": headroom, "ahead_s": seconds}
        for headroom, seconds in product((0.95, 1.0, 1.05, 1.1, 1.15), (15.0, 30.0))
    ],
}


@dataclass(frozen=True, eq=False)
class Case:
    """Arrivals to be served.

    Attributes:
        start: Sizes at the beginning, enough for the first minute.
        mean: Sizes for the average.
        peak: What the busiest minute needs.
    """

    pattern: str
    arrivals: Arrivals
    policy: Policy
    start: Sizes
    mean: Sizes
    peak: Demand


def case(pattern: str, seed: int, arrivals: Arrivals | None) -> Case:
    """A pattern's case; `arrivals` are those of "replay", moved about a little by the seed."""
    if pattern == "replay" and arrivals is not None:
        return _case(pattern, _shaken(arrivals, seed), POLICY)
    kinds: dict[str, Callable[[], Arrivals]] = {
        "poisson": lambda: poisson(RATE, SECONDS, LENGTHS, seed),
        "bursty": lambda: bursty(RATE, SECONDS, LENGTHS, seed),
        "diurnal": lambda: diurnal(RATE, 2 * SECONDS, LENGTHS, seed, season_s=2 * SECONDS),
    }
    return _case(pattern, kinds[pattern](), POLICY)


def surge(seed: int, factor: float) -> Case:
    """Bursts of five minutes, on `factor` times the load, with a budget of devices."""
    arrivals = bursty(RATE * factor, SECONDS, LENGTHS, seed, on_s=300.0, off_s=600.0)
    return _case("surge", arrivals, replace(POLICY, devices=SURGE_DEVICES))


def renewal(seed: int) -> Arrivals:
    """Requests in clumps (gaps with a coefficient of variation of 2) at a rate that wanders, as in real traces."""
    rng = np.random.default_rng(seed)
    number = int(RATE * SECONDS * 1.5)
    gaps = rng.gamma(0.25, 4.0, number) / RATE
    wandering = np.exp(np.interp(np.arange(number), np.linspace(0, number, 40), np.cumsum(rng.normal(0, 0.15, 40))))
    at = np.cumsum(gaps / np.clip(wandering, 0.4, 2.0))
    at = at[at < SECONDS]
    lengths = [
        np.maximum(np.rint(rng.lognormal(np.log(mean) - 0.5, 1.0, len(at))), 1).astype(np.int64)
        for mean in (LENGTHS.prompt, LENGTHS.answer)
    ]
    return Arrivals(at, np.minimum(lengths[0], 8192), np.minimum(lengths[1], 2048), SECONDS)


def _shaken(arrivals: Arrivals, seed: int) -> Arrivals:
    """The same requests, each up to two seconds away from when it came."""
    if seed == 0:
        return arrivals
    at = arrivals.at + np.random.default_rng(seed).uniform(-2.0, 2.0, len(arrivals))
    order = np.argsort(np.clip(at, 0.0, arrivals.duration_s), kind="stable")
    at = np.clip(at, 0.0, arrivals.duration_s)[order]
    return Arrivals(at, arrivals.prompt[order], arrivals.answer[order], arrivals.duration_s)


def _case(pattern: str, arrivals: Arrivals, policy: Policy) -> Case:
    seconds = arrivals.duration_s
    minutes = [_demand(arrivals, start, 60.0) for start in np.arange(0.0, seconds, 30.0)]
    peak = max(minutes, key=lambda one: one.generated + DEVICE.prefill_price * one.prompt)
    return Case(
        pattern, arrivals, policy, _sizes(minutes[0], policy), _sizes(_demand(arrivals, 0.0, seconds), policy), peak
    )


def sizes_at(arrivals: Arrivals, policy: Policy, weight: float) -> Sizes:
    """Sizes for the first minute of arrivals that each stand for several."""
    one = _demand(arrivals, 0.0, 60.0)
    return _sizes(Demand(weight * one.prompt, weight * one.generated, weight * one.requests), policy)


def _demand(arrivals: Arrivals, start: float, seconds: float) -> Demand:
    first, last = (int(row) for row in np.searchsorted(arrivals.at, [start, start + seconds]))
    prompt, answer = arrivals.prompt[first:last].sum(), arrivals.answer[first:last].sum()
    return Demand(float(prompt) / seconds, float(answer) / seconds, (last - first) / seconds)


def _sizes(demand: Demand, policy: Policy) -> Sizes:
    found = need(DEVICE.service(), demand, policy, 1.05, (policy.engines.maximum, policy.experts.maximum))
    return Sizes(found.engines, found.experts)


def _fixed(case: Case, setting: Setting) -> Scaler:
    factor, peak = setting["factor"], case.peak
    scaled = replace(peak, prompt=peak.prompt * factor, generated=peak.generated * factor)
    return Fixed(_sizes(scaled, case.policy))


def _ours(case: Case, setting: Setting) -> Ours:
    return Ours(case.start, case.policy, DEVICE.profile(EXPECTED))


def _replicas(case: Case, setting: Setting) -> Scaler:
    unit = Sizes(1, max(round(case.mean.experts / max(case.mean.engines, 1)), 1))
    number = max(-(-case.start.engines // unit.engines), -(-case.start.experts // unit.experts))
    start = Sizes(number * unit.engines, number * unit.experts)
    return Hpa(start, case.policy, setting["target"], unit, setting["down_s"], "replicas", DEVICE.restart_s)


def _restart(case: Case, setting: Setting) -> Scaler:
    return ColdRestart(_ours(case, setting), DEVICE.restart_s, setting["between_s"])


def _hpa(case: Case, setting: Setting) -> Scaler:
    target, sequences = setting["target"], setting["sequences"]
    return Hpa(case.start, case.policy, target, down_s=setting["down_s"], sequences=sequences)


def _hpa_tokens(case: Case, setting: Setting) -> Scaler:
    target, engine_target = setting["target"], setting["engine_target"]
    down_s, name = setting["down_s"], "hpa_tokens"
    return Hpa(case.start, case.policy, target, down_s=down_s, name=name, engine_target=engine_target)


def _oracle(case: Case, setting: Setting) -> Scaler:
    return Oracle(case.start, case.policy, case.arrivals, DEVICE, setting["ahead_s"], headroom=setting["headroom"])


SCALERS: dict[str, Callable[[Case, Setting], Scaler]] = {
    "flexpert": _ours,
    "none": _fixed,
    "replicas": _replicas,
    "restart": _restart,
    "hpa": _hpa,
    "hpa_tokens": _hpa_tokens,
    "oracle": _oracle,
}


def said(setting: dict[str, Any]) -> str:
    """A setting for people."""
    return ", ".join(f"{name} {value:g}" for name, value in setting.items()) or "as it is"
