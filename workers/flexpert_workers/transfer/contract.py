"""The plain values that cross the edge of this package."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

Buffer = bytes | bytearray | memoryview
ExpertKey = tuple[int, int]
"""(layer, index) of an expert, the layer 0-based among MoE layers."""


class DeviceMemory(Protocol):
    """A page in the memory of a device, which the host reaches by copying."""

    @property
    def nbytes(self) -> int:
        """Bytes of the page."""

    @property
    def address(self) -> int:
        """Of its first byte, on the device."""

    def read(self, start: int, end: int) -> memoryview:
        """A copy of the bytes [start, end)."""

    def write(self, start: int, data: memoryview) -> None:
        """Put bytes at `start`; they are there when this returns."""


PageMemory = memoryview | DeviceMemory


class Identity(NamedTuple):
    """For whom pages are, and of what: equal keys under equal identities mean equal bytes."""

    pool: str
    digest: str


@dataclass(frozen=True)
class FetchLimits:
    """How a target fetches.

    Attributes:
        chunk_bytes: Asked for at a time; made smaller on a link that is too slow for it, down to `least_chunk_bytes`.
        window_bytes: Asked for and not arrived yet, at most, for each source.
        silence_s: Without a sign of life for that long the source is taken to hang: the connection is made anew.
        patience_s: Without a chunk that arrives intact for that long the source is given up.
        absent_s: When nobody has listened at its endpoint for that long the source is given up, for every page.
        retries: How many damaged chunks one page forgives.
        meeting_s: The longest wait for a channel between devices to be made and warmed.
    """

    chunk_bytes: int = 1 << 20
    least_chunk_bytes: int = 64 << 10
    window_bytes: int = 4 << 20
    silence_s: float = 3.0
    patience_s: float = 15.0
    absent_s: float = 2.0
    retries: int = 3
    meeting_s: float = 20.0


@dataclass(frozen=True)
class ServeLimits:
    """How a source serves.

    Attributes:
        chunk_bytes: The longest chunk that it sends.
        window_bytes: What one target may have asked for at a time.
        idle_s: A page for which no target asked for that long is let go of. What a target on this host was sent and has
            not taken in, a window at most, is kept as copies until it ends.
        gone_s: A target on another host that takes nothing in for that long is cut off, so that it keeps no page
            here.
        sign_of_life_s: How often a target hears of the source while its chunks wait for their turn.
        channel_s: A chunk on a channel that is not taken for that long ends the channel.
        channel_idle_s: A channel that nothing goes over for that long ends.
    """

    chunk_bytes: int = 4 << 20
    window_bytes: int = 16 << 20
    idle_s: float = 10.0
    gone_s: float = 20.0
    sign_of_life_s: float = 0.5
    channel_s: float = 20.0
    channel_idle_s: float = 300.0


@dataclass(frozen=True)
class Received:
    """What arrived intact of a page, to go on from there with the same source or another.

    Attributes:
        total: Bytes of the page.
        checksum: Of the page, as its source said.
        missing: Ranges [start, end) that have not arrived, in order.
    """

    total: int
    checksum: int
    missing: tuple[tuple[int, int], ...] = field(default=())

    @property
    def num_bytes(self) -> int:
        """Bytes that arrived."""
        return self.total - sum(end - start for start, end in self.missing)
