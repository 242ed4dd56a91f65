"""Whether moving experts pays: the rule, and the reason for every time that it does not act. Pure.

`placer` asks `before_solving` when a look is due, and `judge` once the solver and the pool controller's dry run have
answered. What the rule compares, in seconds of serving:

    benefit = ∫ max(0, (gain - error) - drift · t) dt   over the time that the new placement is expected to hold
    cost    = seconds that the moves take · the part of the throughput that serving loses meanwhile

The expected hold ends when drift has used the gain up; it is never longer than the loads have been watched (nothing is
known about longer times), nor than `maxHoldSeconds`. Experts move only where the benefit exceeds the cost.

Hysteresis: a rebalancing begins at `minGainPercent` and goes on, within its budget a round, until a look finds less
than `stopGainPercent`; then it takes `minGainPercent` again. Whether one is going on is what the condition Rebalancing
says, so an operator that starts anew knows it.
"""

from dataclasses import dataclass

from flexpert_operator.api.conditions import REBALANCING, ConditionStatus
from flexpert_operator.api.fields import Json
from flexpert_operator.api.spec import Rebalance
from flexpert_operator.api.words import Action as Action
from flexpert_operator.api.words import Reason as Reason
from flexpert_operator.decide.balance import Comparison
from flexpert_operator.decide.loads import SmoothedLoads
from flexpert_operator.decide.observation import Cause, Operation

ENOUGH_SEEN = 0.5
"""Of the window: one half-life has to be watched before anything moves for it."""


PAUSES = (Reason.COOLING_DOWN, Reason.WATCHING, Reason.REFUSED)
"""Reasons that leave a rebalancing that goes on as it is: it was not found to be done."""


@dataclass(frozen=True)
class Cost:
    """What a plan would cost, as the pool controller's dry run says.

    Attributes:
        moves: Replicas that come into being.
        bytes: Bytes to be copied.
        seconds: From its start to its end.
    """

    moves: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Decision:
    """The outcome of a look.

    Attributes:
        active: Whether a rebalancing goes on after it.
        imbalance_percent: Load of the busiest worker above the average, now.
        gain_percent: Predicted reduction of the makespan.
        benefit_s: Serving time gained over the expected hold.
        cost_s: Serving time that the moves cost.
    """

    action: Action
    reason: Reason
    message: str
    active: bool = False
    imbalance_percent: int | None = None
    gain_percent: int | None = None
    hold_s: float | None = None
    benefit_s: float | None = None
    cost_s: float | None = None
    cost_bytes: int | None = None
    moves: int | None = None


@dataclass(frozen=True)
class History:
    """What the status says of earlier looks.

    Attributes:
        looked_at: When the last one was, seconds since the Unix epoch.
        active: Whether a rebalancing goes on.
        acted_at: When experts were last moved for balance.
        reason: Of the last look.
        asked: Somebody asks for a look now: it takes neither an interval nor a least gain, but moves still have to pay.
        was_asked: The last one was asked for.
    """

    looked_at: float = 0.0
    active: bool = False
    acted_at: float = 0.0
    reason: str = ""
    asked: bool = False
    was_asked: bool = False

    def threshold_percent(self, spec: Rebalance) -> float:
        """The gain from which experts are moved."""
        if self.asked:
            return 0.0
        return spec.go_on_percent if self.active else spec.min_gain_percent


def history_of(
    status: Json, operation: Operation | None, looked_at: float, acted_at: float, asked: str = ""
) -> History:
    """What is known of earlier looks.

    Args:
        status: Of the MoEDeployment, as it was.
        operation: The running or last reconfiguration.
        looked_at: Time of `status.placement.lastDecision`, 0 without one.
        acted_at: `status.placement.rebalancedAt`, 0 without it.
        asked: The annotation by which somebody asks for a look, whether it was answered or not.
    """
    conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", ())}
    if operation is not None and operation.cause is Cause.REBALANCE:
        acted_at = max(acted_at, operation.finished_at or operation.started_at)
    placement = status.get("placement", {})
    last = placement.get("lastDecision", {})
    return History(
        looked_at,
        conditions.get(REBALANCING) == ConditionStatus.TRUE,
        acted_at,
        last.get("reason", ""),
        asked=asked not in ("", placement.get("lookAsked", "")),
        was_asked=last.get("asked", False),
    )


def is_due(spec: Rebalance, history: History, now: float) -> bool:
    """Whether it is time to look; what is switched off is said once."""
    if history.asked:
        return True
    if not spec.enabled:
        return history.reason != Reason.DISABLED and not history.was_asked
    return now - history.looked_at >= spec.interval_s


