"""The decision of autoscaling: `(observation, state, policy) → (decision, state)`, pure.

One after the other: learn from the observation (`fit`, `demand`), ask the queueing model for the cheapest pools that
keep the objectives, raise them to floors, keep them within bounds, and go there as fast as behavior and budget allow.
"""

import math
from dataclasses import dataclass, replace
from typing import TypeVar

from flexpert_operator.autoscale import calm
from flexpert_operator.autoscale.cost import GrowthCost
from flexpert_operator.autoscale.observation import Observation, finite, is_sound
from flexpert_operator.autoscale.policy import Behavior, Bounds, Policy
from flexpert_operator.autoscale.queueing import Demand, Need, need
from flexpert_operator.autoscale.schedule import floors
from flexpert_operator.autoscale.sizes import (
    Change,
    Sizes,
    Wish,
    held,
    in_grains,
    limited,
    stabilised,
    trimmed,
    within_budget,
)
from flexpert_operator.autoscale.state import Decision, Limit, State

HOT = 1.15
"""Imbalance over what a new placement would have, from which a replica is the cure."""

_Event = TypeVar("_Event", Wish, Change)

REMEMBERED_S = 3600.0
MOST_REMEMBERED = 1024


@dataclass(frozen=True)
class _Wanted:
    """What should be, and why.

    Attributes:
        lasting: Without what is wanted only until what waits is served.
    """

    sizes: Sizes
    lasting: Sizes
    why: str
    bottleneck: str = "experts"
    limits: frozenset[Limit] = frozenset()
    hot: bool = False
    wakes: bool = False


def decide(observation: Observation, state: State, policy: Policy) -> tuple[Decision, State]:
    """How many engines and workers there should be from now on.

    Args:
        observation: What is seen; anything in it may be missing or absurd.
        state: What the last decision left behind.
        policy: What is wanted; `policy.check` has passed it.

    Returns:
        The decision, and the state for the next one.
    """
    at = _time(observation, state, policy)
    if state.at is not None and abs(at - state.at) > policy.stale.safe_after_s:
        state = _begun_anew(state)
    observation = replace(observation, at=at, scale_up_s=min(finite(observation.scale_up_s, 30.0), 3600.0))
    present = _present(observation, state, policy)
    if policy.pause:
        return Decision(present, present, "paused", limits=frozenset({Limit.PAUSED}), acts=False), replace(state, at=at)
    state = _learnt(observation, state, policy)
    wanted = _stale(observation, state, policy, present) or _wanted(observation, state, policy, present)
    sizes, limits, state = _step(observation, state, policy, present, wanted)
    decision = Decision(
        sizes=sizes,
        wanted=wanted.sizes,
        reason=_sentence(present, sizes, wanted, limits),
        bottleneck=wanted.bottleneck,
        limits=limits,
        rebalance=wanted.hot,
        acts=not policy.dry_run,
    )
    change = Change(at, sizes.engines - present.engines, sizes.experts - present.experts)
    changes = state.changes if not (change.engines or change.experts) else (*state.changes, change)
    return decision, replace(state, at=at, sizes=sizes, changes=_lately(changes, at))


def _time(observation: Observation, state: State, policy: Policy) -> float:
    """Now; a clock that went back a little stands still until it has caught up."""
    before = state.at
    at = finite(observation.at, before or 0.0)
    return at if before is None or before - at > policy.stale.safe_after_s else max(at, before)


def _begun_anew(state: State) -> State:
    """After a leap of the clock, or long without a look: what was fitted and the season stay, times do not."""
    traffic = replace(state.traffic, at=None, samples=())
    cost = GrowthCost(state.cost.device_s)
    return replace(state, at=None, fresh_at=None, traffic=traffic, wishes=(), changes=(), returns=(), cost=cost)


def _present(observation: Observation, state: State, policy: Policy) -> Sizes:
    if state.sizes is not None and not policy.dry_run:
        return state.sizes
    return Sizes(observation.engines.existing, observation.experts.existing)


def _is_fresh(observation: Observation, policy: Policy) -> bool:
    measured = observation.measured_at
    return measured is not None and observation.at - finite(measured, -1e18, -1e18) <= policy.stale.after_s


def _learnt(observation: Observation, state: State, policy: Policy) -> State:
    if not _is_fresh(observation, policy) or not is_sound(observation):
        return state if state.fresh_at is not None else replace(state, fresh_at=observation.at)
    percentile = policy.objectives.percentile
    newer = state.traffic.at is None or observation.looked_at > state.traffic.at
    carried_out = state.sizes if newer and not policy.dry_run else None
    return replace(
        state,
        fit=state.fit.updated(observation) if newer else state.fit,
        traffic=state.traffic.updated(observation, policy.forecast),
        kept=state.kept.updated(observation, percentile) if newer and not policy.dry_run else state.kept,
        cost=state.cost.updated(observation, carried_out, state.fit, policy) if carried_out else state.cost,
        fresh_at=observation.at,
    )


