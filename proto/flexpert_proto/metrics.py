"""What engines, workers and ingresses measure: every figure's name, kind, meaning and buckets, once.

They count with `measuring.Recorder`, the pool controller adds up and tells (`Pool.figures`, `/metrics`), and whoever
reads finds the same names. In Prometheus a figure is called `flexpert_` and its name; a counter ends in `_total`.
"""

from dataclasses import dataclass
from enum import Enum

SECONDS = tuple(float(f"{step}e{power}") for power in range(-4, 3) for step in (1, 1.5, 2, 3, 5, 7))
"""From 100 µs to 700 s, six a decade: a percentile is told within a fifth of itself."""
SIZES = (1.0, *(float(size) for power in range(1, 15) for size in (2**power, 3 * 2**power // 2)))
RATIOS = tuple(step / 20 for step in range(1, 21))


class Kind(Enum):
    """How a figure behaves."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """One figure.

    Attributes:
        bounds: Of a histogram's buckets, each inclusive; one more bucket has no bound.
        by_size: The histogram also knows the seconds that were spent on the observations of each bucket.
    """

    name: str
    kind: Kind
    meaning: str
    bounds: tuple[float, ...] = ()
    by_size: bool = False

    @property
    def exposed(self) -> str:
        """Its name in Prometheus."""
        return f"flexpert_{self.name}{'_total' if self.kind is Kind.COUNTER else ''}"


def _counters(**meanings: str) -> tuple[Metric, ...]:
    return tuple(Metric(name, Kind.COUNTER, meaning) for name, meaning in meanings.items())


def _gauges(**meanings: str) -> tuple[Metric, ...]:
    return tuple(Metric(name, Kind.GAUGE, meaning) for name, meaning in meanings.items())


def _histogram(name: str, bounds: tuple[float, ...], meaning: str, by_size: bool = False) -> Metric:
    return Metric(name, Kind.HISTOGRAM, meaning, bounds, by_size)


ENGINE = (
    *_counters(
        engine_requests="Requests that engines let in",
        engine_prompt_tokens="Prompt tokens of these",
        engine_cached_tokens="Prompt tokens that were found in the prefix cache",
        engine_generated_tokens="Tokens that engines generated",
        engine_finished_requests="Requests that engines ended with a finish reason",
        engine_prefill_tokens="Prompt tokens that engines' steps computed",
        engine_sequence_seconds="Sequences in an engine's steps times these steps' seconds",
        engine_busy_seconds="Seconds that engines spent in steps",
        engine_up_seconds="Seconds that engines have been up",
        engine_abandoned_steps="Steps that were abandoned since experts did not answer",
        engine_preemptions="Requests that gave their KV memory back to be computed again",
    ),
    *_gauges(
        engine_running="Requests that hold KV memory",
        engine_waiting="Requests that wait in engines",
        engine_waiting_tokens="Prompt tokens of these",
        engine_kv_bytes="KV memory",
        engine_kv_used_bytes="KV memory that requests hold",
    ),
    _histogram("engine_ttft_seconds", SECONDS, "From a request's arrival at an engine to its first token"),
    _histogram("engine_tpot_seconds", SECONDS, "Mean time between a request's tokens, at the engine"),
    _histogram("engine_queue_seconds", SECONDS, "From a request's arrival at an engine to its first step"),
    _histogram("engine_step_seconds", SECONDS, "Time of a step"),
    _histogram("engine_dispatch_seconds", SECONDS, "Time in a step for which its experts were dispatched and awaited"),
    _histogram("engine_step_tokens", SIZES, "Tokens in a step", by_size=True),
    _histogram("engine_kv_use_ratio", RATIOS, "Part of the KV memory that requests hold, of each step"),
)

WORKER = (
    *_counters(
        worker_busy_seconds="Seconds in which workers computed",
        worker_up_seconds="Seconds that workers have been up",
        worker_pairs="Pairs of a token and an expert that workers computed",
        worker_refusals="Dispatches that a worker did not compute: it lacked an expert, or they were not for it",
    ),
    _histogram("worker_service_seconds", SECONDS, "Time of a dispatch in a worker"),
    _histogram("worker_rows", SIZES, "Rows of a dispatch in a worker", by_size=True),
)

INGRESS = (
    *_counters(
        ingress_requests="Requests that arrived, those included that were refused",
        ingress_prompt_tokens="Prompt tokens of those that were valid",
        ingress_tokens="Tokens that ingresses received of engines",
        ingress_finished_requests="Requests that ended after a token at least",
        ingress_finished_tokens="Tokens that were generated for these",
        ingress_resubmissions="Times that a request was submitted to an engine again",
        ingress_stalled="Clients that were cut off since they took nothing of their streams",
        ingress_up_seconds="Seconds that ingresses have been up",
    ),
    *_gauges(
        ingress_streams="Streams that are open",
        ingress_waiting="Requests that wait for an engine",
        ingress_waiting_tokens="Prompt tokens of these",
        ingress_predicted_wait_seconds="How long a request that comes now is expected to wait",
        ingress_engines="Engines that ingresses are connected with",
    ),
    _histogram("ingress_ttft_seconds", SECONDS, "From a request's arrival to its first token: time to first token"),
    _histogram("ingress_tpot_seconds", SECONDS, "Mean time between a request's tokens: time per output token"),
    _histogram("ingress_queue_seconds", SECONDS, "From a request's arrival until an engine was sent it"),
)

BY_NAME = {metric.name: metric for metric in (*ENGINE, *WORKER, *INGRESS)}
