"""Requests on their way through engines, in steps of time: fluid within a step, each request's times kept.

All engines share the load evenly. A sequence gets a token each step of the engines, so one counter of tokens per
sequence, `_decoded`, tells for every sequence when it ends (it is pushed on a heap with the counter's value then), and
one counter of prompt tokens read, `_read`, tells when a prompt is done. So a step costs the same whatever runs.
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexpert_operator.autoscale import Counters
from flexpert_operator.simulate.arrivals import Arrivals
from flexpert_operator.simulate.device import Device

Floats = NDArray[np.float64]


@dataclass
class Measured:
    """Sums since the last look, by which means are taken, and the times of the requests that got their tokens."""

    seconds: float = 0.0
    running: float = 0.0
    sequences: float = 0.0
    steps: float = 0.0
    prefill: float = 0.0
    engine_s: float = 0.0
    expert_s: float = 0.0
    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)


class _Step(NamedTuple):
    """A step of the engines. Tokens are of all engines together.

    Attributes:
        seconds: That it takes on average.
        decode_s: The same without a prompt.
        prompt_token_s: What each prompt token adds.
        prefill: Prompt tokens in it on average.
        share: Of a prompt's tokens that are in it on average.
        chunk: Prompt tokens in it at most.
    """

    seconds: float
    decode_s: float
    prompt_token_s: float
    prefill: float
    share: float
    chunk: float

    def first_token_s(self, prompt: float, chunks: float, waits: bool) -> float:
        """From a request's turn to the end of the step that ends its prompt, all of which is in it if there is room.

        Who waits does so for the rest of the step under way: half of one that reads others' prompts only.
        """
        others = max(self.prefill - min(prompt, self.chunk) * self.share, 0.0)
        read_s = self.decode_s + self.prompt_token_s * min(others + prompt, self.chunk)
        wait_s = 0.5 * (self.decode_s + self.prompt_token_s * others) if waits else 0.0
        return wait_s + (chunks - 1.0) * self.seconds + read_s


class Serving:
    """Requests of `arrivals`, each of which stands for `weight` requests.

    Attributes:
        first_at: [requests] when the first token came, NaN before.
        ended_at: [requests] when the last one came, NaN before.
        ttft_s: [requests] time to first token as it is judged: scattered by the device's `spread`; infinite before.
        tpot_s: [requests] the same of the time per further token, 0 for answers of one token.
        measured: Sums since somebody replaced them.
    """

    def __init__(self, arrivals: Arrivals, device: Device, weight: float = 1.0, seed: int = 0) -> None:
        self._device, self._weight = device, weight
        self._scatter = device.scatter(len(arrivals), seed).tolist()
        self._at, self._prompt, self._answer = arrivals.at.tolist(), arrivals.prompt.tolist(), arrivals.answer.tolist()
        self.first_at = np.full(len(arrivals), np.nan)
        self.ended_at = np.full(len(arrivals), np.nan)
        self.ttft_s = np.full(len(arrivals), np.inf)
        self.tpot_s = np.full(len(arrivals), np.inf)
        self._next = 0
        self._waiting: deque[int] = deque()
        self._reading: deque[tuple[float, int]] = deque()
        self._ends: list[tuple[float, int]] = []
        self._to_read = self._read = self._spent = self._decoded = 0.0
        self._prompts = self._finished = self._answers = 0.0
        self.measured = Measured()

    @property
    def running(self) -> float:
        """Sequences that engines generate for."""
        return len(self._ends) * self._weight

    @property
    def queued(self) -> float:
        """Requests without a first token."""
        return (len(self._waiting) + len(self._reading)) * self._weight

    @property
    def queued_tokens(self) -> float:
        """Prompt tokens that have not been read."""
        return float(self._to_read - self._read + self._weight * sum(self._prompt[one] for one in self._waiting))

    @property
    def is_over(self) -> bool:
        """Whether every request has ended."""
        return self._next == len(self._at) and not (self._waiting or self._reading or self._ends)

    @property
    def counters(self) -> Counters:
        """As engines and ingress count."""
        weight = self._weight
        return Counters(self._next * weight, self._prompts * weight, self._finished * weight, self._answers * weight)

    def idle_until(self) -> float | None:
        """When the next request comes where nothing is under way; None otherwise."""
        if self._waiting or self._reading or self._ends or self._next == len(self._at):
            return None
        return float(self._at[self._next])

    def advance(
        self, at: float, seconds: float, engines: int, workers: int, imbalance: float, slower: float = 1.0
    ) -> None:
        """Serve from `at` for so long with these pools; without any, requests only queue.

        Args:
            at: Seconds since the beginning.
            seconds: To pass.
            engines: That serve.
            workers: That serve.
            imbalance: The busiest worker's load over the average one.
            slower: How many times as long as usual steps take.
        """
        self._let_in(at + seconds, engines)
        sums, under_way = self.measured, self.running
        sums.seconds += seconds
        sums.running += under_way * seconds
        if not (self._reading or self._ends):
            self._spent = self._to_read
            return
        if engines < 1 or workers < 1:
            return
        device, owed = self._device, self._to_read - self._spent
        chunk = float(engines * device.prefill_tokens)
        slowness = slower * (device.engine_token_s / engines + device.worker_token_s * imbalance / workers)
        empty_s = slower * (device.engine_step_s + device.expert_step_s) + slowness * under_way
        busy = slowness * device.prefill_price * owed / seconds
        step_s = empty_s / (1.0 - busy) if busy < 1.0 else math.inf
        share = min(step_s / seconds, 1.0)
        prefill = min(owed * share, chunk)
        tokens = under_way + device.prefill_price * prefill
        engine_s = slower * (device.engine_step_s + device.engine_token_s * tokens / engines)
        expert_s = slower * (device.expert_step_s + device.worker_token_s * imbalance * tokens / workers)
        prompt_token_s = slowness * device.prefill_price
        one = _Step(engine_s + expert_s, empty_s, prompt_token_s, prefill, share, chunk)
        steps = seconds / one.seconds
        sums.steps += steps
        sums.prefill += prefill * steps
        sums.engine_s += engine_s * steps
        sums.expert_s += expert_s * steps
        sums.sequences += under_way * steps
        self._spent += min(prefill * steps, owed)
        before, self._decoded = self._decoded, self._decoded + steps
        self._end(at, before, one.seconds)
        self._read_prompts(at, at + seconds, steps, one, idle=engines - under_way)

    def _let_in(self, until: float, engines: int) -> None:
        arrived, number, waiting = self._at, self._next, self._waiting
        while number < len(arrived) and arrived[number] < until:
            self._prompts += self._prompt[number]
            waiting.append(number)
            number += 1
        self._next = number
        room = engines * self._device.sequences / self._weight - len(self._ends) - len(self._reading)
        while waiting and room >= 1:
            request = waiting.popleft()
            self._to_read += self._prompt[request] * self._weight
            self._reading.append((self._to_read, request))
            room -= 1

    def _end(self, at: float, decoded: float, step_s: float) -> None:
        ends = self._ends
        while ends and ends[0][0] <= self._decoded:
            end, request = heapq.heappop(ends)
            self._finish(request, at + (end - decoded) * step_s)

    def _finish(self, request: int, at: float) -> None:
        answer = self._answer[request]
        self.ended_at[request] = at
        each_s = self._scatter[request] * (at - float(self.first_at[request])) / max(answer - 1, 1)
        self.tpot_s[request] = each_s
        if answer > 1:
            self.measured.tpot_s.append(each_s)
        self._finished += 1
        self._answers += answer

    def _read_prompts(self, at: float, until: float, steps: float, one: _Step, idle: float) -> None:
        """Prompts are read in order; a first token comes with the step that ends one, and the others from then on.

        Who comes while its engine makes a step waits for the end of that one; with `idle` engines, so many do not.
        """
        before = self._read
        self._read = min(self._to_read, before + one.chunk * steps)
        reading = self._reading
        while reading and reading[0][0] <= self._read + 1e-6:
            end, request = reading.popleft()
            came, prompt, more = self._at[request], self._prompt[request], self._answer[request] - 1
            chunks = max(-(-(end - before) // one.chunk), 1.0)
            read_s = one.first_token_s(prompt, chunks, came >= at and idle <= 0)
            idle -= self._weight
            first = self.first_at[request] = max(at, came) + read_s
            ttft_s = self.ttft_s[request] = max(at - came, 0.0) + self._scatter[request] * read_s
            self.measured.ttft_s.append(ttft_s)
            ends = self._decoded + (first - until) / one.seconds + more
            if more and ends > self._decoded:
                heapq.heappush(self._ends, (ends, request))
            else:
                self._finish(request, first + more * one.seconds)
