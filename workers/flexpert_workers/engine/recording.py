"""Recordings of an engine's routing that the pool controller orders, and the call that carries them to it.

The lease's thread hands an order to `Recordings.obey`; the loop's thread offers tokens, which wait in bounded memory; a
thread of the recording's own sends them. It ends when the order is fulfilled, withdrawn or out of time, or the call
fails, whatever comes first, and takes its recorder off the loop.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator

import grpc

from flexpert_proto.channels import pool_channel
from flexpert_proto.credentials import CredentialsError
from flexpert_proto.pool_pb2 import RecordOrder, TraceChunk
from flexpert_proto.pool_pb2_grpc import PoolMembershipStub
from flexpert_workers.engine.recorder import RoutedTokens, RoutingRecorder

logger = logging.getLogger(__name__)

MOST_WAITING_BYTES = 32 << 20
"""Of tokens that wait to be sent; what comes beyond is left out of the trace, never waited for."""
_GRACE_S = 10.0
_Send = Callable[[Iterator[TraceChunk], float], None]


class Recording:
    """One order being carried out: the loop's thread puts tokens in, the sending thread takes them out."""

    def __init__(self, order: RecordOrder, engine: str, num_layers: int) -> None:
        self.order = order
        self.recorder = RoutingRecorder(num_layers, order.tokens, self._offer)
        self._engine = engine
        self._num_layers = num_layers
        self._waiting: queue.SimpleQueue[RoutedTokens | None] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._left_out = 0

    def close(self) -> None:
        """No token comes any more; `chunks` ends once what waits is taken."""
        self._waiting.put(None)

    def chunks(self) -> Iterator[TraceChunk]:
        """What was recorded, pass by pass, until the recording is closed or complete."""
        yield TraceChunk(recording=self.order.id, engine=self._engine)
        sent = 0
        while sent < self.order.tokens and (routed := self._waiting.get()) is not None:
            with self._lock:
                self._waiting_bytes -= routed.experts.nbytes
                left_out, self._left_out = self._left_out, 0
            sent += len(routed.experts)
            yield TraceChunk(
                recording=self.order.id,
                engine=self._engine,
                layers=self._num_layers,
                top_k=routed.experts.shape[2],
                sequences=routed.sequences,
                lengths=routed.lengths,
                experts=routed.experts.astype("<u2").tobytes(),
                left_out=left_out,
            )

    def _offer(self, routed: RoutedTokens) -> bool:
        with self._lock:
            if self._waiting_bytes + routed.experts.nbytes > MOST_WAITING_BYTES:
                self._left_out += len(routed.experts)
                return False
            self._waiting_bytes += routed.experts.nbytes
        self._waiting.put(routed)
        return True


class Recordings:
    """At most one recording at a time.

    Args:
        address: Of the pool controller.
        engine: Whose tokens they are.
        num_layers: MoE layers.
        attach: Has the loop record; called from the lease's thread.
        detach: Has the loop record no more, if it still records this; called from any thread.
        send: Carries chunks to the pool controller; returns when all are there. Tests have their own.
    """

    def __init__(
        self,
        address: str,
        engine: str,
        num_layers: int,
        attach: Callable[[RoutingRecorder], None],
        detach: Callable[[RoutingRecorder], None],
        send: _Send | None = None,
    ) -> None:
        self._engine = engine
        self._num_layers = num_layers
        self._attach = attach
        self._detach = detach
        self._send: _Send = send or (lambda chunks, timeout_s: send_trace(address, chunks, timeout_s))
        self._current: Recording | None = None

    def obey(self, order: RecordOrder) -> None:
        """Begin what is ordered, in the place of what goes on; an order of no tokens only ends that."""
        if self._current is not None and self._current.order.id == order.id and order.tokens:
            return
        self.stop()
        if order.tokens:
            self._current = recording = Recording(order, self._engine, self._num_layers)
            self._attach(recording.recorder)
            threading.Thread(target=self._run, args=(recording,), name="recording", daemon=True).start()

    def stop(self) -> None:
        """End what goes on."""
        recording, self._current = self._current, None
        if recording is not None:
            self._detach(recording.recorder)
            recording.close()

    def _run(self, recording: Recording) -> None:
        try:
            self._send(recording.chunks(), recording.order.seconds + _GRACE_S)
        except grpc.RpcError as error:
            reason = error.details() if isinstance(error, grpc.Call) else repr(error)
            logger.info("recording %s ended: %s", recording.order.id, reason)
        except CredentialsError as error:
            logger.warning("recording %s cannot be sent: %s", recording.order.id, error)
        finally:
            self._detach(recording.recorder)
            recording.close()


def send_trace(address: str, chunks: Iterator[TraceChunk], timeout_s: float) -> None:
    """Carry chunks to the pool controller.

    Raises:
        grpc.RpcError: It is away, or wants no more of them.
    """
    with pool_channel(address) as channel:
        PoolMembershipStub(channel).SendTrace(chunks, timeout=timeout_s)
