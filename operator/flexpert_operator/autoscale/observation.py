"""What a decision is made from: plain numbers, as engines and workers measured them. Any may be missing or absurd.

Counters only ever grow, but for a process that starts anew; gauges are means since the last observation.
"""

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PoolCount:
    """The members of a pool.

    Attributes:
        ready: Those that serve.
        existing: Those that hold devices: ready, starting or about to go.
    """

    ready: int
    existing: int


@dataclass(frozen=True)
class Counters:
    """Totals since some moment in the past, over all engines.

    Attributes:
        requests: That arrived.
        prompt_tokens: Theirs.
        finished: Requests that ended.
        finished_tokens: Generated for these.
    """

    requests: float = 0.0
    prompt_tokens: float = 0.0
    finished: float = 0.0
    finished_tokens: float = 0.0


@dataclass(frozen=True)
class Observation:
    """One look at a MoEDeployment.

    Attributes:
        at: When the decision is made, in seconds since the epoch.
        measured_at: When the figures below were measured; None when nothing could be.
        running: Sequences that engines generate for, all together.
        step_sequences: The same in an average step, which weighs short steps as much as long ones, as the times of
            steps below do; NaN where only `running` is known.
        queued: Requests that no engine has begun.
        queued_tokens: Their prompts' tokens.
        prefill_tokens: Prompt tokens in an average step, all engines together.
        engine_step_s: Time of an engine's step without that which it waits for workers.
        expert_step_s: Time of a step in which an engine waits for workers, all layers together.
        engine_utilisation: Part of the time in which engines are busy with tokens.
        worker_utilisation: The same of workers.
        kv_used: Part of the engines' KV memory in use.
        imbalance: The busiest worker's load over the average one.
        reachable_imbalance: The same under the placement that the planner would choose for these workers.
        scale_up_s: Measured time from a decision to a ready engine or worker, the longer one.
        judged: Requests of which it was seen since the last look whether they got what the objectives ask for.
        late: Those that did not.
    """

    at: float
    engines: PoolCount
    experts: PoolCount
    measured_at: float | None = None
    counters: Counters = field(default_factory=Counters)
    running: float = 0.0
    step_sequences: float = math.nan
    queued: float = 0.0
    queued_tokens: float = 0.0
    prefill_tokens: float = 0.0
    engine_step_s: float = math.nan
    expert_step_s: float = math.nan
    engine_utilisation: float = math.nan
    worker_utilisation: float = math.nan
    kv_used: float = math.nan
    imbalance: float = 1.0
    reachable_imbalance: float = 1.0
    scale_up_s: float = 30.0
    judged: float = 0.0
    late: float = 0.0

    @property
    def looked_at(self) -> float:
        """When the figures are of; never later than now, whatever a clock elsewhere says."""
        return self.at if self.measured_at is None else min(self.measured_at, self.at)


def finite(value: float, other: float, least: float = 0.0) -> float:
    """The value where it is a number, `least` at least; `other` where it is not."""
    return max(value, least) if math.isfinite(value) else other


def is_sound(observation: Observation) -> bool:
    """Whether what demand is computed from are numbers."""
    counters = observation.counters
    numbers = (
        counters.requests,
        counters.prompt_tokens,
        counters.finished,
        counters.finished_tokens,
        observation.running,
        observation.queued,
        observation.queued_tokens,
    )
    return all(math.isfinite(number) and number >= 0 for number in numbers)
