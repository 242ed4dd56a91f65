"""Who sizes the pools of a simulation: ours, and what else there is."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np

from flexpert_operator.autoscale import Observation, Policy, Sizes, State, decide
from flexpert_operator.autoscale.fit import Profile, Service
from flexpert_operator.autoscale.queueing import Demand, need
from flexpert_operator.simulate.arrivals import Arrivals
from flexpert_operator.simulate.device import Device

LOOK_S = 10.0
"""Between looks, as a MoEAutoscalingPolicy has it where it does not say."""
HPA_LOOK_S = 15.0
"""The same of HPA: `--horizontal-pod-autoscaler-sync-period`."""


class Scaler(Protocol):
    """Looks at a simulation now and then."""

    @property
    def look_s(self) -> float:
        """Between looks."""
        ...

    @property
    def name(self) -> str:
        """For reports."""
        ...

    @property
    def start(self) -> Sizes:
        """Sizes at the beginning."""
        ...

    @property
    def start_s(self) -> float | None:
        """How long a new member takes; None is the device's own time."""
        ...

    @property
    def restarts(self) -> bool:
        """Whether a change stops service."""
        ...

    def decide(self, observation: Observation) -> tuple[Sizes, str]:
        """Sizes from now on, and why."""
        ...


@dataclass
class Fixed:
    """No scaling."""

    look_s: ClassVar[float] = LOOK_S
    start: Sizes
    name: str = "none"
    start_s: float | None = None
    restarts: bool = False

    def decide(self, observation: Observation) -> tuple[Sizes, str]:
        """Always the same."""
        return self.start, "fixed"


@dataclass
class Ours:
    """`autoscale.decide`."""

    look_s: ClassVar[float] = LOOK_S
    start: Sizes
    policy: Policy
    profile: Profile
    name: str = "flexpert"
    start_s: float | None = None
    restarts: bool = False
    _state: State | None = None

    def decide(self, observation: Observation) -> tuple[Sizes, str]:
        """The decision."""
        state = self._state if self._state is not None else State.initial(self.profile)
        decision, self._state = decide(observation, state, self.policy)
        return decision.sizes, decision.reason


@dataclass
class ColdRestart:
    """Sizes of `inner`, each of which starts everything anew: nothing is served meanwhile, nor decided for a while.

    Args:
        inner: Who decides.
        restart_s: For which nothing is served.
        between_s: From a restart to the next at least.
    """

    look_s: ClassVar[float] = LOOK_S
    inner: Ours
    restart_s: float
    between_s: float
    name: str = "restart"
    restarts: bool = True
    _last: Sizes | None = None
    _until: float = 0.0

    @property
    def start(self) -> Sizes:
        """As the inner one's."""
        return self.inner.start

    @property
    def start_s(self) -> float | None:
        """Members come with the restart."""
        return self.restart_s

    def decide(self, observation: Observation) -> tuple[Sizes, str]:
        """The inner decision, where no restart is too near."""
        present = self._last or self.start
        if observation.at < self._until:
            return present, "restarting"
        self._last, reason = self.inner.decide(observation)
        if self._last != present:
            self._until = observation.at + self.between_s
        return self._last, reason


