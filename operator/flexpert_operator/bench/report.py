"""The numbers of a load, and the lines that `vllm bench serve` prints them in. Pure.

Time per output token (TPOT) is a request's time after its first token over its other tokens; inter-token latency (ITL)
is every single gap between two pieces; goodput counts the requests that meet all objectives.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flexpert_operator.bench.clients import Answer
from flexpert_operator.bench.drive import Run

TITLES = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
    "client_queue_time": ("Client Queue Time", "Client-side Queueing"),
}
OBJECTIVES = ("ttft", "tpot", "e2el")
_WIDTH = 50


@dataclass(frozen=True)
class Wanted:
    """What is to be told.

    Attributes:
        metrics: Those whose percentiles are told, of `TITLES`.
        percentiles: From 0 to 100.
        goodput: Milliseconds that each of `OBJECTIVES` may take.
    """

    metrics: Sequence[str]
    percentiles: Sequence[float]
    goodput: Mapping[str, float]
    request_rate: float
    max_concurrency: int | None


def ttft(answer: Answer) -> float:
    """Seconds to the first piece."""
    return answer.pieces[0] - answer.sent


def latency(answer: Answer) -> float:
    """Seconds to the last piece."""
    return answer.pieces[-1] - answer.sent


def tpot(answer: Answer) -> float:
    """Seconds a token after the first; 0 for an answer of one."""
    return (latency(answer) - ttft(answer)) / (answer.output_tokens - 1) if answer.output_tokens > 1 else 0.0


def gaps(answer: Answer) -> list[float]:
    """Seconds between pieces."""
    return [later - earlier for earlier, later in zip(answer.pieces, answer.pieces[1:], strict=False)]


def result_of(run: Run, wanted: Wanted) -> dict[str, Any]:
    """The numbers, by the names in vLLM's result files; times of requests in seconds, summaries in milliseconds."""
    good = [answer for answer in run.answers if not answer.error and answer.pieces]
    tokens, prompts = sum(one.output_tokens for one in good), sum(prompt_lengths(run))
    met = sum(meets(answer, wanted.goodput) for answer in good)
    result: dict[str, Any] = {
        "duration": run.seconds,
        "completed": len(good),
        "failed": len(run.answers) - len(good),
        "total_input_tokens": prompts,
        "total_output_tokens": tokens,
        "request_throughput": len(good) / run.seconds,
        "request_goodput": met / run.seconds if wanted.goodput else None,
        "output_throughput": tokens / run.seconds,
        "total_token_throughput": (prompts + tokens) / run.seconds,
        "max_output_tokens_per_s": peak_tokens(good),
        "max_concurrent_requests": peak_requests(good),
        "max_send_delay_ms": 1000 * run.late_s,
    }
    for name, values in samples(good, wanted).items():
        result |= summary(name, values, wanted.percentiles)
    return result


def details_of(run: Run) -> dict[str, Any]:
    """Every request's times in seconds and its text, as `--save-detailed` of vLLM writes them."""
    begun = min((answer.sent for answer in run.answers), default=0.0)
    failed = [bool(answer.error or not answer.pieces) for answer in run.answers]
    return {
        "input_lens": prompt_lengths(run, failed_too=True),
        "output_lens": [answer.output_tokens for answer in run.answers],
        "ttfts": [0.0 if bad else ttft(answer) for bad, answer in zip(failed, run.answers, strict=True)],
        "itls": [gaps(answer) for answer in run.answers],
        "latencies": [0.0 if bad else latency(answer) for bad, answer in zip(failed, run.answers, strict=True)],
        "start_times": [answer.sent - begun for answer in run.answers],
        "queue_times": [answer.queued_s for answer in run.answers],
        "generated_texts": ["".join(answer.text) for answer in run.answers],
        "errors": [answer.error for answer in run.answers],
    }


