"""How long steps and first tokens take with so many engines and workers, and how many of each an objective needs.

A step takes T = α + u · n with u = β / E + γ · i / W and n tokens under way. With g tokens to generate and p prompt
tokens to read a second, n = (g + φ p) · T, so that T = α / (1 - u · (g + φ p)): the two pools share one budget of
slowness u. Requests come at random; they leave at the rate n / (answer · T(n)), whose slope at the mean is
α / (answer · T²). Arrivals have the index of dispersion d and departures have 1, and what both disturb comes back with
that slope, so that the variance of their number is (d + 1) / 2 · n · T / α, and z standard deviations more of them are
under way at the percentile. A first token waits until the prompts before it are read, which is a queue of its own
(M/G/1, an exponential tail).
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from flexpert_operator.autoscale.fit import Service
from flexpert_operator.autoscale.policy import Objectives, Policy

Floats = NDArray[np.float64]

MOST_CANDIDATES = 96
"""Numbers of engines that are looked at at once; with more, every so many, then those around the best."""


TRIED = 16
"""Numbers of workers that are tried at once."""


@dataclass(frozen=True)
class Demand:
    """What has to be served a second.

    Attributes:
        prompt: Prompt tokens a second.
        generated: Tokens to generate a second.
        requests: Requests a second.
        dispersion: Variance over mean of the arrivals in a stretch; 1 when they are random.
    """

    prompt: float
    generated: float
    requests: float
    dispersion: float = 1.0

    @property
    def is_none(self) -> bool:
        """Nothing comes."""
        return self.prompt + self.generated + self.requests <= 0

    def __add__(self, other: "Demand") -> "Demand":
        """Both together, as random as the first."""
        return Demand(
            self.prompt + other.prompt,
            self.generated + other.generated,
            self.requests + other.requests,
            self.dispersion,
        )


@dataclass(frozen=True)
class Expected:
    """What requests get at the percentile; infinite where the pools cannot keep up."""

    ttft_s: Floats
    tpot_s: Floats
    wait_s: Floats
    sequences: Floats
    worker_utilisation: Floats


def expected(
    service: Service, demand: Demand, percentile: float, imbalance: float, engines: Floats, experts: Floats
) -> Expected:
    """What requests get with each pair of `engines` and `experts`, which broadcast against each other."""
    z = NormalDist().inv_cdf(percentile)
    price = service.prefill_price
    engine_part = service.engine_token_s / engines
    expert_part = service.worker_token_s * imbalance / experts
    slowness = engine_part + expert_part
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        mean_step = service.step_s / (1.0 - slowness * (demand.generated + price * demand.prompt))
        mean_step = np.where(mean_step > 0, mean_step, np.inf)
        mean = demand.generated * mean_step
        many = mean + z * np.sqrt((max(demand.dispersion, 1.0) + 1.0) / 2.0 * mean * mean_step / service.step_s)
        reading = price * demand.prompt * mean_step
        step = service.step_s + slowness * (many + reading)
        chunk = engines * service.prefill_tokens
        prompt = demand.prompt / max(demand.requests, 1e-9)
        one_read = service.step_s + slowness * (many + price * min(prompt, service.prefill_tokens))
        read_s = np.ceil(max(prompt, 1.0) / service.prefill_tokens) * one_read
        full_step = service.step_s + slowness * (many + price * chunk)
        wait = _waiting(demand, chunk / full_step, prompt, percentile)
        busy = expert_part * (mean + reading) / np.where(np.isfinite(mean_step), mean_step, np.nan)
    bad = ~np.isfinite(step)
    return Expected(
        ttft_s=np.where(bad, np.inf, wait + read_s),
        tpot_s=np.where(bad, np.inf, step),
        wait_s=np.where(bad, np.inf, wait),
        sequences=np.where(bad, np.inf, many),
        worker_utilisation=np.where(bad | np.isnan(busy), np.inf, busy),
    )


def _waiting(demand: Demand, tokens_per_s: Floats, prompt: float, percentile: float) -> Floats:
    """Wait for the prompts before one's own at the percentile."""
    used = demand.prompt / tokens_per_s
    one = prompt / tokens_per_s
    mean = max(demand.dispersion, 1.0) * one / np.maximum(1.0 - used, 1e-12)
    tail = np.log(np.maximum(used / (1.0 - percentile), 1.0))
    return np.asarray(np.where(used < 1.0, mean * tail, np.inf))


@dataclass(frozen=True)
class Need:
    """The cheapest pair of pools that is enough.

    Attributes:
        is_enough: Whether the objectives hold with it; otherwise it is the most there may be.
        bottleneck: "engines" or "experts": the pool of which one more would help most.
    """

    engines: int
    experts: int
    is_enough: bool
    bottleneck: str


