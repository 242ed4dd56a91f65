"""Holds the newest routing table of an engine: its lease thread publishes, its dispatching thread reads and waits."""

import threading

from flexpert_workers.routing import Epoch, RoutingTable


class TableHolder:
    """The newest table seen. Safe for several threads."""

    def __init__(self) -> None:
        self._table: RoutingTable | None = None
        self._changed = threading.Condition()

    def publish(self, table: RoutingTable) -> bool:
        """Take `table` if its epoch is higher than that of the one held; whether it was taken."""
        with self._changed:
            if self._table is not None and table.epoch <= self._table.epoch:
                return False
            self._table = table
            self._changed.notify_all()
            return True

    def current(self) -> RoutingTable | None:
        """The newest table, None before the first."""
        return self._table

    def wait_newer(self, epoch: Epoch, timeout_s: float) -> RoutingTable | None:
        """Wait for a table above `epoch` and return it; None when none came within `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._table is not None and self._table.epoch > epoch, timeout_s)
            return self._table if self._table is not None and self._table.epoch > epoch else None
