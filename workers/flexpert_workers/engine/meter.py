"""What an engine measures of itself. The loop and the service count, the lease's thread reads.

Per step and per request only: a token costs nothing.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from flexpert_proto.measuring import Figures, Recorder
from flexpert_proto.metrics import ENGINE
from flexpert_workers.engine.request import Request
from flexpert_workers.engine.scheduler import Scheduled
from flexpert_workers.engine.spans import Dispatched, EngineSpans


class EngineMeter:
    """Counts for one engine; used by the loop's thread, but for `read`.

    Args:
        spans: Of the requests that are traced; None: none is.
        clock: Monotonic seconds.
    """

    def __init__(self, spans: EngineSpans | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._spans = spans
        self._clock = clock
        self._began = clock()
        self._recorder = Recorder(ENGINE)
        self._counters = self._recorder.counters
        buckets = self._recorder.buckets
        self._ttft, self._tpot = buckets["engine_ttft_seconds"], buckets["engine_tpot_seconds"]
        self._queue = buckets["engine_queue_seconds"]
        self._step, self._step_tokens = buckets["engine_step_seconds"], buckets["engine_step_tokens"]
        self._dispatch, self._kv_use = buckets["engine_dispatch_seconds"], buckets["engine_kv_use_ratio"]
        self._tokens = self._prefill = self._sequences = 0

    def arrived(self, request: Request) -> None:
        """A request was let in."""
        request.arrived_at = self._clock()
        self._counters["engine_requests"] += 1
        self._counters["engine_prompt_tokens"] += request.num_prompt
        if self._spans is not None and request.traceparent:
            self._spans.arrived(request)

    def scheduled(self, scheduled: Sequence[Scheduled]) -> None:
        """A step begins."""
        tokens = prefill = 0
        for request, num_tokens in scheduled:
            tokens += num_tokens
            if num_tokens > 1:
                prefill += num_tokens
            first = request.begun_at is None
            if first:
                self._begun(request)
            if self._spans is not None and request.span is not None:
                self._spans.scheduled(request, first)
        self._tokens, self._prefill, self._sequences = tokens, prefill, len(scheduled)

    def stepped(self, seconds: float, dispatch_s: float, kv_use: float, dispatches: Sequence[Dispatched] = ()) -> None:
        """The step that was scheduled last took so long, of which dispatches took their part."""
        if self._spans is not None:
            self._spans.stepped(dispatches)
        self._step.observe(seconds)
        self._step_tokens.observe(self._tokens, seconds)
        self._dispatch.observe(dispatch_s)
        self._kv_use.observe(kv_use)
        self._counters["engine_sequence_seconds"] += self._sequences * seconds
        self._counters["engine_prefill_tokens"] += self._prefill

    def first_token(self, request: Request) -> None:
        """A request has its first token since it came to this engine."""
        request.first_at = now = self._clock()
        request.first_output = request.num_output
        if request.num_output == 1:  # else it is one that an engine before this one has begun
            self._ttft.observe(now - request.arrived_at)

    def finished(self, request: Request) -> None:
        """A request ended with a finish reason."""
        self._counters["engine_finished_requests"] += 1
        tokens = request.num_output - request.first_output
        if request.first_at is not None and tokens > 0:
            self._tpot.observe((self._clock() - request.first_at) / tokens)

    def left(self, request: Request) -> None:
        """A request is over in this engine, however."""
        if self._spans is not None and request.span is not None:
            self._spans.left(request, self._clock())

    def read(self, gauges: Mapping[str, float], counters: Mapping[str, float]) -> Figures:
        """The figures now; `gauges` and further `counters` are as the engine's statistics have them."""
        own = {"engine_busy_seconds": self._step.total, "engine_up_seconds": self._clock() - self._began}
        return self._recorder.read(gauges, {**counters, **own})

    def _begun(self, request: Request) -> None:
        request.begun_at = now = self._clock()
        self._queue.observe(now - request.arrived_at)
        self._counters["engine_cached_tokens"] += request.num_cached or 0
