"""An engine as a service: the loop in a thread, the ingresses' socket in another, the lease with the pool in a third.

Started by the Serve replica (`serving`) or as a process (`python -m flexpert_workers.engine`).
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Sequence

from flexpert_proto.measuring import Figures
from flexpert_proto.pool_pb2 import Engine as EngineMessage
from flexpert_proto.pool_pb2 import Epoch as EpochMessage
from flexpert_proto.tracing import Tracing
from flexpert_workers import allocator, threads
from flexpert_workers.checkpoint import open_checkpoint
from flexpert_workers.dispatch import DispatchClient, LayerStatistics, TableHolder
from flexpert_workers.engine.config import EngineConfig
from flexpert_workers.engine.frontend import Frontend, Gone, Received, Record, Sender
from flexpert_workers.engine.loop import Engine, EngineStatistics
from flexpert_workers.engine.membership import Membership
from flexpert_workers.engine.meter import EngineMeter
from flexpert_workers.engine.recorder import RoutingRecorder
from flexpert_workers.engine.recording import Recordings
from flexpert_workers.engine.spans import Dispatched, EngineSpans
from flexpert_workers.errors import InvalidRequest, Overloaded, PassAbandoned
from flexpert_workers.messages.generation import Cancel, Pong, Rejected, Submit
from flexpert_workers.routing import NO_EPOCH

logger = logging.getLogger(__name__)

STUCK_AFTER_S = 60.0
"""A step that lasts longer means that the loop hangs: pings go unanswered and `healthy` says no."""

_IDLE_S = 0.5
_ABANDONED_PAUSE_S = 0.02


class EngineService:
    """One engine.

    Args:
        config: What it is told.
        tracing: Where spans of its requests go; None: nowhere.

    Attributes:
        tables: The routing tables; the lease fills it. Tests publish into it themselves.
    """

    def __init__(self, config: EngineConfig, tracing: Tracing | None = None) -> None:
        self.config = config
        self._tracing = tracing
        self.tables = TableHolder()
        self._draining = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._step_started: float | None = None
        self._failed = False

    def start(self) -> None:
        """Load the model and serve; returns when ingresses can connect.

        Raises:
            CheckpointError: The checkpoint cannot be served.
            CapacityError: The KV cache does not fit.
        """
        config = self.config
        threads.configure(max(1, config.threads))
        allocator.keep_freed_memory()
        checkpoint = open_checkpoint(config.source, config.dtype)
        self._dispatcher = DispatchClient(
            config.pool,
            checkpoint.digest,
            self.tables,
            deadline_s=config.dispatch_deadline_s,
            hang_timeout_s=config.dispatch_hang_s,
            refresh=self._report,
            poll_s=config.poll_us / 1e6,
        )
        spans = None
        if self._tracing is not None:
            spans = EngineSpans(self._tracing)
            self._dispatcher.keep_times()
        self._engine = Engine(checkpoint, config, self._dispatcher, EngineMeter(spans))
        self._statistics = self._engine.statistics()
        allocator.freeze_heap()
        self._frontend = Frontend(config.bind_host, config.socket_dir, self._pong)
        self._recordings = Recordings(
            config.pool_control, config.engine, checkpoint.num_layers, self._record, self._record_no_more
        )
        self._membership = Membership(
            config.pool_control,
            config.pool,
            checkpoint.digest,
            self.tables,
            self._describe,
            self.figures,
            self.drain,
            self._recordings.obey,
        )
        self._thread.start()
        self._frontend.start()
        if config.pool_control:
            self._membership.start()
        logger.info("engine %s serves %s at %s", config.engine, checkpoint.architecture, self.endpoint)

    @property
    def endpoint(self) -> str:
        """What ingresses connect to."""
        return self._frontend.endpoint

    def statistics(self) -> EngineStatistics:
        """Counts as of the last step."""
        return self._statistics

    def dispatch_statistics(self) -> tuple[LayerStatistics, ...]:
        """Times of the recent dispatches, per MoE layer."""
        return self._dispatcher.statistics()

    def figures(self) -> Figures:
        """What was measured so far; for any thread."""
        statistics = self._statistics
        gauges = {
            "engine_running": statistics.running,
            "engine_waiting": statistics.waiting,
            "engine_waiting_tokens": statistics.waiting_tokens,
            "engine_kv_bytes": statistics.kv_bytes,
            "engine_kv_used_bytes": statistics.kv_use * statistics.kv_bytes,
        }
        counters = {
            "engine_generated_tokens": statistics.generated_tokens,
            "engine_abandoned_steps": statistics.abandoned_passes,
            "engine_preemptions": statistics.preemptions,
        }
        return self._engine.meter.read(gauges, counters)

    def healthy(self) -> bool:
        """Whether the loop runs: its thread lives, and its present step is not older than `STUCK_AFTER_S`."""
        started = self._step_started
        is_stuck = started is not None and time.monotonic() - started > STUCK_AFTER_S
        return self._thread.is_alive() and not self._failed and not is_stuck

    def drain(self) -> None:
        """Let no further request in; those here run to their end."""
        if not self._draining.is_set():
            self._draining.set()
            self._report()

    @property
    def drained(self) -> bool:
        """Whether a drain has come to its end."""
        statistics = self._statistics
        return self._draining.is_set() and statistics.running + statistics.waiting == 0

    def stop(self) -> None:
        """End at once; the ingresses see their connections end and go elsewhere."""
        self._stopped.set()
        self._frontend.events.put(None)
        self._membership.stop()
        self._recordings.stop()
        self._thread.join(timeout=10)
        self._frontend.stop()
        if self._tracing is not None:
            self._tracing.close()

    def _run(self) -> None:
        sender = self._frontend.sender()
        try:
            while not self._stopped.is_set():
                self._take_events(sender)
                self._step(sender)
        except Exception:
            # A request's own errors never come here. Whoever watches `healthy` replaces this engine.
            self._failed = True
            logger.exception("the loop broke")
        finally:
            sender.close()
            self._dispatcher.close()

    def _take_events(self, sender: Sender) -> None:
        """Act on all that has come; wait for something while there is nothing to compute."""
        events = self._frontend.events
        wait = not self._engine.has_work
        if wait:
            self._statistics = self._engine.statistics()
        while True:
            try:
                event = events.get(block=wait, timeout=_IDLE_S)
            except queue.Empty:
                return
            wait = False
            match event:
                case Gone(source):
                    self._engine.cancel_source(source)
                case Record(recorder, on):
                    self._switch(recorder, on)
                case Received(source, Cancel(request=number)):
                    self._engine.cancel(number, source)
                case Received(source, Submit() as submit):
                    self._submit(source, submit, sender)

    def _record(self, recorder: RoutingRecorder) -> None:
        self._frontend.events.put(Record(recorder, on=True))

    def _record_no_more(self, recorder: RoutingRecorder) -> None:
        self._frontend.events.put(Record(recorder, on=False))

    def _switch(self, recorder: RoutingRecorder, on: bool) -> None:
        """Begin to record, or end it if it is still this recorder's turn."""
        if on or self._engine.recorder is recorder:
            self._engine.record(recorder if on else None)

    def _submit(self, source: bytes, submit: Submit, sender: Sender) -> None:
        rejected = None
        try:
            if self._draining.is_set():
                rejected = Rejected(submit.request, "draining", "this engine lets no further request in")
            else:
                self._engine.add_request(submit, source)
        except InvalidRequest as error:
            rejected = Rejected(submit.request, "invalid", str(error), error.field)
        except Overloaded as error:
            rejected = Rejected(submit.request, "overloaded", str(error))
        if rejected is not None:
            sender.send(source, [rejected])

    def _step(self, sender: Sender) -> None:
        if not self._engine.has_work:
            return
        dispatched_s = self._dispatcher.dispatch_s
        started = self._step_started = time.monotonic()
        try:
            outbox = self._engine.step()
        except PassAbandoned as error:
            logger.warning("a pass was abandoned and will be computed again: %s", error)
            self._dispatches()
            self._stopped.wait(_ABANDONED_PAUSE_S)
            return
        finally:
            self._step_started = None
        for source, replies in outbox.items():
            sender.send(source, replies)
        statistics = self._statistics = self._engine.statistics()
        step_s, dispatch_s = time.monotonic() - started, self._dispatcher.dispatch_s - dispatched_s
        self._engine.meter.stepped(step_s, dispatch_s, statistics.kv_use, self._dispatches())

    def _dispatches(self) -> Sequence[Dispatched]:
        """Those of the last step, where they are kept."""
        if self._tracing is None:
            return ()
        times = self._dispatcher.take_times()
        return [Dispatched(layer, ended - took_us / 1e6, ended, us) for layer, ended, took_us, us in times]

    def _report(self) -> None:
        self._membership.report()

    def _pong(self) -> Pong | None:
        statistics = self._statistics
        return Pong(statistics.running, statistics.waiting) if self.healthy() else None

    def _describe(self) -> EngineMessage:
        statistics = self._statistics
        table = self.tables.current()
        epoch = NO_EPOCH if table is None else table.epoch
        return EngineMessage(
            id=self.config.engine,
            endpoint=self.endpoint,
            state=self._state(table is not None),
            epoch=EpochMessage(term=epoch.term, sequence=epoch.sequence),
            pid=os.getpid(),
            running=statistics.running,
            waiting=statistics.waiting,
            expert_bytes=statistics.expert_bytes,
            kv_bytes=statistics.kv_bytes,
            kv_use=statistics.kv_use,
            generated_tokens=statistics.generated_tokens,
            pod=self.config.pod,
            threads=threads.in_use(),
        )

    def _state(self, has_table: bool) -> EngineMessage.State.ValueType:
        if self._draining.is_set():
            return EngineMessage.DRAINING
        return EngineMessage.READY if has_table and self.healthy() else EngineMessage.STARTING
