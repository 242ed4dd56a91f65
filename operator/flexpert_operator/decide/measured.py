"""What a pool has measured, as the observation that `autoscale` decides from. Pure; `policies` keeps what came before.

Figures are sums over the pool's processes (`flexpert_proto.metrics` has their names); what happened between two looks
is their difference. A figure that nobody tells is NaN or nothing, and figures that did not come are stale: then sizes
are held.
"""

import math
from dataclasses import dataclass

from flexpert_operator.autoscale.observation import Counters, Observation, PoolCount
from flexpert_operator.autoscale.policy import Objectives
from flexpert_operator.decide.observation import Pool
from flexpert_proto.measuring import Figures

WAITING = ("ingress_waiting", "ingress_waiting_tokens", "engine_waiting", "engine_waiting_tokens", "engine_running")
"""Gauges of the requests that a pool without engines or workers cannot serve, and of their prompts."""


@dataclass(frozen=True)
class Look:
    """What a pool told at a moment of our clock."""

    at: float
    pool: Pool


def observation_of(
    now: float,
    look: Look | None,
    before: Look | None,
    engines: PoolCount,
    experts: PoolCount,
    reachable: float | None,
    scale_up_s: float,
    objectives: Objectives | None = None,
) -> Observation:
    """What a decision is made from.

    Args:
        now: Seconds since the epoch.
        look: What the pool told last; None where it tells nothing, or no figures.
        before: What it told at the last decision.
        engines: Engines ready, and those that hold devices.
        experts: The same of workers.
        reachable: Imbalance under the placement that the planner would choose; None where it was not asked.
        scale_up_s: Measured time from a decision to ready members.
        objectives: By which requests are judged; None judges none.
    """
    figures = look.pool.figures if look is not None else None
    if look is None or figures is None:
        return Observation(now, engines, experts, scale_up_s=scale_up_s)
    earlier = before.pool.figures if before is not None else None
    since = figures.minus(earlier)
    steps = since.histogram("engine_step_seconds")
    dispatch_s = since.histogram("engine_dispatch_seconds").mean
    imbalance = mean_of(look.pool.layer_imbalance)
    judged, late = judged_of(since, objectives) if earlier is not None and objectives is not None else (0.0, 0.0)
    return Observation(
        at=now,
        engines=engines,
        experts=experts,
        measured_at=look.at,
        counters=Counters(
            figures.counter("ingress_requests"),
            figures.counter("ingress_prompt_tokens"),
            figures.counter("ingress_finished_requests"),
            figures.counter("ingress_finished_tokens"),
        ),
        running=running_of(since),
        step_sequences=step_sequences_of(since, engines.ready),
        queued=figures.gauge("ingress_waiting") + figures.gauge("engine_waiting"),
        queued_tokens=figures.gauge("ingress_waiting_tokens") + figures.gauge("engine_waiting_tokens"),
        prefill_tokens=ratio(since.counter("engine_prefill_tokens"), steps.count, 0.0) * engines.ready,
        engine_step_s=steps.mean - dispatch_s if dispatch_s <= steps.mean else math.nan,
        expert_step_s=dispatch_s,
        engine_utilisation=ratio(since.counter("engine_busy_seconds"), since.counter("engine_up_seconds")),
        worker_utilisation=ratio(since.counter("worker_busy_seconds"), since.counter("worker_up_seconds")),
        kv_used=ratio(figures.gauge("engine_kv_used_bytes"), figures.gauge("engine_kv_bytes")),
        imbalance=imbalance,
        reachable_imbalance=min(imbalance, reachable) if reachable is not None else imbalance,
        scale_up_s=scale_up_s,
        judged=judged,
        late=late,
    )


def judged_of(since: Figures, objectives: Objectives) -> tuple[float, float]:
    """Requests of which a time was measured that has an objective, and how many missed one: each miss counts."""
    judged = late = 0.0
    for name, limit_s in (
        ("ingress_ttft_seconds", objectives.ttft_s),
        ("ingress_tpot_seconds", objectives.tpot_s),
        ("ingress_queue_seconds", objectives.queue_wait_s),
    ):
        measured = since.histogram(name)
        if limit_s is not None and measured.count:
            judged = max(judged, measured.count)
            late += measured.count * (1.0 - measured.share_within(limit_s))
    return judged, min(late, judged)


def running_of(since: Figures) -> float:
    """Sequences that engines generate for, on average since the last look; those that engines hold now at least."""
    mean = ratio(since.counter("engine_sequence_seconds"), since.at - since.since, 0.0)
    return max(mean, since.gauge("engine_running"))


def step_sequences_of(since: Figures, engines: int) -> float:
    """The same by steps, not by time; NaN where none was made."""
    steps = since.histogram("engine_step_tokens")
    return ratio(max(steps.total - since.counter("engine_prefill_tokens"), 0.0), steps.count) * engines


def ratio(part: float, whole: float, otherwise: float = math.nan) -> float:
    """A part of something; `otherwise` where there is nothing."""
    return part / whole if whole > 0 else otherwise


def mean_of(layers: tuple[float, ...]) -> float:
    """Mean over the layers that had tokens; 1 where none had."""
    seen = [one for one in layers if math.isfinite(one) and one >= 1.0]
    return sum(seen) / len(seen) if seen else 1.0


def waits(pool: Pool) -> bool:
    """Whether there is a request that a pool without engines or workers cannot serve: in an ingress or in an engine."""
    figures = pool.figures
    return figures is not None and sum(figures.gauge(name) for name in WAITING) > 0
