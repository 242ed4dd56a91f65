"""What an ingress measures: times as clients see them, also across engines that die. Counted per request alone.

`intake.py` and `balancer.py` count, `server.py` reads for Prometheus and for the pool controller.
"""

from collections.abc import Callable, Mapping

from flexpert_proto.measuring import Figures, Recorder
from flexpert_proto.metrics import INGRESS
from flexpert_workers.ingress.streams import Stream


class IngressMeter:
    """Counts for one ingress, on its event loop.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._began = clock()
        self._recorder = Recorder(INGRESS)
        buckets, self._counters = self._recorder.buckets, self._recorder.counters
        self._ttft, self._tpot = buckets["ingress_ttft_seconds"], buckets["ingress_tpot_seconds"]
        self._queue = buckets["ingress_queue_seconds"]

    def accepted(self, stream: Stream, arrived_at: float) -> None:
        """A valid request has a stream."""
        stream.arrived_at = arrived_at
        self._counters["ingress_prompt_tokens"] += len(stream.request.prompt_ids)

    def submitted(self, stream: Stream) -> None:
        """An engine was sent the request for the first time."""
        self._queue.observe(self.clock() - stream.arrived_at)

    def first_token(self, stream: Stream) -> None:
        """The stream has its first new tokens."""
        stream.first_at = self.clock()
        stream.first_output = len(stream.output_ids)
        self._ttft.observe(stream.first_at - stream.arrived_at)

    def ended(self, stream: Stream) -> None:
        """The stream ended, however."""
        if stream.first_at is None:
            return
        self._counters["ingress_finished_requests"] += 1
        self._counters["ingress_finished_tokens"] += len(stream.output_ids) - len(stream.request.resume_ids)
        tokens = len(stream.output_ids) - stream.first_output
        if tokens > 0:
            self._tpot.observe((self.clock() - stream.first_at) / tokens)

    def read(self, gauges: Mapping[str, float], counters: Mapping[str, float]) -> Figures:
        """The figures now, with what others count."""
        return self._recorder.read(gauges, {**counters, "ingress_up_seconds": self.clock() - self._began})
