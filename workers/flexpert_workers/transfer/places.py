"""Where the bytes of a page are, on the host or on a device, as both ends of a copy see it."""

from collections.abc import Callable
from typing import Protocol

from flexpert_workers.transfer.contract import DeviceMemory, PageMemory


class Place(Protocol):
    """A page's memory, all of which the host reaches."""

    @property
    def device(self) -> DeviceMemory | None:
        """The memory itself, where it is a device's and channels between devices reach it."""

    @property
    def nbytes(self) -> int:
        """Bytes of the page."""

    def read(self, start: int, end: int) -> memoryview:
        """The bytes [start, end)."""

    def fill(self, start: int, end: int, receive: Callable[[memoryview], bool]) -> bool:
        """Have `receive` put bytes into [start, end); whether it did."""


class HostPlace:
    """A page that can be written and read in place."""

    def __init__(self, page: memoryview) -> None:
        self._page = page.cast("B")

    @property
    def device(self) -> DeviceMemory | None:
        """See `Place`."""
        return None

    @property
    def nbytes(self) -> int:
        """See `Place`."""
        return self._page.nbytes

    def read(self, start: int, end: int) -> memoryview:
        """See `Place`; no copy."""
        return self._page[start:end]

    def fill(self, start: int, end: int, receive: Callable[[memoryview], bool]) -> bool:
        """See `Place`; straight into the page."""
        return receive(self._page[start:end])


class DevicePlace:
    """A page that the host reads and writes by copying."""

    def __init__(self, device: DeviceMemory) -> None:
        self._memory = device

    @property
    def device(self) -> DeviceMemory | None:
        """See `Place`."""
        return self._memory

    @property
    def nbytes(self) -> int:
        """See `Place`."""
        return self._memory.nbytes

    def read(self, start: int, end: int) -> memoryview:
        """See `Place`."""
        return self._memory.read(start, end)

    def fill(self, start: int, end: int, receive: Callable[[memoryview], bool]) -> bool:
        """See `Place`; by way of the host."""
        staging = memoryview(bytearray(end - start))
        came = receive(staging)
        if came:
            self._memory.write(start, staging)
        return came


def place_of(page: PageMemory) -> Place:
    """The place of a page, whatever memory it is in."""
    return HostPlace(page) if isinstance(page, memoryview) else DevicePlace(page)