def samples(good: Sequence[Answer], wanted: Wanted) -> dict[str, list[float]]:
    """Seconds of each metric that is asked for."""
    found = {
        "ttft": [ttft(one) for one in good],
        "tpot": [tpot(one) for one in good if one.output_tokens > 1],
        "itl": [gap for one in good for gap in gaps(one)],
        "e2el": [latency(one) for one in good],
    }
    found = {name: found[name] for name in TITLES if name in wanted.metrics and name in found}
    queued = {"client_queue_time": [one.queued_s for one in good]} if wanted.max_concurrency else {}
    return found | queued


def prompt_lengths(run: Run, failed_too: bool = False) -> list[int]:
    """Tokens of the prompts, as the server counted, else as was meant."""
    pairs = zip(run.asks, run.answers, strict=True)
    return [one.prompt_tokens or ask.prompt_tokens for ask, one in pairs if failed_too or not one.error]


def meets(answer: Answer, goodput: Mapping[str, float]) -> bool:
    """Whether a request meets all objectives (milliseconds)."""
    took = {"ttft": ttft(answer), "tpot": tpot(answer), "e2el": latency(answer)}
    return all(1000 * took[name] <= most for name, most in goodput.items())


def summary(name: str, values: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    """Mean, median, deviation and percentiles in milliseconds; 0 where there is none."""
    ms = 1000 * np.array(values or [0.0])
    found = {f"mean_{name}_ms": ms.mean(), f"median_{name}_ms": np.median(ms), f"std_{name}_ms": ms.std()}
    found |= {f"p{word(p)}_{name}_ms": np.percentile(ms, p) for p in percentiles}
    return {key: float(value) for key, value in found.items()}


def peak_tokens(good: Sequence[Answer]) -> float:
    """Most pieces that came within one second of the clock that starts with the first request."""
    if not good:
        return 0.0
    begun = min(one.sent for one in good)
    seconds = np.array([int(at - begun) for one in good for at in one.pieces])
    return float(np.bincount(seconds).max())


def peak_requests(good: Sequence[Answer]) -> int:
    """Most requests that were open at once."""
    changes = sorted([*((one.sent, 1) for one in good), *((one.ended, -1) for one in good)])
    return int(np.cumsum([change for _, change in changes]).max()) if changes else 0


def word(percentile: float) -> str:
    """99 for 99.0, 99.9 for 99.9."""
    return f"{percentile:g}"


def lines_of(result: Mapping[str, Any], wanted: Wanted) -> Iterator[str]:
    """What is printed."""
    yield " Serving Benchmark Result ".center(_WIDTH, "=")
    yield line("Successful requests:", result["completed"])
    yield line("Failed requests:", result["failed"])
    if wanted.max_concurrency is not None:
        yield line("Maximum request concurrency:", wanted.max_concurrency)
    if not math.isinf(wanted.request_rate):
        yield line("Request rate configured (RPS):", wanted.request_rate)
    yield line("Benchmark duration (s):", result["duration"])
    yield line("Total input tokens:", result["total_input_tokens"])
    yield line("Total generated tokens:", result["total_output_tokens"])
    yield line("Request throughput (req/s):", result["request_throughput"])
    if result["request_goodput"] is not None:
        yield line("Request goodput (req/s):", result["request_goodput"])
    yield line("Output token throughput (tok/s):", result["output_throughput"])
    yield line("Peak output token throughput (tok/s):", result["max_output_tokens_per_s"])
    yield line("Peak concurrent requests:", float(result["max_concurrent_requests"]))
    yield line("Total token throughput (tok/s):", result["total_token_throughput"])
    for name, (short, title) in TITLES.items():
        if f"mean_{name}_ms" in result:
            yield title.center(_WIDTH, "-")
            yield line(f"Mean {short} (ms):", result[f"mean_{name}_ms"])
            yield line(f"Median {short} (ms):", result[f"median_{name}_ms"])
            for p in wanted.percentiles:
                yield line(f"P{word(p)} {short} (ms):", result[f"p{word(p)}_{name}_ms"])
    yield "=" * _WIDTH


def line(title: str, value: float) -> str:
    """One line, in the columns of vLLM's."""
    return f"{title:<40} {value:<10.2f}" if isinstance(value, float) else f"{title:<40} {value:<10}"
