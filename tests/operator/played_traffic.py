"""Requests that exist only on paper, for a `SimulatedPool`: what a pool would measure that had to serve them."""

import threading
from collections.abc import Callable

from flexpert_proto import pool_pb2 as pb
from flexpert_proto.measuring import Figures, Histogram, figures_message

STEP_S, ENGINE_TOKEN_S, WORKER_TOKEN_S = 0.010, 0.0001, 0.002
"""Of a step: empty, for each token on an engine, for each token on a worker."""
MOST_SEQUENCES = 200.0


class PlayedTraffic:
    """Figures of a pool under a load; a test changes `rate` and `waiting`.

    Attributes:
        rate: Requests a second.
        prompt: Tokens of each prompt.
        answer: Tokens of each answer.
        waiting: Requests that wait for an engine.
    """

    def __init__(self, clock: Callable[[], float], prompt: float = 50.0, answer: float = 100.0) -> None:
        self.rate = self.waiting = 0.0
        self.prompt, self.answer = prompt, answer
        self._clock = clock
        self._lock = threading.Lock()
        self._since = self._at = clock()
        self._counters: dict[str, float] = {}
        self._steps, self._step_s, self._dispatch_s = 0.0, 0.0, 0.0

    def __call__(self, engines: int, workers: int) -> pb.Figures:
        """What is measured now, with so many engines and workers serving."""
        with self._lock:
            now = self._clock()
            seconds, self._at = now - self._at, now
            serving = min(engines, workers) > 0
            arrived = self.rate * seconds
            self._count(ingress_requests=arrived, ingress_prompt_tokens=arrived * self.prompt)
            if serving:
                self._count(ingress_finished_requests=arrived, ingress_finished_tokens=arrived * self.answer)
                self._serve(seconds, engines, workers)
            gauges = {
                "ingress_waiting": self.waiting,
                "ingress_waiting_tokens": self.waiting * self.prompt,
                "engine_running": self._sequences(engines, workers) if serving else 0.0,
            }
            histograms = {
                "engine_step_seconds": Histogram((60.0,), (int(self._steps), 0), self._step_s),
                "engine_dispatch_seconds": Histogram((60.0,), (int(self._steps), 0), self._dispatch_s),
            }
            return figures_message(Figures("one", self._since, now, dict(self._counters), gauges, histograms))

    def _serve(self, seconds: float, engines: int, workers: int) -> None:
        sequences = self._sequences(engines, workers)
        if sequences <= 0:
            return
        dispatch_s = WORKER_TOKEN_S * sequences / workers
        step_s = STEP_S + ENGINE_TOKEN_S * sequences / engines + dispatch_s
        steps = engines * seconds / step_s
        self._steps, self._step_s = self._steps + steps, self._step_s + steps * step_s
        self._dispatch_s += steps * dispatch_s
        busy = engines * seconds
        self._count(engine_busy_seconds=busy, engine_up_seconds=busy, engine_sequence_seconds=seconds * sequences)

    def _sequences(self, engines: int, workers: int) -> float:
        """Sequences under way in all engines, by the law that `autoscale.queueing` states."""
        generated = self.rate * self.answer
        slowness = ENGINE_TOKEN_S / engines + WORKER_TOKEN_S / workers
        left = 1.0 - slowness * generated
        return MOST_SEQUENCES if left <= 0 else min(generated * STEP_S / left, MOST_SEQUENCES)

    def _count(self, **added: float) -> None:
        for name, value in added.items():
            self._counters[name] = self._counters.get(name, 0.0) + value
