"""What a step takes, learnt while serving: one line for the engines' part, one for the workers'.

An engine's step takes α + β · n / E with n tokens in all steps under way (prompt tokens at their price) and E engines;
waiting for workers takes α' + γ · n · i / W, W being the workers and i the busiest one's load over the average. Each is
fitted by least squares with older samples fading, around what a profile says, made as much slower or quicker
as all that was measured is.
"""

from dataclasses import dataclass, replace

from flexpert_operator.autoscale.observation import Observation, finite

FADING = 0.97
"""Weight of a sample when the next one has come."""

PRIOR_WEIGHT = 0.5
"""Of what the profile says at either of two points, in samples."""


@dataclass(frozen=True)
class Line:
    """y = intercept + slope · x, as weighted sums of what was seen, and of what was expected beforehand."""

    prior: tuple[float, float]
    spread: float
    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def with_sample(self, x: float, y: float) -> "Line":
        """One more sample; the others fade."""
        return replace(
            self,
            weight=FADING * self.weight + 1.0,
            x=FADING * self.x + x,
            y=FADING * self.y + y,
            xx=FADING * self.xx + x * x,
            xy=FADING * self.xy + x * y,
        )

    def coefficients(self) -> tuple[float, float]:
        """(intercept, slope), neither below 0, the slope not below a hundredth of what was expected."""
        scale = self._scale()
        first, slope = self.prior[0] * scale, self.prior[1] * scale
        weight, x, y, xx, xy = self.weight, self.x, self.y, self.xx, self.xy
        for point in (0.0, self.spread):
            weight += PRIOR_WEIGHT
            x += PRIOR_WEIGHT * point
            y += PRIOR_WEIGHT * (first + slope * point)
            xx += PRIOR_WEIGHT * point * point
            xy += PRIOR_WEIGHT * point * (first + slope * point)
        spread = xx - x * x / weight
        found = (xy - x * y / weight) / spread if spread > 0 else slope
        found = max(found, 0.01 * slope)
        if y < found * x:
            return 0.0, max(xy / xx, 0.01 * slope) if xx > 0 else slope
        return (y - found * x) / weight, found

    def _scale(self) -> float:
        """How much slower everything was than expected: known long before the line's slope is."""
        first, slope = self.prior
        expected = self.weight * first + slope * self.x
        if expected <= 0:
            return 1.0
        caution = PRIOR_WEIGHT * expected / self.weight
        return (self.y + caution) / (expected + caution)


@dataclass(frozen=True)
class Service:
    """What a step takes. Times in seconds.

    Attributes:
        step_s: Of an empty step, α + α'.
        engine_token_s: β.
        worker_token_s: γ.
        prefill_price: What a prompt token weighs, a generated one being 1.
        prefill_tokens: Prompt tokens in one engine's step at most.
        sequences: That one engine generates for at once, at most.
    """

    step_s: float
    engine_token_s: float
    worker_token_s: float
    prefill_price: float
    prefill_tokens: int
    sequences: int

    def step_with(self, tokens: float, engines: int, workers: int, imbalance: float) -> float:
        """Seconds of a step with so many tokens in all engines; `imbalance` is the busiest worker over the mean."""
        slowness = self.engine_token_s / engines + self.worker_token_s * imbalance / workers
        return self.step_s + slowness * tokens


@dataclass(frozen=True)
class Profile:
    """What a device is expected to do before anything was measured."""

    engine_step_s: float = 0.006
    engine_token_s: float = 0.00008
    expert_step_s: float = 0.006
    worker_token_s: float = 0.0003
    prefill_price: float = 0.12
    prefill_tokens: int = 2048
    sequences: int = 256


@dataclass(frozen=True)
class ServiceFit:
    """Both lines, and what is not fitted.

    Attributes:
        members: Engines and workers that were ready at the last look. Means since then are of pools as they are now
            only where these are the same.
    """

    profile: Profile
    engine: Line
    expert: Line
    members: tuple[int, int] | None = None

    @classmethod
    def of(cls, profile: Profile) -> "ServiceFit":
        """What a profile says."""
        engine = Line((profile.engine_step_s, profile.engine_token_s), spread=64.0)
        return cls(profile, engine, Line((profile.expert_step_s, profile.worker_token_s), spread=64.0))

    def updated(self, observation: Observation) -> "ServiceFit":
        """With what was measured, as far as it was."""
        tokens = self.tokens_of(observation)
        engines, workers = observation.engines.ready, observation.experts.ready
        fit = replace(self, members=(engines, workers))
        if self.members is not None and self.members != fit.members:
            return fit
        if tokens > 0 and engines > 0 and finite(observation.engine_step_s, 0.0) > 0:
            fit = replace(fit, engine=fit.engine.with_sample(tokens / engines, observation.engine_step_s))
        if tokens > 0 and workers > 0 and finite(observation.expert_step_s, 0.0) > 0:
            load = tokens * finite(observation.imbalance, 1.0, 1.0) / workers
            fit = replace(fit, expert=fit.expert.with_sample(load, observation.expert_step_s))
        return fit

    def tokens_of(self, observation: Observation) -> float:
        """Tokens in an average step of all engines, those of prompts at their price."""
        sequences = finite(observation.step_sequences, observation.running)
        return sequences + self.profile.prefill_price * finite(observation.prefill_tokens, 0.0)

    def service(self) -> Service:
        """What a step takes, as far as is known."""
        (first, beta), (second, gamma) = self.engine.coefficients(), self.expert.coefficients()
        profile = self.profile
        step_s = max(first + second, 1e-6)
        return Service(step_s, beta, gamma, profile.prefill_price, profile.prefill_tokens, profile.sequences)
