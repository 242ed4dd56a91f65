"""Answers dispatches: the loop of a worker's compute thread, from request frames to reply frames.

`ExpertWorker` starts `DispatchServer.run` on the one thread that computes. Whatever arrives, the loop goes on: what is
not a request is dropped, what is not for this worker is refused, an error while computing is answered with a sentence.
"""

import logging
import os
import time
from collections.abc import Sequence

import msgspec
import numpy as np
import torch

from flexpert_workers.expert.busyness import BusyMeter
from flexpert_workers.expert.compute import ExpertCompute, SortedPairs, sort_pairs
from flexpert_workers.expert.meter import WorkerMeter
from flexpert_workers.expert.store import ExpertStore
from flexpert_workers.expert.turns import ComputeTurns
from flexpert_workers.messages import UNREADABLE
from flexpert_workers.messages.dispatch import DispatchReply, DispatchRequest, Status
from flexpert_workers.transport import from_frame
from flexpert_workers.transport.frames import as_frame, dtype_named
from flexpert_workers.transport.listening import Listener
from flexpert_workers.transport.stream import Connection

_log = logging.getLogger(__name__)
_decoder = msgspec.msgpack.Decoder(DispatchRequest)
_encoder = msgspec.msgpack.Encoder()

Buffers = Sequence[memoryview]


class DispatchServer:
    """Serves dispatches.

    Args:
        pool: uid of the MoEDeployment; dispatches of another are refused.
        digest: Of the checkpoint; likewise.
        incarnation: Of this worker; likewise.
        turns: What other threads have done by this one, between two dispatches.
        busy: Is told how long each request took.
        meter: Is told what each request was.
        poll_s: For how long it polls for the next dispatch before it sleeps until one comes.
    """

    def __init__(
        self,
        pool: str,
        digest: str,
        incarnation: str,
        hidden_size: int,
        store: ExpertStore,
        compute: ExpertCompute,
        turns: ComputeTurns,
        busy: BusyMeter,
        meter: WorkerMeter,
        poll_s: float = 0.0,
    ) -> None:
        self._identity = {"pool": pool, "digest": digest, "incarnation": incarnation}
        self._hidden_size = hidden_size
        self._store = store
        self._compute = compute
        self._turns = turns
        self._busy = busy
        self._meter = meter
        self._poll_s = poll_s

    def run(self, listener: Listener, wake: int) -> None:
        """Serve until the descriptor `wake` can be read, then close the listener; what had arrived is still answered.

        A worker that has just answered polls for `poll_s` before it sleeps: see `DispatchClient`.
        """
        for descriptor in (wake, self._turns.fileno()):
            listener.watch(descriptor)
        try:
            with self._turns.computing():
                self._serve_until(listener, wake)
                self._answer_all(listener, listener.wait(0)[0])
        finally:
            listener.close()

    def _serve_until(self, listener: Listener, wake: int) -> None:
        polled_until = 0.0
        while True:
            polls = time.monotonic() < polled_until
            readable, watched = listener.wait(0 if polls else None)
            if wake in watched:
                return
            if watched:
                self._turns.take()
            if self._answer_all(listener, readable):
                polled_until = time.monotonic() + self._poll_s
            elif polls:
                os.sched_yield()

    def _answer_all(self, listener: Listener, readable: Sequence[Connection]) -> bool:
        """Answer one message of each connection that has a whole one; whether any had."""
        answered = False
        for connection in readable:
            try:
                frames = connection.receive()
            except OSError:
                listener.drop(connection)
                continue
            if frames is not None:
                answered = True
                self._answer(listener, connection, frames)
        return answered

    def _answer(self, listener: Listener, connection: Connection, frames: list[memoryview]) -> None:
        try:
            request = _decoder.decode(frames[0])
        except (IndexError, *UNREADABLE):
            _log.warning("dropped a message that is not a dispatch")
            return
        began = time.perf_counter()
        listener.send(connection, self.handle(request, frames[1:]))
        self._busy.note(time.perf_counter() - began)

    def handle(self, request: DispatchRequest, frames: Buffers) -> list[bytes | memoryview]:
        """The reply frames to a request with its frames behind the header."""
        started = time.perf_counter_ns()
        refusal = self._refusal(request)
        if refusal:
            self._meter.refused()
            return [_encode(request, Status.REFUSED, reason=refusal)]
        try:
            return self._serve(request, frames, started)
        except Exception as error:  # noqa: BLE001  whatever one request does, the worker serves the next
            _log.warning("dispatch %d of layer %d failed", request.request, request.layer, exc_info=True)
            return [_encode(request, Status.FAILED, reason=f"{type(error).__name__}: {error}")]

    def _refusal(self, request: DispatchRequest) -> str:
        for name, own in self._identity.items():
            if getattr(request, name) != own:
                return f"this worker's {name} is {own}, not {getattr(request, name)}"
        return ""

    def _serve(self, request: DispatchRequest, frames: Buffers, started: int) -> list[bytes | memoryview]:
        hidden, pairs, weights = self._parse(request, frames)
        experts, missing = self._store.borrow(request.layer, pairs.indices)
        if missing:
            self._meter.refused()
            return [_encode(request, Status.NOT_RESIDENT, missing=missing)]
        try:
            sums = self._compute(experts, pairs, hidden, weights)
        finally:
            self._store.give_back()
        self._store.count(request.layer, pairs.indices, pairs.counts)
        compute_us = (time.perf_counter_ns() - started) // 1000
        self._meter.computed(request.rows, len(pairs.rows), compute_us / 1e6)
        return [_encode(request, Status.OK, compute_us=compute_us), as_frame(sums)]

    def _parse(self, request: DispatchRequest, frames: Buffers) -> tuple[torch.Tensor, SortedPairs, torch.Tensor]:
        hidden_frame, pairs_frame, weights_frame = frames
        if not 0 <= request.layer < self._store.num_layers:
            raise ValueError(f"there is no MoE layer {request.layer}, only {self._store.num_layers}")
        hidden = from_frame(hidden_frame, dtype_named(request.dtype), (request.rows, self._hidden_size))
        pairs = np.frombuffer(pairs_frame, dtype=np.int32).reshape(-1, 2)
        weights = from_frame(weights_frame, torch.float32, (len(pairs),))
        if len(pairs) and (pairs.min() < 0 or (pairs.max(axis=0) > (request.rows - 1, self._store.num_experts)).any()):
            raise ValueError(f"pairs go beyond {request.rows} rows or {self._store.num_experts} experts")
        return hidden, sort_pairs(pairs, self._store.num_experts), weights


def _encode(
    request: DispatchRequest, status: Status, *, missing: tuple[int, ...] = (), reason: str = "", compute_us: int = 0
) -> bytes:
    return _encoder.encode(DispatchReply(request.request, request.attempt, status, missing, reason, compute_us))
