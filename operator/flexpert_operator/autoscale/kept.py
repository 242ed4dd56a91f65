"""How well the objectives are kept, as measured; from that how far into the tail `decision` has the model look.

A percentile of 99 allows one request in a hundred to be late. Where fewer are, pools are larger than was asked for;
where more are, the model is too hopeful. So the standard deviations for which it sizes follow the part of what is
allowed that was used lately.
"""

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

from flexpert_operator.autoscale.observation import Observation, finite
from flexpert_operator.autoscale.policy import Objectives

MEMORY_S = 1800.0
"""After which what was seen counts for a third."""
THOUGHT_OF = 20.0
"""Late requests, and as many allowed ones, beside those seen: few requests tell little."""
LEAST = 0.5
"""Of the model's standard deviations, where no request is late."""
MOST_USED = 2.0
"""Of what is allowed: one surprise, which no head-room would have met, is not paid for during an hour."""


@dataclass(frozen=True)
class Kept:
    """Late requests, and how many were allowed to be, older ones fading.

    Attributes:
        at: Of the newest; None before the first.
    """

    late: float = 0.0
    allowed: float = 0.0
    at: float | None = None

    def updated(self, observation: Observation, percentile: float) -> "Kept":
        """With what was seen since the last look."""
        now = observation.looked_at
        fading = 1.0 if self.at is None else math.exp(-max(now - self.at, 0.0) / MEMORY_S)
        judged = finite(observation.judged, 0.0)
        late = fading * self.late + min(finite(observation.late, 0.0), judged)
        allowed = fading * self.allowed + (1.0 - percentile) * judged
        return Kept(min(late, MOST_USED * allowed), allowed, now)

    @property
    def used(self) -> float:
        """Part of what is allowed to be late that was; 1 while nothing is known."""
        return (self.late + THOUGHT_OF) / (self.allowed + THOUGHT_OF)

    def aimed(self, objectives: Objectives) -> Objectives:
        """The objectives with the percentile for which the model has to size so that the wanted one is kept."""
        normal = NormalDist()
        deviations = normal.inv_cdf(objectives.percentile) * (LEAST + (1.0 - LEAST) * self.used)
        percentile = normal.cdf(deviations)
        return replace(objectives, percentile=percentile) if percentile < 1.0 else objectives
