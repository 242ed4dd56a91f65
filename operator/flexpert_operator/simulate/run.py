"""Runs a scaler over arrivals, and says what requests got and what it cost."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flexpert_operator.autoscale import Observation, Policy, Sizes
from flexpert_operator.autoscale.policy import Objectives
from flexpert_operator.simulate.arrivals import Arrivals
from flexpert_operator.simulate.device import Device
from flexpert_operator.simulate.pools import Pool
from flexpert_operator.simulate.scalers import Scaler
from flexpert_operator.simulate.serving import Measured, Serving

Floats = NDArray[np.float64]

STEP_S = 0.1
PATIENCE_S = 600.0
"""For which requests that are under way at the end are served on."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run gave, its warm-up left out.

    Attributes:
        ttft_s: [requests] time to first token; infinite where none came.
        tpot_s: [requests] time per further token; infinite where the answer did not end, 0 for answers of one token.
        device_hours: Of the members that existed, whatever they did, while arrivals came.
        transitions: Looks at which a size changed.
        most_devices: Held at any moment.
        times: [looks] seconds.
        engines: [looks] as decided.
        experts: [looks] as decided.
        rates: [looks] requests a second since the look before.
        attained: [requests] whether both objectives were kept.
        at: [requests] when they came.
        reasons: (seconds, sentence) of every change.
    """

    name: str
    ttft_s: Floats
    tpot_s: Floats
    device_hours: float
    transitions: int
    most_devices: int
    times: Floats
    engines: Floats
    experts: Floats
    rates: Floats
    attained: NDArray[np.bool_]
    at: Floats
    reasons: tuple[tuple[float, str], ...]

    @property
    def attainment(self) -> float:
        """Part of the requests for which both objectives were kept; 1 without requests."""
        return float(self.attained.mean()) if len(self.attained) else 1.0


def simulate(
    arrivals: Arrivals,
    device: Device,
    scaler: Scaler,
    policy: Policy,
    *,
    weight: float = 1.0,
    step_s: float = STEP_S,
    look_s: float | None = None,
    warm_up_s: float = 0.0,
    seed: int = 0,
) -> Outcome:
    """Serve arrivals with pools that a scaler sizes.

    Args:
        arrivals: Requests.
        device: What engines and workers can do.
        scaler: Looks now and then.
        policy: Whose objectives count, and how many devices an engine and a worker have.
        weight: Requests that each of `arrivals` stands for.
        step_s: Time is advanced by so much.
        look_s: Between looks; None is as the scaler has it.
        warm_up_s: From the beginning, which counts for nothing.
        seed: Of how the device's `spread` scatters the requests' times.
    """
    serving = Serving(arrivals, device, weight, seed)
    world = _World(arrivals, device, scaler, policy, weight, warm_up_s, serving)
    end = arrivals.duration_s
    look_s = scaler.look_s if look_s is None else look_s
    at, next_look = 0.0, look_s
    while at < end + PATIENCE_S and not (at >= end and world.serving.is_over):
        world.advance(at, step_s)
        at += step_s
        idle = world.serving.idle_until() if world.is_settled else None
        if idle is not None and min(idle, next_look, end) > at + step_s:
            skipped = math.floor((min(idle, next_look, end) - at) / step_s) * step_s
            world.pass_time(at, skipped)
            at += skipped
        if at >= next_look - 1e-9:
            world.look(at, warm_up_s < next_look <= end)
            next_look += look_s
    return world.outcome()


class _World:
    """The state of a run."""

    def __init__(
        self,
        arrivals: Arrivals,
        device: Device,
        scaler: Scaler,
        policy: Policy,
        weight: float,
        warm_up_s: float,
        serving: Serving,
    ) -> None:
        self._arrivals, self._device, self._scaler, self._policy = arrivals, device, scaler, policy
        self._weight, self._warm_up_s, self.serving = weight, warm_up_s, serving
        self._sizes = scaler.start
        self._engines, self._workers = Pool(self._sizes.engines), Pool(self._sizes.experts)
        self._down_until = -1.0
        self._copies = (math.inf, math.inf)
        self._device_seconds = 0.0
        self._devices = self._most_devices = self._sizes.devices(policy)
        self._looks: list[tuple[float, int, int, float]] = [(0.0, self._sizes.engines, self._sizes.experts, 0.0)]
        self._reasons: list[tuple[float, str]] = []
        self._transitions = 0
        self._requests = 0.0
        self._seen = 0.0

    @property
    def is_settled(self) -> bool:
        """Whether no member comes or goes."""
        return not (self._engines.is_changing or self._workers.is_changing)

    def advance(self, at: float, seconds: float) -> None:
        """One step of time."""
        if not self.is_settled:
            self._engines.advance(at)
            self._workers.advance(at)
            self._count()
        workers = self._workers.ready if self._workers.ready >= self._device.least_workers else 0
        engines = 0 if at < self._down_until else self._engines.ready
        copies = self._copies[0] <= at < self._copies[1]
        slower = 1.0 + self._device.copy_slows if copies else 1.0
        self.serving.advance(at, seconds, engines, workers, self._device.imbalance(workers), slower)
        self.pass_time(at, seconds)

    def pass_time(self, at: float, seconds: float) -> None:
        """Devices cost while arrivals come."""
        if at >= self._warm_up_s:
            self._device_seconds += self._devices * max(min(seconds, self._arrivals.duration_s - at), 0.0)

    def _count(self) -> None:
        """The devices that members hold."""
        count = Sizes(self._engines.count().existing, self._workers.count().existing)
        self._devices = count.devices(self._policy)
        self._most_devices = max(self._most_devices, self._devices)

    def look(self, at: float, counts: bool) -> None:
        """Let the scaler decide, and carry it out."""
        observation = self._observation(at)
        sizes, reason = self._scaler.decide(observation)
        rate = (observation.counters.requests - self._requests) / max(at - self._seen, 1e-9)
        self._requests, self._seen = observation.counters.requests, at
        changed = self._resize(sizes, at)
        if changed and counts:
            self._transitions += 1
            self._reasons.append((at, reason))
        self._looks.append((at, sizes.engines, sizes.experts, rate))

    def _resize(self, sizes: Sizes, at: float) -> bool:
        device, slow = self._device, self._scaler.start_s
        worker_s = slow if slow is not None else device.worker_start_s + device.fill_s(sizes.experts)
        if slow is None and sizes.experts > self._workers.count().existing:
            self._copies = (at + device.worker_start_s, at + worker_s)
        engines = self._engines.set_size(sizes.engines, at, slow if slow is not None else device.engine_start_s)
        workers = self._workers.set_size(sizes.experts, at, worker_s)
        self._count()
        if (engines or workers) and self._scaler.restarts:
            self._down_until = at + device.restart_s
        return engines or workers

    def _observation(self, at: float) -> Observation:
        serving, sums, device = self.serving, self.serving.measured, self._device
        judged, late = _judged(sums, self._policy.objectives, self._weight)
        serving.measured = Measured()
        workers = max(self._workers.ready, 1)
        nothing = sums.steps <= 0
        engine_s = math.nan if nothing else sums.engine_s / sums.steps
        expert_s = math.nan if nothing else sums.expert_s / sums.steps
        return Observation(
            at=at,
            measured_at=at,
            engines=self._engines.count(),
            experts=self._workers.count(),
            counters=serving.counters,
            running=sums.running / sums.seconds if sums.seconds > 0 else serving.running,
            step_sequences=math.nan if nothing else sums.sequences / sums.steps,
            queued=serving.queued,
            queued_tokens=serving.queued_tokens,
            prefill_tokens=0.0 if nothing else sums.prefill / sums.steps,
            engine_step_s=engine_s,
            expert_step_s=expert_s,
            engine_utilisation=math.nan if nothing else (engine_s - device.engine_step_s) / (engine_s + expert_s),
            worker_utilisation=math.nan if nothing else (expert_s - device.expert_step_s) / (engine_s + expert_s),
            imbalance=device.imbalance(workers),
            reachable_imbalance=device.imbalance(workers),
            scale_up_s=max(device.engine_start_s, device.worker_start_s + device.fill_s(workers)),
            judged=judged,
            late=late,
        )

    def outcome(self) -> Outcome:
        """What came of it."""
        arrivals, serving = self._arrivals, self.serving
        ttft, tpot, objectives = serving.ttft_s, serving.tpot_s, self._policy.objectives
        good = (ttft <= (objectives.ttft_s or np.inf)) & np.isfinite(ttft)
        good &= (tpot <= (objectives.tpot_s or np.inf)) & np.isfinite(tpot)
        counts = arrivals.at >= self._warm_up_s
        times, engines, experts, rates = np.array(self._looks).T
        return Outcome(
            name=self._scaler.name,
            ttft_s=ttft[counts],
            tpot_s=tpot[counts],
            device_hours=self._device_seconds / 3600,
            transitions=self._transitions,
            most_devices=self._most_devices,
            times=times,
            engines=engines,
            experts=experts,
            rates=rates,
            attained=good[counts],
            at=arrivals.at[counts],
            reasons=tuple(self._reasons),
        )


def _judged(sums: Measured, objectives: Objectives, weight: float) -> tuple[float, float]:
    """Requests of which a time was measured that has an objective, and how many missed one: each miss counts."""
    judged = late = 0.0
    for times_s, limit_s in ((sums.ttft_s, objectives.ttft_s), (sums.tpot_s, objectives.tpot_s)):
        if limit_s is not None:
            judged = max(judged, len(times_s))
            late += sum(one > limit_s for one in times_s)
    return weight * judged, weight * min(late, judged)
