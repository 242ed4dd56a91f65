"""What the arenas of every kind of memory have in common: a range of addresses, cut into slots."""


class Slots:
    """Addresses of slots, and which of them are mapped. `HostArena` and `CudaArena` map pages into them.

    Args:
        base: First address of a range that is reserved.
        num_slots: Slots in it.
        slot_bytes: What a page takes, its trailer included.
    """

    def __init__(self, base: int, num_slots: int, slot_bytes: int) -> None:
        self._base = base
        self._num_slots = num_slots
        self._slot_bytes = slot_bytes
        self._mapped: set[int] = set()

    @property
    def num_slots(self) -> int:
        """See `Arena`."""
        return self._num_slots

    @property
    def slot_bytes(self) -> int:
        """See `Arena`."""
        return self._slot_bytes

    def _address(self, slot: int) -> int:
        assert 0 <= slot < self._num_slots, f"there is no slot {slot}"
        assert self._base, "the arena is closed"
        return self._base + slot * self._slot_bytes