def before_solving(
    spec: Rebalance, history: History, known: SmoothedLoads | None, imbalance: float, now: float
) -> Decision | None:
    """The decision that needs no solver, or None when it has to be asked.

    Args:
        spec: What the user asks for.
        history: Earlier looks.
        known: Of the loads.
        imbalance: Of the present placement under these loads; 1.0 is balanced.
        now: Seconds since the Unix epoch.
    """
    if not spec.enabled and not history.asked:
        return stay(Reason.DISABLED, "spec.placement.rebalance.enabled is false", History())
    if known is None or known.filled < ENOUGH_SEEN:
        seen_s = known.observed_s if known is not None else 0.0
        message = f"the loads have been watched for {seen_s:.0f} s, it takes a half-life of {spec.half_life_s:g} s"
        return stay(Reason.WATCHING, message, history)
    if not known.flowing:
        return stay(Reason.NO_TRAFFIC, "no token has been computed lately", history)
    if now - history.acted_at < spec.cooldown_s and not history.asked:
        left = spec.cooldown_s - (now - history.acted_at)
        return stay(Reason.COOLING_DOWN, f"experts were moved lately; {left:.0f} s to wait", history, imbalance)
    best = 100.0 * (1.0 - 1.0 / imbalance)
    if best <= 0.0 or best < history.threshold_percent(spec):
        message = f"perfect balance would gain {best:.1f} %, {history.threshold_percent(spec):g} % are asked for"
        return stay(Reason.BALANCED, message, history, imbalance)
    return None


def judge(spec: Rebalance, history: History, known: SmoothedLoads, comparison: Comparison, cost: Cost) -> Decision:
    """Whether a placement that the solver found is worth its moves."""
    certain = comparison.gain - comparison.error
    hold_s = expected_hold(spec, known.observed_s, certain, comparison.drift)
    benefit_s = benefit(certain, comparison.drift, hold_s)
    cost_s = cost.seconds * spec.move_cost_percent / 100.0
    objection = object_to(spec, history, comparison, cost) or object_to_price(hold_s, benefit_s, cost_s)
    reason, message = objection or (
        Reason.GAIN_EXCEEDS_COST,
        f"{cost.moves} moves gain {100 * comparison.gain:.1f} % for about {hold_s:.0f} s, which is {benefit_s:.2f} s "
        f"of serving, and cost {cost_s:.2f} s of it",
    )
    return Decision(
        Action.STAY if objection else Action.REBALANCE,
        reason,
        message,
        active=objection is None and spec.enabled,
        imbalance_percent=percent_above(comparison.imbalance),
        gain_percent=round(100 * comparison.gain),
        hold_s=hold_s,
        benefit_s=benefit_s,
        cost_s=cost_s,
        cost_bytes=cost.bytes,
        moves=cost.moves,
    )


def object_to(spec: Rebalance, history: History, comparison: Comparison, cost: Cost) -> tuple[Reason, str] | None:
    """Why a placement is not to be taken up whatever its price in time is, or None."""
    percent, threshold = 100.0 * comparison.gain, history.threshold_percent(spec)
    if percent <= 0.0 or percent < threshold:
        message = f"the best placement found gains {percent:.1f} %, {threshold:g} % are asked for"
        return Reason.GAIN_TOO_SMALL, message
    if is_over_budget(spec, cost):
        limits = "spec.placement.rebalance.maxMoves or maxBytes"
        return Reason.OVER_BUDGET, f"{cost.moves} moves of {cost.bytes} bytes exceed {limits}"
    if comparison.gain <= comparison.error:
        error = 100.0 * comparison.error
        return Reason.UNCERTAIN, f"a gain of {percent:.1f} % is within what the loads vary by ({error:.1f} %)"
    return None


def object_to_price(hold_s: float, benefit_s: float, cost_s: float) -> tuple[Reason, str] | None:
    """Why the moves do not pay, or None."""
    if benefit_s > cost_s:
        return None
    message = f"{benefit_s:.2f} s of serving gained in {hold_s:.0f} s do not make up for {cost_s:.2f} s of moving"
    return Reason.COST_EXCEEDS_GAIN, message


def expected_hold(spec: Rebalance, observed_s: float, gain: float, drift: float) -> float:
    """Seconds for which a gain is expected to last: until drift has used it up, within what can be known and is set."""
    longest = min(spec.max_hold_s, observed_s)
    if gain <= 0.0:
        return 0.0
    return min(longest, gain / drift) if drift > 0.0 else longest


def benefit(gain: float, drift: float, hold_s: float) -> float:
    """Seconds of serving gained: the integral of gain - drift · t over the hold."""
    return max(0.0, gain * hold_s - drift * hold_s**2 / 2)


def is_over_budget(spec: Rebalance, cost: Cost) -> bool:
    """Whether a plan moves more than a rebalancing may at a time."""
    too_many = spec.max_moves is not None and cost.moves > spec.max_moves
    return too_many or (spec.max_bytes is not None and cost.bytes > spec.max_bytes)


def stay(reason: Reason, message: str, history: History, imbalance: float | None = None) -> Decision:
    """Leave experts where they are; a rebalancing that goes on is over unless the reason is only a pause."""
    active = history.active and reason in PAUSES
    shown = percent_above(imbalance) if imbalance is not None else None
    return Decision(Action.STAY, reason, message, active, shown)


def percent_above(ratio: float) -> int:
    """A ratio to the average as the percentage above it."""
    return round(100.0 * (ratio - 1.0))
