"""What an ingress measures: times as clients see them, also across engines that die. Counted per request alone.

`intake.py` and `balancer.py` count, `server.py` reads for Prometheus and for the pool controller.
"""

from collections.abc import Callable, Mapping

from flexpert_proto.measuring import Figures, Recorder
from flexpert_proto.metrics import INGRESS
from flexpert_proto.tracing import Attributes, Span, Tracing
from flexpert_workers.ingress.streams import Stream


class IngressMeter:
    """Counts for one ingress, on its event loop.

    Args:
        clock: Monotonic seconds.
        tracing: Where spans of requests go; None: nowhere.
    """

    def __init__(self, clock: Callable[[], float], tracing: Tracing | None = None) -> None:
        self.clock = clock
        self._tracing = tracing
        self._began = clock()
        self._recorder = Recorder(INGRESS)
        buckets, self._counters = self._recorder.buckets, self._recorder.counters
        self._ttft, self._tpot = buckets["ingress_ttft_seconds"], buckets["ingress_tpot_seconds"]
        self._queue = buckets["ingress_queue_seconds"]

    def accepted(self, stream: Stream, arrived_at: float) -> None:
        """A valid request has a stream."""
        stream.arrived_at = arrived_at
        self._counters["ingress_prompt_tokens"] += len(stream.request.prompt_ids)
        if self._tracing is not None:
            stream.span = self._begin(self._tracing, stream)

    def submitted(self, stream: Stream, engine: str, attempts: int) -> None:
        """An engine was sent the request, after so many attempts."""
        now = self.clock()
        if attempts == 0:
            self._queue.observe(now - stream.arrived_at)
        if stream.span is not None:
            name, since = ("queue", stream.arrived_at) if attempts == 0 else ("resubmission", now)
            stream.span.child(name, since, now, {"flexpert.engine": engine})

    def first_token(self, stream: Stream) -> None:
        """The stream has its first new tokens."""
        stream.first_at = self.clock()
        stream.first_output = len(stream.output_ids)
        self._ttft.observe(stream.first_at - stream.arrived_at)

    def ended(self, stream: Stream) -> None:
        """The stream ended, however."""
        if stream.span is not None:
            self._end(stream.span, stream)
        if stream.first_at is None:
            return
        self._counters["ingress_finished_requests"] += 1
        self._counters["ingress_finished_tokens"] += len(stream.output_ids) - len(stream.request.resume_ids)
        tokens = len(stream.output_ids) - stream.first_output
        if tokens > 0:
            self._tpot.observe((self.clock() - stream.first_at) / tokens)

    @staticmethod
    def _begin(tracing: Tracing, stream: Stream) -> Span:
        request, caller = stream.request, stream.caller
        attributes: Attributes = {
            "flexpert.request_id": caller.request_id,
            "flexpert.prompt_tokens": len(request.prompt_ids),
            "flexpert.max_tokens": request.sampling.max_tokens,
        }
        return tracing.begin("generate", caller.traceparent, stream.arrived_at, attributes, serving=True)

    def _end(self, span: Span, stream: Stream) -> None:
        now = self.clock()
        attributes: dict[str, str | int | float | bool] = {
            "flexpert.output_tokens": len(stream.output_ids),
            "flexpert.cached_tokens": stream.cached_tokens,
            "flexpert.finish": stream.finish.value if stream.finish is not None else "",
        }
        if stream.first_at is not None:
            attributes["flexpert.ttft_s"] = stream.first_at - stream.arrived_at
        span.end(now, attributes, "" if stream.finish is not None else "the stream ended before the request did")

    def read(self, gauges: Mapping[str, float], counters: Mapping[str, float]) -> Figures:
        """The figures now, with what others count."""
        return self._recorder.read(gauges, {**counters, "ingress_up_seconds": self.clock() - self._began})