def need(
    service: Service, demand: Demand, policy: Policy, imbalance: float, most: tuple[int, int], near: int = 0
) -> Need:
    """The fewest devices with which the objectives hold.

    Args:
        service: What a step takes.
        demand: What has to be served.
        policy: Its objectives and budget.
        imbalance: The busiest worker's load over the average.
        most: Engines and workers there may be.
        near: Engines there are: as many it stays where that takes no more devices.
    """
    if demand.is_none:  # no objective is missed, however long a step takes
        return Need(1, 1, True, "experts")
    most_engines = max(most[0], 1)
    first, last = 1, most_engines
    while True:
        candidates = np.unique(np.linspace(first, last, min(last - first + 1, MOST_CANDIDATES)).astype(np.int64))
        if first <= near <= last:
            candidates = np.unique(np.append(candidates, near))
        found = _best_of(service, demand, policy, imbalance, candidates, most[1], near)
        step = -(-(last - first) // MOST_CANDIDATES)
        if found is None or step <= 1 or not found.is_enough:
            return found or Need(1, 1, False, "engines")
        first, last = max(found.engines - step, 1), min(found.engines + step, most_engines)


def _best_of(
    service: Service,
    demand: Demand,
    policy: Policy,
    imbalance: float,
    candidates: NDArray[np.int64],
    most_experts: int,
    near: int,
) -> Need | None:
    """The best of these numbers of engines with workers beside them; None where the budget has room for none."""
    rooms = np.array([_room(policy, int(engines), most_experts) for engines in candidates])
    candidates, rooms = candidates[rooms > 0], rooms[rooms > 0]
    if not len(candidates):
        return None
    experts = _fewest_experts(service, demand, policy, imbalance, candidates.astype(np.float64), rooms)
    fits = experts <= rooms
    if not fits.any():
        return _most(service, demand, policy, imbalance, candidates, rooms)
    costs = candidates * policy.engine_devices + experts * policy.worker_devices + 1e-6 * np.abs(candidates - near)
    best = int(np.argmin(np.where(fits, costs, np.inf)))
    found = int(candidates[best]), int(experts[best])
    return Need(*found, True, _bottleneck(service, imbalance, *found))


def _room(policy: Policy, engines: int, most_experts: int) -> int:
    """Workers that there may be beside so many engines."""
    if policy.devices is None or policy.worker_devices == 0:
        return most_experts
    return max(min(most_experts, (policy.devices - engines * policy.engine_devices) // policy.worker_devices), 0)


def _fewest_experts(
    service: Service, demand: Demand, policy: Policy, imbalance: float, engines: Floats, rooms: NDArray[np.int64]
) -> NDArray[np.int64]:
    """[candidates] fewest workers with which the objectives hold; one more than the room where none do."""
    low, high = np.ones(len(engines), dtype=np.int64), rooms + 1
    while (low < high).any():
        tried = low[:, None] + (high - low)[:, None] * np.arange(TRIED) // TRIED
        good = holds(service, demand, policy.objectives, imbalance, engines[:, None], tried.astype(np.float64))
        first = np.where(good.any(axis=1), good.argmax(axis=1), TRIED)
        rows = np.arange(len(engines))
        below = np.where(first > 0, tried[rows, np.maximum(first - 1, 0)] + 1, low)
        low, high = np.minimum(below, high), np.where(first < TRIED, tried[rows, np.minimum(first, TRIED - 1)], high)
    return high


def holds(
    service: Service, demand: Demand, objectives: Objectives, imbalance: float, engines: Floats, experts: Floats
) -> NDArray[np.bool_]:
    """Whether the objectives hold with each pair."""
    get = expected(service, demand, objectives.percentile, imbalance, engines, experts)
    good = get.sequences <= engines * service.sequences * (objectives.kv_utilisation or 1.0)
    for limit, value in (
        (objectives.ttft_s, get.ttft_s),
        (objectives.tpot_s, get.tpot_s),
        (objectives.queue_wait_s, get.wait_s),
        (objectives.worker_utilisation, get.worker_utilisation),
    ):
        if limit is not None:
            good &= value <= limit
    return np.asarray(good)


def _most(
    service: Service,
    demand: Demand,
    policy: Policy,
    imbalance: float,
    candidates: NDArray[np.int64],
    rooms: NDArray[np.int64],
) -> Need:
    """All that may be had, divided so that steps are as short as can be."""
    slowness = service.engine_token_s / candidates + service.worker_token_s * imbalance / rooms
    sequences = demand.generated * (policy.objectives.tpot_s or service.step_s)
    short = candidates * service.sequences < sequences
    best = int(np.argmin(slowness + 1e3 * short))
    found = int(candidates[best]), int(rooms[best])
    return Need(*found, False, _bottleneck(service, imbalance, *found))


def _bottleneck(service: Service, imbalance: float, engines: int, experts: int) -> str:
    """The pool that takes more of what a token adds to a step."""
    by_engines, by_experts = service.engine_token_s / engines, service.worker_token_s * imbalance / experts
    return "engines" if by_engines > by_experts else "experts"