@dataclass
class Hpa:
    """HPA v2 on each pool by itself, or on whole replicas of `unit`; an External metric with AverageValue.

    It looks every 15 s and sees what was measured a look ago, which is as quick as scraping every 15 s can be: DCGM's
    exporter renews its figures every 30 s where nobody says otherwise. Nothing limits how fast it grows.

    Args:
        start: Sizes.
        policy: Its bounds and budget.
        target: Utilisation of workers, or of a replica, that is aimed at.
        engine_target: The same of engines; None is as `target`.
        sequences: Of an engine, that are aimed at instead; then utilisation of workers is the part of the time in which
            they have work, as devices and `flexpert_worker_busy_seconds` tell it. None: utilisation is that which
            tokens take of the time. It grows as load does, and no device tells it.
        unit: Sizes of a replica where engines and workers come together; None sizes the pools by themselves.
        down_s: Stabilisation window for shrinking.
    """

    look_s: ClassVar[float] = HPA_LOOK_S
    start: Sizes
    policy: Policy
    target: float
    unit: Sizes | None = None
    down_s: float = 300.0
    name: str = "hpa"
    engine_target: float | None = None
    sequences: float | None = None
    start_s: float | None = None
    restarts: bool = False
    tolerance: float = 0.1
    _seen: tuple[float, float] | None = None
    _wished: list[tuple[float, Sizes]] = field(default_factory=list)
    _sizes: Sizes | None = None

    def decide(self, observation: Observation) -> tuple[Sizes, str]:
        """ceil(size · utilisation / target), the highest of the window when it shrinks."""
        present = self._sizes or self.start
        seen = _busy(observation, self.sequences) if self.sequences is not None else _utilisation(observation)
        (by_engines, by_workers), self._seen = self._seen or seen, seen
        engines, workers = observation.engines.ready, observation.experts.ready
        engine_target = 1.0 if self.sequences is not None else self.engine_target or self.target
        if self.unit is not None:
            ready = min(engines // self.unit.engines, workers // self.unit.experts)
            wanted = self._scaled(present.engines // self.unit.engines, ready, by_engines + by_workers, self.target)
            wish = Sizes(wanted * self.unit.engines, wanted * self.unit.experts)
        else:
            wish = Sizes(
                self._scaled(present.engines, engines, by_engines, engine_target),
                self._scaled(present.experts, workers, by_workers, self.target),
            )
        kept = [one for one in self._wished or [(observation.at, present)] if one[0] > observation.at - self.down_s]
        self._wished = [*kept, (observation.at, wish)]
        sizes = Sizes(
            max(wish.engines, min(present.engines, max(one.engines for _, one in self._wished))),
            max(wish.experts, min(present.experts, max(one.experts for _, one in self._wished))),
        )
        self._sizes = self._allowed(sizes, present)
        return self._sizes, f"utilisation {by_engines:.2f} and {by_workers:.2f}"

    def _scaled(self, size: int, ready: int, utilisation: float, target: float) -> int:
        """The sum over members that serve, divided by the target, as HPA has it for External metrics."""
        ratio = utilisation * min(ready, size) / max(size, 1) / target
        return size if abs(ratio - 1) <= self.tolerance else max(math.ceil(size * ratio), 1)

    def _allowed(self, sizes: Sizes, present: Sizes) -> Sizes:
        policy = self.policy
        sizes = Sizes(
            min(max(sizes.engines, policy.engines.minimum), policy.engines.maximum),
            min(max(sizes.experts, policy.experts.minimum), policy.experts.maximum),
        )
        return sizes if policy.devices is None or sizes.devices(policy) <= policy.devices else present


def _utilisation(observation: Observation) -> tuple[float, float]:
    """Part of the time that engines and workers spend on tokens, 1 where requests wait and nobody serves."""
    if not math.isfinite(observation.engine_utilisation + observation.worker_utilisation):
        return (1.0, 1.0) if observation.queued > 0 else (0.0, 0.0)
    return observation.engine_utilisation, observation.worker_utilisation


def _busy(observation: Observation, sequences: float) -> tuple[float, float]:
    """Sequences of an engine over what is aimed at, and the part of the time in which workers have work."""
    engines = observation.running / max(observation.engines.ready, 1) / sequences
    engine_s, expert_s = observation.engine_step_s, observation.expert_step_s
    if not math.isfinite(engine_s + expert_s):
        return engines, 1.0 if observation.queued > 0 else 0.0
    return engines, expert_s / (engine_s + expert_s)


@dataclass
class Oracle:
    """Knows the arrivals: the fewest devices that the queueing model asks for, for what comes before it could change.

    Args:
        start: Sizes.
        policy: Its objectives, bounds and budget.
        arrivals: What comes.
        device: What it really takes.
        ahead_s: For which it sizes.
        weight: Requests that each of the arrivals stands for.
        headroom: On the rate that comes.
    """

    look_s: ClassVar[float] = LOOK_S
    start: Sizes
    policy: Policy
    arrivals: Arrivals
    device: Device
    ahead_s: float
    weight: float = 1.0
    headroom: float = 1.0
    name: str = "oracle"
    start_s: float | None = None
    restarts: bool = False

    def decide(self, observation: Observation) -> tuple[Sizes, str]:
        """By the busiest stretch of what comes."""
        demand = max(
            (self._demand(observation.at + shift) for shift in np.arange(-15.0, self.ahead_s, 15.0)),
            key=lambda one: one.generated + self.device.prefill_price * one.prompt,
        )
        most = (self.policy.engines.maximum, self.policy.experts.maximum)
        service: Service = self.device.service()
        imbalance = self.device.imbalance(observation.experts.ready)
        found = need(service, demand, self.policy, imbalance, most, observation.engines.ready)
        bounds = self.policy
        return (
            Sizes(max(found.engines, bounds.engines.minimum), max(found.experts, bounds.experts.minimum)),
            "what comes is known",
        )

    def _demand(self, at: float, window_s: float = 30.0) -> Demand:
        first, last = np.searchsorted(self.arrivals.at, [at, at + window_s])
        factor = self.weight * self.headroom / window_s
        prompt = float(self.arrivals.prompt[first:last].sum()) * factor
        return Demand(prompt, float(self.arrivals.answer[first:last].sum()) * factor, (last - first) * factor)
