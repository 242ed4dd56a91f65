"""A connection from the controller to one worker: asks on threads of its own, hears at once when the worker dies."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import zmq

from flexpert_workers.expert.control_client import ControlClient
from flexpert_workers.messages.control import ControlReply, ControlRequest
from flexpert_workers.pool.exceptions import WorkerUnreachable
from flexpert_workers.transport import ConnectionMonitor, PeerEvent, connect


class ControlLink:
    """A `fleet.WorkerLink` over a worker's control socket.

    Requests go through a `ControlClient` on one thread, so that a slow worker delays nobody else. A second connection
    carries nothing: its monitor, read by the event loop, calls `on_break` when the peer is gone.
    """

    def __init__(self, endpoint: str, on_break: Callable[[], None]) -> None:
        self._client = ControlClient(endpoint)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="control")
        self._on_break = on_break
        self._loop = asyncio.get_running_loop()
        self._socket: zmq.Socket[Any] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._monitor = ConnectionMonitor(self._socket)
        self._descriptor = int(self._monitor.socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._descriptor, self._read_events)
        connect(self._socket, endpoint)
        self._read_events()

    async def ask(self, request: ControlRequest, timeout_s: float) -> ControlReply:
        """Ask and wait for the reply; the time for it begins now, also behind requests that a hung worker still owes.

        Raises:
            WorkerUnreachable: None came in time, or nobody is there.
        """
        deadline = time.monotonic() + timeout_s
        try:
            return await self._loop.run_in_executor(self._thread, self._request, request, deadline)
        except (TimeoutError, ConnectionError) as silent:
            raise WorkerUnreachable(str(silent)) from silent

    def close(self) -> None:
        """Give the connection up; a request under way ends by itself."""
        self._loop.remove_reader(self._descriptor)
        self._monitor.close()
        self._socket.close()
        self._thread.submit(self._client.close)
        self._thread.shutdown(wait=False)

    def _request(self, request: ControlRequest, deadline: float) -> ControlReply:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("it still owes replies to earlier requests")
        return self._client.request(request, left)

    def _read_events(self) -> None:
        """The descriptor tells of news only once, so all of it is read (ZeroMQ's `FD` is edge-triggered)."""
        if PeerEvent.LOST in self._monitor.events():
            self._on_break()
