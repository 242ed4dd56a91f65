"""What comes: rates from counters, how random arrivals are, how long answers get, and what the season makes of it."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

from flexpert_operator.autoscale.observation import Counters, Observation
from flexpert_operator.autoscale.policy import Forecast
from flexpert_operator.autoscale.queueing import Demand

REMEMBERED_S = 600.0
"""Samples from which the dispersion is taken."""
RECENT_S = 45.0
"""Samples from which the rate is taken."""
MOST_SAMPLES = 240
MOST_RECENT = 60
FADING = 0.98
"""Weight of what finished, one observation later."""
MOST_DISPERSION = 4.0
"""Where arrivals jump, the rate follows; more head-room than that is for nothing."""
PAIRS_OF_CHANCE = 16
"""Neighbouring samples of independent requests that are thought of beside those seen."""
MEDIAN_OF_SQUARES = 0.455
"""Of a standard normal variable."""
SURPRISE = 3.0
"""Standard deviations by which the newest sample has to be above the rate to be believed alone."""
DOUBT = 1.0
"""Standard deviations of a rate's mean by which the rate is taken to be higher."""
FIRST_ANSWER = 128.0
"""Tokens of an answer, while none has finished."""
BACKLOG_S = 30.0
"""In which what waits has to be served beside what comes."""
SEASON_WEIGHT = 0.5
"""Of the newest season in what is remembered of a bin."""


@dataclass(frozen=True)
class Sample:
    """What came in a stretch of time that ended at `at`."""

    at: float
    duration_s: float
    requests: float
    prompt_tokens: float


@dataclass(frozen=True)
class Traffic:
    """What is remembered of the traffic.

    Attributes:
        at: Of the last observation that was used.
        active_at: When there was something to do last.
        season: Requests a second in each bin of a season; below 0 where nothing is known.
    """

    at: float | None = None
    counters: Counters = field(default_factory=Counters)
    samples: tuple[Sample, ...] = ()
    finished: float = 1.0
    finished_tokens: float = FIRST_ANSWER
    active_at: float | None = None
    season: tuple[float, ...] = ()

    def updated(self, observation: Observation, forecast: Forecast | None) -> "Traffic":
        """With what a sound observation counts since the last one; one that is not newer changes nothing."""
        now = observation.looked_at
        active = observation.running > 0 or observation.queued > 0
        if self.at is None:
            return replace(self, at=now, counters=observation.counters, active_at=now)
        if now <= self.at:
            return self
        since = _since(self.counters, observation.counters)
        sample = Sample(now, now - self.at, since.requests, since.prompt_tokens)
        kept = tuple(one for one in (*self.samples, sample) if one.at > now - REMEMBERED_S)[-MOST_SAMPLES:]
        return replace(
            self,
            at=now,
            counters=observation.counters,
            samples=kept,
            finished=FADING * self.finished + since.finished,
            finished_tokens=FADING * self.finished_tokens + since.finished_tokens,
            active_at=now if active or since.requests > 0 else self.active_at,
            season=_season(self.season, sample, forecast),
        )

    @property
    def newest(self) -> float:
        """Requests in the newest sample."""
        return self.samples[-1].requests if self.samples else 0.0

    def demand(self, observation: Observation, forecast: Forecast | None) -> Demand:
        """What comes from now until more could be ready."""
        dispersion = self._dispersion()
        requests, prompt = self._rates(dispersion)
        factor = self._ahead(observation.at + observation.scale_up_s, requests, forecast)
        answer = self.finished_tokens / max(self.finished, 1e-9)
        return Demand(prompt * factor, requests * factor * answer, requests * factor, dispersion)

    def backlog(self, observation: Observation) -> Demand:
        """What has to be served beside that, for as long as it takes."""
        waiting = observation.queued / BACKLOG_S
        answer = self.finished_tokens / max(self.finished, 1e-9)
        return Demand(observation.queued_tokens / BACKLOG_S, waiting * answer, waiting)

    def _rates(self, dispersion: float) -> tuple[float, float]:
        """Requests and prompt tokens a second."""
        recent = [one for one in self.samples[-MOST_RECENT:] if one.at > self.samples[-1].at - RECENT_S]
        seconds = sum(one.duration_s for one in recent)
        if not recent or seconds <= 0:
            return 0.0, 0.0
        rate = sum(one.requests for one in recent) / seconds
        prompt = sum(one.prompt_tokens for one in recent) / seconds
        last = recent[-1]
        usual = rate * last.duration_s
        if last.requests > usual + SURPRISE * max(dispersion * usual, 1.0) ** 0.5:
            newest = last.requests / last.duration_s
            return newest, max(prompt * newest / max(rate, 1e-9), last.prompt_tokens / last.duration_s)
        unsure = DOUBT * (dispersion / max(rate * seconds, 1.0)) ** 0.5
        return rate * (1.0 + unsure), prompt * (1.0 + unsure)

    def _dispersion(self) -> float:
        """By the middle one of the differences of neighbours, so that neither slow rises nor a few jumps count."""
        pairs = [(one.requests, other.requests) for one, other in pairwise(self.samples)]
        shares = sorted((one - other) ** 2 / (one + other) for one, other in pairs if one + other > 0)
        found = shares[len(shares) // 2] / MEDIAN_OF_SQUARES if shares else 1.0
        believed = (found * len(shares) + PAIRS_OF_CHANCE) / (len(shares) + PAIRS_OF_CHANCE)
        return min(max(believed, 1.0), MOST_DISPERSION)

    def _ahead(self, at: float, rate: float, forecast: Forecast | None) -> float:
        """What the rate will be by the season, over what it is; not below 1, and 2 at most."""
        if forecast is None or not self.season or self.at is None or rate <= 0:
            return 1.0
        then, now = self.season[_bin(at, forecast)], self.season[_bin(self.at, forecast)]
        return min(max(then / now, 1.0), 2.0) if then > 0 and now > 0 else 1.0


def _since(before: Counters, now: Counters) -> Counters:
    """What was counted in between; a counter that fell has begun at 0 again."""

    def difference(old: float, new: float) -> float:
        return new - old if new >= old else new

    return Counters(
        difference(before.requests, now.requests),
        difference(before.prompt_tokens, now.prompt_tokens),
        difference(before.finished, now.finished),
        difference(before.finished_tokens, now.finished_tokens),
    )


def _bin(at: float, forecast: Forecast) -> int:
    return int(at % forecast.season_s / forecast.season_s * forecast.bins) % forecast.bins


def _season(season: tuple[float, ...], sample: Sample, forecast: Forecast | None) -> tuple[float, ...]:
    if forecast is None:
        return season
    known = season if len(season) == forecast.bins else (-1.0,) * forecast.bins
    number, rate = _bin(sample.at, forecast), sample.requests / sample.duration_s
    weight = SEASON_WEIGHT * min(sample.duration_s * forecast.bins / forecast.season_s, 1.0)
    before = known[number]
    learnt = rate if before < 0 else before + weight * (rate - before)
    return (*known[:number], learnt, *known[number + 1 :])
