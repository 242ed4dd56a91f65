"""What expert memory is made of: pages, and an arena of slots in which pages are mapped (DESIGN §5).

A page owner makes pages, a worker maps them; both are written against these protocols, and the same tests run for
every implementation (`host` here; one for CUDA's virtual memory).

The life of a page: `create` → `NewPage.fill` → `NewPage.seal` → `Page`, whose descriptor other processes `adopt`.
A page is written once: when its expert is not wanted any more it is closed, never filled again.
The life of a slot: `map` → `populate` → (computed from) → `vacate` → `unmap`. Its address never changes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from flexpert_workers.transfer.checksum import page_checksum
from flexpert_workers.transfer.contract import ExpertKey, PageMemory

if TYPE_CHECKING:
    import torch

__all__ = ["Arena", "ExpertKey", "NewPage", "Page", "PageBackend", "padded_bytes", "page_checksum"]


class Page(Protocol):
    """Physical memory that holds one expert and is never written again. `close` it once; mappings of it live on."""

    @property
    def nbytes(self) -> int:
        """Bytes of the expert, without the padding up to the backend's granularity."""

    def descriptor(self) -> int:
        """A file descriptor under which another process can `adopt` the page; it stays this page's own."""

    def identity(self) -> tuple[int, int]:
        """The same for two `Page`s exactly when they are the same memory, whichever process made them."""

    def view(self) -> memoryview:
        """Its bytes in the host's memory, to be read; they stay valid for as long as the view lives."""

    def memory(self) -> PageMemory:
        """Its bytes where they are, to be sent to another owner; they stay valid for as long as this is referred to."""

    def close(self) -> None:
        """Let go of the page: its memory is free once nobody else holds or maps it."""


class NewPage(Protocol):
    """Physical memory that its maker alone sees, until it is sealed."""

    @property
    def nbytes(self) -> int:
        """Bytes that it is for."""

    def fill(self, write: Callable[[memoryview], None]) -> int:
        """Have `write` fill a buffer of `nbytes`, and return the `page_checksum` of what it wrote."""

    def memory(self) -> PageMemory:
        """Its bytes where they are, to be received into instead of `fill`; nothing refers to it when it is sealed."""

    def checksum(self) -> int:
        """The `page_checksum` of what was received."""

    def seal(self) -> Page:
        """End writing for ever. This object is then used up."""

    def close(self) -> None:
        """Throw the memory away."""


class Arena(Protocol):
    """A range of addresses, cut into slots. One thread maps and unmaps: the one that computes from the slots."""

    @property
    def num_slots(self) -> int:
        """Slots, whether mapped or not."""

    @property
    def slot_bytes(self) -> int:
        """Distance between neighbouring slots: a page, padded."""

    def map(self, slot: int, page: Page) -> None:
        """Put a page into a slot that is free."""

    def mapping(self, slot: int, page: Page) -> Callable[[], None]:
        """`map` in two steps: all that another thread can do beforehand, and a call for the thread that maps."""

    def populate(self, slot: int) -> None:
        """Make every byte of a mapped slot reachable without a fault. For any thread: it holds nobody up for long."""

    def vacate(self, slot: int) -> None:
        """Undo `populate`, so that `unmap` takes the same time whatever the size. For any thread.

        Harmless while somebody computes from the slot: bytes that are touched again come back.
        """

    def unmap(self, slot: int) -> None:
        """Take the page out of a slot that nobody computes from."""

    def unmapping(self, slot: int) -> Callable[[], None]:
        """`unmap` in two steps, as `mapping`."""

    def tensor(self, slot: int) -> "torch.Tensor":
        """The slot as [slot_bytes] uint8, to be read while it is mapped; the address is the same for ever."""

    def close(self) -> None:
        """Give the range back; no tensor over it may be touched any more."""


class PageBackend(Protocol):
    """One kind of memory.

    Attributes:
        name: Of the memory, the same in every process: pages of one can be mapped only where the same is meant.
    """

    @property
    def name(self) -> str:
        """See above."""

    @property
    def granularity(self) -> int:
        """Pages take a multiple of so many bytes."""

    def footprint(self, nbytes: int) -> int:
        """Bytes of memory that a page of `nbytes` takes, and a slot for one of addresses."""

    def create(self, nbytes: int) -> NewPage:
        """Make a page whose memory is there: filling it cannot fail for want of memory.

        Raises:
            CapacityError: The machine has no such memory left.
        """

    def adopt(self, descriptor: int, nbytes: int) -> Page:
        """Take a page over that another process lent; the descriptor belongs to the page from now on.

        Raises:
            PageError: It is not a sealed page of at least `nbytes`; the descriptor is closed.
        """

    def reserve(self, num_slots: int, page_bytes: int) -> Arena:
        """Reserve addresses for pages of `page_bytes`; takes no memory.

        Raises:
            CapacityError: There are not so many addresses.
        """


def padded_bytes(nbytes: int, granularity: int) -> int:
    """What a page of `nbytes` takes in memory of that granularity."""
    return -(-nbytes // granularity) * granularity
