"""Answers dispatches: the loop of a worker's compute thread, from request frames to reply frames.

`ExpertWorker` starts `DispatchServer.run` on the one thread that computes. Whatever arrives, the loop goes on: what is
not a request is dropped, what is not for this worker is refused, an error while computing is answered with a sentence.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import torch
import zmq

from flexpert_workers.expert.compute import ExpertCompute, SortedPairs, sort_pairs
from flexpert_workers.expert.store import ExpertStore
from flexpert_workers.expert.turns import ComputeTurns
from flexpert_workers.messages.dispatch import DispatchReply, DispatchRequest, Status
from flexpert_workers.transport import from_frame, is_readable
from flexpert_workers.transport.frames import as_frame, dtype_named

_log = logging.getLogger(__name__)
_decoder = msgspec.msgpack.Decoder(DispatchRequest)
_encoder = msgspec.msgpack.Encoder()

Buffers = Sequence[memoryview]


class DispatchServer:
    """Serves dispatches on a bound ROUTER socket until something arrives on `wake`.

    Args:
        pool: uid of the MoEDeployment; dispatches of another are refused.
        digest: Of the checkpoint; likewise.
        incarnation: Of this worker; likewise.
        turns: What other threads have done by this one, between two dispatches.
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
    ) -> None:
        self._identity = {"pool": pool, "digest": digest, "incarnation": incarnation}
        self._hidden_size = hidden_size
        self._store = store
        self._compute = compute
        self._turns = turns

    def run(self, sock: "zmq.Socket[Any]", wake: "zmq.Socket[Any]") -> None:
        """Serve, then close both sockets; what had arrived before `wake` is still answered."""
        poller = zmq.Poller()
        for readable in (sock, wake, self._turns.fileno()):
            poller.register(readable, zmq.POLLIN)
        try:
            with self._turns.computing():
                while wake not in (ready := dict(poller.poll())):
                    if self._turns.fileno() in ready:
                        self._turns.take()
                    if sock in ready:
                        self._answer(sock)
                while is_readable(sock):
                    self._answer(sock)
        finally:
            sock.close(linger=500)
            wake.close(linger=0)

    def _answer(self, sock: "zmq.Socket[Any]") -> None:
        identity, *frames = sock.recv_multipart(copy=False)
        try:
            request = _decoder.decode(frames[0].buffer)
        except (IndexError, msgspec.MsgspecError):
            _log.warning("dropped a message that is not a dispatch")
            return
        reply = self.handle(request, [frame.buffer for frame in frames[1:]])
        sock.send_multipart([identity, *reply], copy=False)

    def handle(self, request: DispatchRequest, frames: Buffers) -> list[bytes | memoryview]:
        """The reply frames to a request with its frames behind the header."""
        started = time.perf_counter_ns()
        refusal = self._refusal(request)
        if refusal:
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
            return [_encode(request, Status.NOT_RESIDENT, missing=missing)]
        try:
            sums = self._compute(experts, pairs, hidden, weights)
        finally:
            self._store.give_back()
        self._store.count(request.layer, pairs.indices, pairs.counts)
        compute_us = (time.perf_counter_ns() - started) // 1000
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
