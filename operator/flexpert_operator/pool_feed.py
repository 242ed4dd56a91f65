"""What pool controllers tell: one stream (`PoolControl.WatchPool`) a pool, all read by one thread.

`reconciler` opens a feed while a head runs, and asks it for what was heard last; each message wakes the reconciliation
of its MoEDeployment. A thread and a polled call for each of a thousand pools would cost both sides more.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import grpc

from flexpert_operator.backoff import Backoff
from flexpert_operator.decide.observation import Pool
from flexpert_operator.errors import PoolUnavailable
from flexpert_operator.pool_client import CALL_TIMEOUT_S, MAX_MESSAGE_BYTES, pool_of
from flexpert_proto import pool_pb2 as pb
from flexpert_proto.channels import pool_channel_aio
from flexpert_proto.credentials import CredentialsError
from flexpert_proto.pool_pb2_grpc import PoolControlStub

log = logging.getLogger(__name__)

FIRST_S = 5.0
"""A feed that has just been opened is waited for so long."""

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)


@dataclass(frozen=True)
class Heard:
    """What a controller has told.

    Attributes:
        number: Of the message; another one has another number.
        at: When it came, seconds since the Unix epoch.
    """

    number: int
    at: float
    pool: Pool


class PoolFeeds:
    """The thread that reads all streams.

    Args:
        refresh_s: Figures that creep, such as loads, are told so often while they change.
    """

    def __init__(self, refresh_s: float) -> None:
        self._refresh_s = refresh_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pools", daemon=True)
        self._thread.start()

    def listen(self, address: str, wake: Callable[[], None], figures_s: float | None = None) -> "PoolFeed":
        """Open a stream; `wake` is called, in the feeds' thread, whenever there is something new.

        With `figures_s` it tells what was measured, so often, instead of placement and loads.
        """
        request = pb.GetPoolRequest(with_placement=True, with_loads=True, refresh_seconds=self._refresh_s)
        if figures_s is not None:
            request = pb.GetPoolRequest(with_figures=True, refresh_seconds=figures_s)
        feed = PoolFeed(address, request, wake)
        feed.task = self.run(feed.run())
        return feed

    def run(self, work: Coroutine[Any, Any, None]) -> "Future[None]":
        """Run something in the feeds' thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """End all streams."""

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.run(end()).result(CALL_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_TIMEOUT_S)


class PoolFeed:
    """One pool's stream."""

    def __init__(self, address: str, request: pb.GetPoolRequest, wake: Callable[[], None]) -> None:
        self.task: Future[None] | None = None
        self._address = address
        self._request = request
        self._wake = wake
        self._first = threading.Event()
        self._lock = threading.Lock()
        self._number = 0
        self._at = 0.0
        self._message: pb.Pool | None = None
        self._heard: Heard | None = None
        self._error = f"{address}: no answer yet"
        self._failures = 0

    def last(self) -> Heard:
        """What was heard last.

        Raises:
            PoolUnavailable: The stream is broken and could not be opened again at once.
        """
        self._first.wait(FIRST_S)
        with self._lock:
            if self._message is not None:
                self._heard = Heard(self._number, self._at, pool_of(self._message))
                self._message = None
            if self._heard is None:
                raise PoolUnavailable(self._error)
            return self._heard

    def close(self) -> None:
        """Hear nothing more."""
        if self.task is not None:
            self.task.cancel()

    async def run(self) -> None:
        """Read the stream, and open it again when it breaks, until cancelled."""
        backoff = Backoff(0.2, 15.0)
        while True:
            try:
                await self._read(backoff)
            except grpc.aio.AioRpcError as failure:
                self._fail(f"{self._address}: {failure.details()}")
            except CredentialsError as error:
                self._fail(f"{self._address}: {error}")
            except TimeoutError:
                self._fail(f"{self._address}: no answer within {CALL_TIMEOUT_S:.0f} s")
            except Exception as failure:
                log.exception("the stream of %s broke", self._address)
                self._fail(f"{self._address}: {failure}")
            await asyncio.sleep(backoff.next())

    async def _read(self, backoff: Backoff) -> None:
        async with pool_channel_aio(self._address, OPTIONS) as channel:
            call = PoolControlStub(channel).WatchPool(self._request)
            message = await asyncio.wait_for(call.read(), CALL_TIMEOUT_S)
            while isinstance(message, pb.Pool):
                self._take(message)
                backoff.reset()
                message = await call.read()
            self._fail(f"{self._address}: the stream has ended")

    def _take(self, message: pb.Pool) -> None:
        with self._lock:
            self._number += 1
            self._at, self._message, self._failures = time.time(), message, 0
        self._first.set()
        self._wake()

    def _fail(self, error: str) -> None:
        """The stream broke: what was heard stands until it cannot be opened again either."""
        with self._lock:
            self._failures += 1
            known = self._message is not None or self._heard is not None
            news = error != self._error or known
            if known and self._failures == 1:
                return
            self._message, self._heard, self._error = None, None, error
        self._first.set()
        if news:
            self._wake()
