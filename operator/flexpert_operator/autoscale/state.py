"""What a decision says, and what the next one has to know. The operator keeps both, and may lose them."""

from dataclasses import dataclass, field
from enum import StrEnum

from flexpert_operator.autoscale.calm import Return
from flexpert_operator.autoscale.cost import GrowthCost
from flexpert_operator.autoscale.demand import Traffic
from flexpert_operator.autoscale.fit import Profile, ServiceFit
from flexpert_operator.autoscale.kept import Kept
from flexpert_operator.autoscale.sizes import Change, Sizes, Wish


class Limit(StrEnum):
    """Why a decision is not what the objectives ask for. Names of reasons in status."""

    BOUNDS = "Bounds"
    BUDGET = "BudgetExhausted"
    RATE = "RateLimited"
    STABILISED = "Stabilised"
    STALE = "StaleMetrics"
    PAUSED = "Paused"


@dataclass(frozen=True)
class Decision:
    """How many there should be from now on.

    Attributes:
        wanted: What the objectives ask for, before behavior and budget.
        limits: Why `sizes` differ from `wanted`.
        rebalance: Whether an expert should get another replica, rather than the pool another worker.
        acts: Whether `sizes` are to be carried out: neither paused nor a dry run.
        reason: One sentence for people.
    """

    sizes: Sizes
    wanted: Sizes
    reason: str
    bottleneck: str = ""
    limits: frozenset[Limit] = frozenset()
    rebalance: bool = False
    acts: bool = True


@dataclass(frozen=True)
class State:
    """What decisions remember.

    Attributes:
        at: Of the last decision; time never goes back here.
        sizes: As last decided.
        wishes: Sizes wanted lately.
        changes: Sizes changed lately.
        returns: How needs came back lately.
        kept: How the objectives were kept lately.
        cost: What growing costs beside its time.
    """

    fit: ServiceFit
    traffic: Traffic = field(default_factory=Traffic)
    at: float | None = None
    fresh_at: float | None = None
    sizes: Sizes | None = None
    wishes: tuple[Wish, ...] = ()
    changes: tuple[Change, ...] = ()
    returns: tuple[Return, ...] = ()
    kept: Kept = field(default_factory=Kept)
    cost: GrowthCost = field(default_factory=GrowthCost)

    @classmethod
    def initial(cls, profile: Profile | None = None) -> "State":
        """Of an operator that knows nothing but a profile."""
        return cls(ServiceFit.of(profile or Profile()))
