"""What growing costs beside its time: while members come and experts are copied, everybody's steps take longer.

Whoever lets a member go and wants it back pays for its start, in which it holds devices and serves nobody, and for
this. So `calm` keeps a member for at least as long as that would pay for keeping it: then it costs at most twice what
somebody would pay who knew what comes. That is the rule for renting or buying (A. R. Karlin, M. S. Manasse, L. Rudolph,
D. D. Sleator, *Competitive snoopy caching*, Algorithmica 3, 1988).
"""

import math
from dataclasses import dataclass, field, replace

from flexpert_operator.autoscale.fit import ServiceFit
from flexpert_operator.autoscale.observation import Observation, finite
from flexpert_operator.autoscale.policy import Policy
from flexpert_operator.autoscale.sizes import Sizes

NEWEST = 0.5
"""Weight of the newest growth in what is known."""
MOST_S = 3600.0


@dataclass(frozen=True)
class GrowthCost:
    """What a device costs that comes, and the growth that is under way.

    Attributes:
        device_s: Device-seconds of serving that were lost for each device that came; 0 where nothing is known.
        coming: Devices that come, at most, in the growth under way; 0: none is.
        lost_s: Device-seconds lost in it so far.
        at: Of the last look.
        members: Engines and workers that were ready then.
    """

    device_s: float = 0.0
    coming: int = 0
    lost_s: float = 0.0
    at: float | None = None
    members: Sizes = field(default_factory=lambda: Sizes(0, 0))

    def updated(self, observation: Observation, asked: Sizes, fit: ServiceFit, policy: Policy) -> "GrowthCost":
        """With what was measured since the last look.

        Args:
            observation: A newer look.
            asked: Sizes that there are to be.
            fit: What steps take when nobody comes.
            policy: Devices of an engine and of a worker.
        """
        now, ready = observation.looked_at, Sizes(observation.engines.ready, observation.experts.ready)
        missing = Sizes(max(asked.engines - ready.engines, 0), max(asked.experts - ready.experts, 0)).devices(policy)
        after = replace(self, at=now, members=ready, coming=max(self.coming, missing) if missing else 0, lost_s=0.0)
        if self.at is None or not (self.coming or missing):
            return after
        slower = _slower(observation, self.members, fit)
        lost_s = self.lost_s + slower * max(now - self.at, 0.0) * self.members.devices(policy)
        if missing:
            return replace(after, lost_s=lost_s)
        found = min(max(lost_s, 0.0) / self.coming, MOST_S)
        known = found if self.device_s <= 0 else self.device_s + NEWEST * (found - self.device_s)
        return replace(after, device_s=known)


def _slower(observation: Observation, members: Sizes, fit: ServiceFit) -> float:
    """Part of a step's time that it would not have taken with these members if nobody came; below 0 if more."""
    took_s = observation.engine_step_s + observation.expert_step_s
    if not math.isfinite(took_s) or took_s <= 0 or 0 in (members.engines, members.experts):
        return 0.0
    imbalance = finite(observation.imbalance, 1.0, 1.0)
    usual_s = fit.service().step_with(fit.tokens_of(observation), members.engines, members.experts, imbalance)
    return max(1.0 - usual_s / took_s, -1.0)
