"""The engine's lease with its pool: a thread that reports, receives routing tables and directives, and reconnects.

`service` starts it. The stream is the lease (DESIGN §6, 6). Without a controller the engine keeps serving by the last
table it has; nothing here ever stops the loop.
"""

import logging
import threading
from collections.abc import Callable, Iterator

import grpc

from flexpert_proto.channels import pool_channel
from flexpert_proto.credentials import CredentialsError
from flexpert_proto.measuring import Figures, figures_message
from flexpert_proto.pool_pb2 import Engine as EngineMessage
from flexpert_proto.pool_pb2 import EngineDirective, EngineReport, RecordOrder
from flexpert_proto.pool_pb2_grpc import PoolMembershipStub
from flexpert_workers.dispatch import TableHolder
from flexpert_workers.messages import UNREADABLE
from flexpert_workers.routing import RoutingTable

logger = logging.getLogger(__name__)

REPORT_S = 1.0
_FIRST_BACK_OFF_S = 0.1
_LONGEST_BACK_OFF_S = 2.0
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),
)


class Membership:
    """Keeps an engine attached to its pool.

    Args:
        address: Of the pool controller, resolved anew for every connection.
        pool: uid of the MoEDeployment.
        digest: Of the checkpoint.
        tables: Where routing tables go.
        describe: The engine as it is now; called from this thread.
        figures: What it has measured; likewise.
        on_drain: Called when the controller says to drain.
        on_record: Called with an order to record, or to record no more.
    """

    def __init__(
        self,
        address: str,
        pool: str,
        digest: str,
        tables: TableHolder,
        describe: Callable[[], EngineMessage],
        figures: Callable[[], Figures],
        on_drain: Callable[[], None],
        on_record: Callable[[RecordOrder], None],
    ) -> None:
        self._address = address
        self._pool = pool
        self._digest = digest
        self._tables = tables
        self._describe = describe
        self._figures = figures
        self._on_drain = on_drain
        self._on_record = on_record
        self._news = threading.Event()
        self._stopped = threading.Event()
        self._call: grpc.Call | None = None
        self._back_off_s = _FIRST_BACK_OFF_S
        self._thread = threading.Thread(target=self._run, name="membership", daemon=True)

    def start(self) -> None:
        """Attach, and stay attached until `stop`."""
        self._thread.start()

    def report(self) -> None:
        """Report now rather than at the next second: something changed, or a newer table is needed. Never waits."""
        self._news.set()

    def stop(self) -> None:
        """Give the lease back."""
        self._stopped.set()
        self._news.set()
        if self._call is not None:
            self._call.cancel()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._attach()
                logger.info("the pool controller ended the lease; attaching again")
            except grpc.RpcError as error:
                if not self._stopped.is_set():
                    logger.info("no lease with %s: %s", self._address, _reason(error))
            except CredentialsError as error:
                logger.warning("no lease with %s: %s", self._address, error)
            except UNREADABLE as error:
                logger.warning("the pool controller sent a table that cannot be read: %s", error)
            self._stopped.wait(self._back_off_s)
            self._back_off_s = min(2 * self._back_off_s, _LONGEST_BACK_OFF_S)

    def _attach(self) -> None:
        ended = threading.Event()
        with pool_channel(self._address, _CHANNEL_OPTIONS) as channel:
            self._call = directives = PoolMembershipStub(channel).Attach(self._reports(ended))
            try:
                for directive in directives:
                    self._obey(directive)
            finally:
                ended.set()
                self._news.set()

    def _reports(self, ended: threading.Event) -> Iterator[EngineReport]:
        """A report at once, then every second and whenever there is news, until the stream has ended."""
        while not (ended.is_set() or self._stopped.is_set()):
            self._news.clear()
            figures = figures_message(self._figures())
            yield EngineReport(engine=self._describe(), pool=self._pool, digest=self._digest, figures=figures)
            self._news.wait(REPORT_S)

    def _obey(self, directive: EngineDirective) -> None:
        self._back_off_s = _FIRST_BACK_OFF_S
        if directive.routing_table and self._tables.publish(RoutingTable.decode(directive.routing_table)):
            self.report()
        if directive.drain:
            self._on_drain()
        if directive.HasField("record"):
            self._on_record(directive.record)


def _reason(error: grpc.RpcError) -> str:
    return f"{error.code().name}: {error.details()}" if isinstance(error, grpc.Call) else repr(error)
