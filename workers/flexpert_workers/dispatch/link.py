"""The engine's connection to one worker, and what is known of its health. The dispatch client owns one per worker."""

import select
from collections.abc import Mapping, Sequence

from flexpert_workers.routing import WorkerAddress
from flexpert_workers.transport.listening import dial
from flexpert_workers.transport.stream import Connection, Frame

_FIRST_BACK_OFF_S = 0.02
_LONGEST_BACK_OFF_S = 1.0


class WorkerLink:
    """One incarnation of one worker. A connection that broke is closed; the next send makes another.

    Attributes:
        usable_at: Monotonic time before which the worker is not tried again.
        is_broken: The connection broke, or could not be made; `failed` closes it.
    """

    def __init__(self, poller: select.poll, address: WorkerAddress) -> None:
        self.address = address
        self.usable_at = 0.0
        self.is_broken = False
        self._back_off_s = _FIRST_BACK_OFF_S
        self._poller = poller
        self._connection: Connection | None = None

    def send(self, frames: Sequence[Frame]) -> None:
        """Send a message; it never waits."""
        try:
            connection = self._connection or self._open()
            connection.send(frames)
        except OSError:
            self.is_broken = True
            return
        if connection.is_sending:
            self._poller.modify(connection.fileno(), select.POLLIN | select.POLLOUT)

    def attend(self, ready: Mapping[int, int]) -> list[memoryview] | None:
        """Go on with what is being sent; a message that has arrived, None when there is none.

        Args:
            ready: What the poller found: descriptor → events.
        """
        connection = self._connection
        if connection is None or connection.fileno() not in ready:
            return None
        try:
            if connection.is_sending:
                self._go_on(connection)
            frames = connection.receive()
            if connection.is_sending:
                self._poller.modify(connection.fileno(), select.POLLIN | select.POLLOUT)
        except OSError:
            self.is_broken = True
            return None
        return frames

    @property
    def has_more(self) -> int | None:
        """Descriptor of the connection if there is more to receive that polling does not tell of."""
        connection = self._connection
        return connection.fileno() if connection is not None and connection.has_more else None

    def failed(self, now: float) -> None:
        """The worker could not be used: close the connection and leave it alone for a while, longer each time."""
        self.close()
        self.usable_at = now + self._back_off_s
        self._back_off_s = min(2 * self._back_off_s, _LONGEST_BACK_OFF_S)

    def succeeded(self) -> None:
        """The worker answered."""
        self._back_off_s = _FIRST_BACK_OFF_S

    def close(self) -> None:
        """Close the connection; what it had not sent or received yet is dropped."""
        self.is_broken = False
        if self._connection is not None:
            self._poller.unregister(self._connection.fileno())
            self._connection.close()
            self._connection = None

    def _open(self) -> Connection:
        connection = dial(self.address.endpoint)
        self._poller.register(connection.fileno(), select.POLLIN)
        self._connection = connection
        return connection

    def _go_on(self, connection: Connection) -> None:
        connection.flush()
        if not connection.is_sending:
            self._poller.modify(connection.fileno(), select.POLLIN)
