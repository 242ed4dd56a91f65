"""Answers the pool controller and other workers: the loop of a worker's control thread.

One function a request, each of which decides and answers; a request that cannot be read is refused, never fatal.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from flexpert_workers import threads
from flexpert_workers.errors import CapacityError, CheckpointError, FlexpertError
from flexpert_workers.expert.config import WorkerConfig
from flexpert_workers.expert.meter import WorkerMeter
from flexpert_workers.expert.prepare import Preparer
from flexpert_workers.expert.store import ExpertStore
from flexpert_workers.memory.backend import ExpertKey
from flexpert_workers.memory.loans import PageLender
from flexpert_workers.messages import UNREADABLE, control
from flexpert_workers.routing import RoutingTable, WorkerAddress

_log = logging.getLogger(__name__)
_decoder: msgspec.msgpack.Decoder[control.ControlRequest] = msgspec.msgpack.Decoder(control.ControlRequest)


class ControlServer:
    """Serves control requests on a bound ROUTER socket.

    Args:
        address: Who the worker is.
        on_stop: Called when the worker is asked to end.
        memory_bytes: What experts can fill, padding left out.
        lender: The worker's page owner.
        meter: What it measures.
        drain_timeout_s: How long `Retire` and `Rollback` wait for the dispatch in flight and copies under way.
    """

    def __init__(
        self,
        config: WorkerConfig,
        address: WorkerAddress,
        digest: str,
        memory_bytes: int,
        store: ExpertStore,
        preparer: Preparer,
        lender: PageLender,
        meter: WorkerMeter,
        on_stop: Callable[[], None],
        drain_timeout_s: float = 2.0,
    ) -> None:
        self._config = config
        self._address = address
        self._digest = digest
        self._memory_bytes = memory_bytes
        self._store = store
        self._preparer = preparer
        self._lender = lender
        self._on_stop = on_stop
        self._drain_timeout_s = drain_timeout_s
        self._table: RoutingTable | None = None
        self._table_bytes = b""
        self._handlers: dict[type, Callable[[Any], control.ControlReply]] = {
            control.Describe: self._describe,
            control.Prepare: self._prepare,
            control.AskPrepare: self._ask_prepare,
            control.Rollback: self._rollback,
            control.StoreTable: self._store_table,
            control.Retire: self._retire,
            control.AskLoads: lambda _: control.Loads(self._store.tokens(), meter.read()),
            control.Stop: self._stop,
        }

    def run(self, sock: "zmq.Socket[Any]", wake: socket.socket) -> None:
        """Serve until `wake` can be read, then close `sock`."""
        poller = zmq.Poller()
        poller.register(sock, zmq.POLLIN)
        poller.register(wake.fileno(), zmq.POLLIN)
        try:
            while wake.fileno() not in dict(poller.poll()):
                self._answer(sock)
        finally:
            sock.close(linger=500)

    def _answer(self, sock: "zmq.Socket[Any]") -> None:
        identity, *frames = sock.recv_multipart()
        reply = self.handle(frames[-1] if frames else b"")
        sock.send_multipart([identity, msgspec.msgpack.encode(reply)])

    def handle(self, payload: bytes) -> control.ControlReply:
        """The reply to an encoded request."""
        try:
            request = _decoder.decode(payload)
            return self._handlers[type(request)](request)
        except UNREADABLE as error:
            return control.Refused("internal", f"that is not a request this worker understands: {error}")
        except CapacityError as error:
            return control.Refused("capacity", str(error))
        except CheckpointError as error:
            return control.Refused("checkpoint", str(error))
        except (FlexpertError, ValueError) as error:
            return control.Refused("internal", str(error))
        except Exception as error:  # noqa: BLE001  whatever one request does, the worker serves the next
            _log.warning("control request failed", exc_info=True)
            return control.Refused("internal", f"{type(error).__name__}: {error}")

    def _describe(self, _: control.Describe) -> control.WorkerState:
        return control.WorkerState(
            worker=self._config.worker,
            incarnation=self._address.incarnation,
            pool=self._config.pool,
            digest=self._digest,
            endpoint=self._address.endpoint,
            control_endpoint=self._address.control_endpoint,
            pod=self._config.pod,
            node=self._config.node,
            pid=os.getpid(),
            memory_bytes=self._memory_bytes,
            resident_bytes=self._store.resident_bytes(),
            experts=self._store.keys(),
            table=self._table_bytes,
            in_flight=self._store.in_flight(),
            threads=threads.in_use(),
            domain=self._lender.domain,
            transfer_endpoint=self._lender.transfer_endpoint,
        )

    def _prepare(self, request: control.Prepare) -> control.Done:
        self._preparer.prepare(request)
        return control.Done()

    def _ask_prepare(self, request: control.AskPrepare) -> control.ControlReply:
        status = self._preparer.status(request.operation)
        return status or control.Refused("internal", f"this worker knows no operation {request.operation}")

    def _rollback(self, request: control.Rollback) -> control.ControlReply:
        brought = self._preparer.cancel(request.operation, self._drain_timeout_s)
        if brought is None:
            return _busy(f"operation {request.operation} is still copying an expert")
        return self._free(set(brought) - self._named())

    def _store_table(self, request: control.StoreTable) -> control.ControlReply:
        table = RoutingTable.decode(request.table)
        if (table.pool, table.digest) != (self._config.pool, self._digest):
            return control.Refused("stale", "that table is of another pool or checkpoint")
        if self._table is not None and table.epoch < self._table.epoch:
            return control.Refused("stale", f"table {table.epoch} is older than {self._table.epoch}")
        if self._table is None or table.epoch > self._table.epoch:
            self._table, self._table_bytes = table, request.table
            self._preparer.settle()
            with contextlib.suppress(TimeoutError):  # a dispatch that needs what is only staged flips by itself
                self._store.flip(self._drain_timeout_s)
        return control.Done()

    def _retire(self, request: control.Retire) -> control.ControlReply:
        if self._table is None or self._table.epoch != request.epoch:
            held = "none" if self._table is None else str(self._table.epoch)
            return control.Refused("stale", f"this worker's table is {held}, not {request.epoch}")
        return self._free(set(self._store.keys()) - self._named() - self._preparer.unsettled())

    def _stop(self, _: control.Stop) -> control.Done:
        self._on_stop()
        return control.Done()

    def _free(self, keys: set[ExpertKey]) -> control.ControlReply:
        freed = self._store.drop(keys, self._drain_timeout_s)
        return _busy("experts to be freed are still in use") if freed is None else control.Done(freed)

    def _named(self) -> frozenset[ExpertKey]:
        """What the stored table gives this worker."""
        return frozenset() if self._table is None else self._table.experts_of(self._config.worker)


def _busy(what: str) -> control.Refused:
    return control.Refused("internal", f"{what}: ask again")