def _stale(observation: Observation, state: State, policy: Policy, present: Sizes) -> _Wanted | None:
    """Without fresh metrics: hold, and after a while not less than the safe floor. None when they are fresh."""
    if _is_fresh(observation, policy) and is_sound(observation):
        return None
    since = observation.at - (state.fresh_at if state.fresh_at is not None else observation.at)
    sizes, why = present, f"no fresh metrics for {since:.0f} s, so sizes are held"
    if since >= policy.stale.safe_after_s:
        sizes = _at_least(present, Sizes(policy.stale.engines, policy.stale.experts))
        why = f"no fresh metrics for {since:.0f} s, so sizes are held, at the safe floor at least"
    sizes = _bounded(_at_least(sizes, floors(policy.schedule, observation.at, observation.scale_up_s)), policy)
    return _Wanted(sizes, sizes, why, limits=frozenset({Limit.STALE}))


def _wanted(observation: Observation, state: State, policy: Policy, present: Sizes) -> _Wanted:
    """What the objectives ask for, with floors and bounds."""
    demand = state.traffic.demand(observation, policy.forecast)
    floor = floors(policy.schedule, observation.at, finite(observation.scale_up_s, 0.0))
    least = Sizes(max(policy.engines.minimum, floor.engines), max(policy.experts.minimum, floor.experts))
    least = _at_least(least, Sizes(_for_memory(observation, policy), 0))
    if _is_idle(observation, state, policy):
        none = _bounded(least, policy)
        return _Wanted(none, none, f"idle for {policy.idle.after_s if policy.idle else 0:.0f} s")
    reachable = max(finite(observation.reachable_imbalance, 1.0, 1.0), 1.0)
    service, most = state.fit.service(), (policy.engines.maximum, policy.experts.maximum)
    aimed = replace(policy, objectives=state.kept.aimed(policy.objectives))
    lasts = found = need(service, demand, aimed, reachable, most, present.engines)
    backlog = state.traffic.backlog(observation)
    if not backlog.is_none:
        demand += backlog
        found = need(service, demand, aimed, reachable, most, present.engines)
    sizes, lasting = (_bounded(_at_least(Sizes(one.engines, one.experts), least), policy) for one in (found, lasts))
    hot = finite(observation.imbalance, 1.0, 1.0) > HOT * reachable and sizes.experts <= observation.experts.ready
    limits = frozenset() if found.is_enough else frozenset({_what_lacks(found, policy)})
    wakes = observation.engines.existing == 0 or observation.experts.existing == 0
    return _Wanted(sizes, lasting, _why(demand, found), found.bottleneck, limits, hot, wakes and not demand.is_none)


def _for_memory(observation: Observation, policy: Policy) -> int:
    """Engines over which the KV memory in use would be spread as the objective has it; 0 where nothing is known."""
    limit, used = policy.objectives.kv_utilisation, finite(observation.kv_used, 0.0)
    return 0 if limit is None else math.ceil(observation.engines.ready * min(used, 1.0) / limit - 1e-9)


def _is_idle(observation: Observation, state: State, policy: Policy) -> bool:
    if policy.idle is None or observation.running > 0 or observation.queued > 0:
        return False
    active_at = state.traffic.active_at
    return active_at is None or observation.at - active_at >= policy.idle.after_s


def _step(
    observation: Observation, state: State, policy: Policy, present: Sizes, wanted: _Wanted
) -> tuple[Sizes, frozenset[Limit], State]:
    """How far towards what is wanted it goes now."""
    at = observation.at
    before = state.wishes or (Wish(at, present, present),)  # who knows nothing yet does not shrink what is there
    if Limit.STALE not in wanted.limits:
        state = _returned(replace(state, wishes=before), wanted.lasting, observation, policy)
    state = replace(state, wishes=_lately((*before, Wish(at, wanted.sizes, wanted.lasting)), at))
    quiet = wanted.sizes if wanted.wakes else _calm(observation, state, policy, present, wanted)
    slow = Sizes(
        _limited(state, at, present.engines, quiet.engines, policy.engines_behavior, "engines"),
        _limited(state, at, present.experts, quiet.experts, policy.experts_behavior, "experts"),
    )
    slow = trimmed(_bounded(slow, policy), policy, wanted.bottleneck)
    existing = Sizes(observation.engines.existing, observation.experts.existing)
    sizes = within_budget(present, existing, slow, policy, wanted.bottleneck)
    limits = set(wanted.limits)
    if quiet != wanted.sizes:
        limits.add(Limit.STABILISED)
    if slow != quiet:
        limits.add(Limit.RATE)
    if sizes != slow:
        limits.add(Limit.BUDGET)
    return sizes, frozenset(limits), state


