"""A channel between two devices, over which chunks go without passing through the host; NCCL's is in `nccl`.

A thread of its own makes the channel and all calls to it, since any of them may block for ever when the other end is
gone. Who waits for a call waits a bounded time and then aborts the channel, from outside.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol

_LOOK_AGAIN_S = 0.0005


class Communicator(Protocol):
    """One end of a channel, of two. Calls only begin something: `done` tells when it is over."""

    def warm(self) -> None:
        """Send one byte from rank 0 to rank 1, so that the connection stands before it is needed."""

    def send(self, address: int, nbytes: int) -> None:
        """Send device memory to the other end."""

    def receive(self, address: int, nbytes: int) -> None:
        """Receive into device memory from the other end."""

    def done(self) -> bool:
        """Whether all that was begun is over; raises when it failed."""

    def abort(self) -> None:
        """End the channel at once, whatever is under way. Never waits for the other end."""


class ChannelTransport(Protocol):
    """Makes channels: `nccl.NcclTransport`."""

    def new_meeting(self) -> bytes:
        """Where two ends will meet; to be sent to the other end."""

    def communicator(self, meeting: bytes, rank: int) -> Communicator:
        """One end of a channel of two; returns when the other end is there too."""


class ChannelBroken(Exception):
    """A channel failed, or took too long, and was aborted: copy over the host instead, or make another."""


class Channel:
    """One end of a channel that is being made, in use, or broken.

    Args:
        connect: Makes the communicator; called in the channel's thread.
        longest_s: A call that takes longer makes the channel `overdue`.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, connect: Callable[[], Communicator], longest_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._connect = connect
        self._longest_s = longest_s
        self._clock = clock
        self._lock = threading.Lock()
        self._communicator: Communicator | None = None
        self._broken = threading.Event()
        self._why = ""
        self._jobs: queue.SimpleQueue[tuple[Callable[[Communicator], None], threading.Event] | None]
        self._jobs = queue.SimpleQueue()
        self._open: set[threading.Event] = set()
        self.used_at = clock()
        self._warm = self.post(lambda communicator: communicator.warm())
        threading.Thread(target=self._run, name="device-channel", daemon=True).start()

    @property
    def broken(self) -> bool:
        """Whether the channel is of no use any more."""
        return self._broken.is_set()

    def overdue(self) -> bool:
        """Whether a call that nobody waits for takes too long."""
        with self._lock:
            return bool(self._open) and self._clock() - self.used_at > self._longest_s

    def post(self, call: Callable[[Communicator], None]) -> threading.Event:
        """Have a call made after those before it; the event is set when it is over."""
        over = threading.Event()
        with self._lock:
            if self._broken.is_set():
                over.set()
                return over
            if not self._open:
                self.used_at = self._clock()
            self._open.add(over)
        self._jobs.put((call, over))
        return over

    def call(self, call: Callable[[Communicator], None], timeout_s: float) -> None:
        """Make a call and wait until it is over.

        Raises:
            ChannelBroken: It failed, or was not over in time; the channel is aborted.
        """
        self._wait(self.post(call), timeout_s)

    def wait_until_warm(self, timeout_s: float) -> None:
        """Wait until both ends have met and bytes have gone over the channel; raises as `call`."""
        self._wait(self._warm, timeout_s)

    def _wait(self, over: threading.Event, timeout_s: float) -> None:
        if not over.wait(timeout_s):
            self.abort(f"the other end of a channel did nothing for {timeout_s:g} s")
        if self.broken:
            raise ChannelBroken(self._why)

    def abort(self, why: str = "the channel was closed") -> None:
        """End the channel; may be called twice, and from any thread."""
        with self._lock:
            if self._broken.is_set():
                return
            self._why = why
            self._broken.set()
            communicator, self._communicator = self._communicator, None
            for over in self._open:
                over.set()
        self._jobs.put(None)
        if communicator is not None:
            communicator.abort()

    def _run(self) -> None:
        try:
            self._serve(self._connect())
        except Exception as error:  # noqa: BLE001  whatever it is, the path over the host is open
            self.abort(f"a channel failed: {error}")

    def _serve(self, communicator: Communicator) -> None:
        with self._lock:
            wanted = not self._broken.is_set()
            self._communicator = communicator if wanted else None
        if not wanted:
            communicator.abort()
        while not self.broken and (job := self._jobs.get()) is not None:
            call, over = job
            call(communicator)
            while not self._is_done(communicator):
                self._broken.wait(_LOOK_AGAIN_S)
            with self._lock:
                self._open.discard(over)
                self.used_at = self._clock()
            over.set()

    def _is_done(self, communicator: Communicator) -> bool:
        """Whether there is nothing to wait for; under the lock, since an aborted communicator answers nothing."""
        with self._lock:
            return self._broken.is_set() or communicator.done()
