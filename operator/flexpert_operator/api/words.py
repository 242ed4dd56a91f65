"""Words that the status uses where it chooses among a few; `decide` decides by them, `status` lists them."""

from enum import StrEnum


class Cause(StrEnum):
    """Why a reconfiguration is done."""

    UNKNOWN = "Unknown"
    SCALE = "Scale"
    REBALANCE = "Rebalance"
    FAILURE = "Failure"
    UPGRADE = "Upgrade"
    INITIAL = "Initial"
    DRAIN = "Drain"


class Phase(StrEnum):
    """How far a reconfiguration is."""

    PENDING = "Pending"
    PREPARE = "Prepare"
    COMMIT = "Commit"
    RETIRE = "Retire"
    SUCCEEDED = "Succeeded"
    ROLLED_BACK = "RolledBack"
    CANCELLED = "Cancelled"
    FAILED = "Failed"


class Action(StrEnum):
    """What a look at the loads led to."""

    REBALANCE = "Rebalance"
    STAY = "Stay"


class Reason(StrEnum):
    """Why a look at the loads led to it."""

    GAIN_EXCEEDS_COST = "GainExceedsCost"
    DISABLED = "Disabled"
    NO_TRAFFIC = "NoTraffic"
    WATCHING = "WatchingLoads"
    COOLING_DOWN = "CoolingDown"
    BALANCED = "Balanced"
    GAIN_TOO_SMALL = "GainTooSmall"
    UNCERTAIN = "GainUncertain"
    COST_EXCEEDS_GAIN = "CostExceedsGain"
    OVER_BUDGET = "OverBudget"
    REFUSED = "PlanRefused"
    INFEASIBLE = "Infeasible"