def _returned(state: State, wanted: Sizes, observation: Observation, policy: Policy) -> State:
    """Remembers for how long there had been no need for as much as now."""
    at = observation.at
    needed = ((one.at, one.lasting.devices(policy)) for one in reversed(state.wishes))
    absence_s = calm.absence_s(needed, wanted.devices(policy), at, observation.scale_up_s)
    newest = calm.Return(at, state.traffic.newest, absence_s)
    return replace(state, returns=tuple(one for one in (*state.returns, newest) if one.at > at - calm.REMEMBERED_S))


def _calm(observation: Observation, state: State, policy: Policy, present: Sizes, wanted: _Wanted) -> Sizes:
    """Stabilised: by the policy's windows, or where it has none by the one that is learnt, for both pools together."""
    at, percentile = observation.at, policy.objectives.percentile
    least_s = calm.least_s(observation.scale_up_s, state.cost.device_s)
    learnt_s = calm.window_s(state.returns, at - state.wishes[0].at, least_s, percentile)
    together = held(state.wishes, wanted.sizes, at - learnt_s, policy, present)
    found = Sizes(
        _stabilised(state, at, present.engines, together.engines, policy.engines_behavior, least_s, "engines"),
        _stabilised(state, at, present.experts, together.experts, policy.experts_behavior, least_s, "experts"),
    )
    return _in_turn(observation, state, policy, present, found, least_s)


def _stabilised(
    state: State, at: float, size: int, together: int, behavior: Behavior, least_s: float, pool: str
) -> int:
    """One pool's size; what has just grown does not shrink within the window for shrinking."""
    fixed_s = behavior.down.stabilisation_s
    if fixed_s is None:
        wished = [(at, together)]
    else:
        wished = [(one.at, int(getattr(one.sizes, pool))) for one in state.wishes]
    window_s = least_s if fixed_s is None else fixed_s
    found = stabilised(size, wished, at, behavior.up, behavior.down, window_s)
    found = found if fixed_s is not None else in_grains(size, found)
    grew = any(getattr(one, pool) > 0 for one in state.changes if one.at > at - window_s)
    return size if found < size and grew else found


def _in_turn(
    observation: Observation, state: State, policy: Policy, present: Sizes, found: Sizes, least_s: float
) -> Sizes:
    """Where one pool takes over from the other, the one goes when the other has come, if the budget has room."""
    late = [one for one in state.changes if one.at > observation.at - least_s]
    engines_come = found.engines > present.engines or (
        observation.engines.ready < present.engines and any(one.engines > 0 for one in late)
    )
    experts_come = found.experts > present.experts or (
        observation.experts.ready < present.experts and any(one.experts > 0 for one in late)
    )
    both = Sizes(
        max(found.engines, present.engines if experts_come else 0),
        max(found.experts, present.experts if engines_come else 0),
    )
    return both if policy.devices is None or both.devices(policy) <= policy.devices else found


def _limited(state: State, at: float, size: int, wanted: int, behavior: Behavior, pool: str) -> int:
    changed = [(one.at, int(getattr(one, pool))) for one in state.changes]
    return limited(size, wanted, changed, at, behavior.up if wanted > size else behavior.down)


def _lately(events: tuple[_Event, ...], at: float) -> tuple[_Event, ...]:
    return tuple(one for one in events if one.at > at - REMEMBERED_S)[-MOST_REMEMBERED:]


def _at_least(one: Sizes, other: Sizes) -> Sizes:
    return Sizes(max(one.engines, other.engines), max(one.experts, other.experts))


def _bounded(sizes: Sizes, policy: Policy) -> Sizes:
    return Sizes(_clamped(sizes.engines, policy.engines), _clamped(sizes.experts, policy.experts))


def _clamped(size: int, bounds: Bounds) -> int:
    return min(max(size, bounds.minimum), bounds.maximum)


def _what_lacks(found: Need, policy: Policy) -> Limit:
    at_bounds = found.engines >= policy.engines.maximum and found.experts >= policy.experts.maximum
    return Limit.BOUNDS if at_bounds or policy.devices is None else Limit.BUDGET


def _why(demand: Demand, found: Need) -> str:
    if demand.is_none:
        return "nothing comes"
    tokens = f"{demand.prompt:.0f} prompt and {demand.generated:.0f} generated tokens/s"
    other = "" if found.is_enough else ", which is more than bounds and budget allow"
    need_of = f"{demand.requests:.3g} requests/s ({tokens}) need {Sizes(found.engines, found.experts)}{other}"
    return f"{need_of}; the bottleneck is the {found.bottleneck}"


def _sentence(present: Sizes, sizes: Sizes, wanted: _Wanted, limits: frozenset[Limit]) -> str:
    does = f"{present} stay" if sizes == present else f"from {present} to {sizes}"
    held = "" if sizes == wanted.sizes or not limits else f" ({', '.join(sorted(limits))})"
    hot = "; an expert is hot: a replica cures that, not a worker" if wanted.hot else ""
    return f"{does}{held}: {wanted.why}{hot}"
