"""Page fetcher ↔ page server: how the bytes of an expert's page are asked for and come.

Every request is one frame, a tagged MessagePack struct; every reply is one such frame, followed by one raw frame of
page bytes in the case of a `Chunk` that does not come over a channel.
"""

import msgspec


class AskPage(msgspec.Struct, frozen=True, tag=True):
    """Ask what the page of an expert is; `pool` and `digest` say for whom and of which checkpoint.

    Attributes:
        channel: Whether chunks may come over the channel that `AskChannel` made.
    """

    pool: str
    digest: str
    layer: int
    index: int
    channel: bool = False


class AskChannel(msgspec.Struct, frozen=True, tag=True):
    """Ask the server to meet this target at a channel between two devices, as rank 0; the target is rank 1.

    Attributes:
        meeting: Where, as the channel's transport says (for NCCL its unique id).
    """

    pool: str
    digest: str
    meeting: bytes


class AskChunk(msgspec.Struct, frozen=True, tag=True):
    """Ask for `length` bytes of a page from `offset` on.

    Attributes:
        incarnation: Of the server, as its `Page` said: another one refuses.
        number: Named again in the reply.
    """

    incarnation: str
    number: int
    layer: int
    index: int
    offset: int
    length: int


class Leave(msgspec.Struct, frozen=True, tag=True):
    """The page last asked for is not needed any more; has no reply."""


TransferRequest = AskPage | AskChannel | AskChunk | Leave


class Page(msgspec.Struct, frozen=True, tag=True):
    """What a page is: its bytes in number, the XXH3 (64 bit) of all of them, and who would send them.

    Attributes:
        channel: Whether the server has the channel that the target asked for, so that chunks will come over it.
    """

    incarnation: str
    total: int
    checksum: int
    channel: bool = False


class Meeting(msgspec.Struct, frozen=True, tag=True):
    """The server is on its way to the channel."""


class Chunk(msgspec.Struct, frozen=True, tag=True):
    """Header of page bytes. `checksum` is their XXH3 (64 bit) with the offset as its seed.

    Attributes:
        channel: Whether they come over the channel; else they are the frame after this one.
    """

    number: int
    offset: int
    length: int
    checksum: int
    channel: bool = False


class Alive(msgspec.Struct, frozen=True, tag=True):
    """The server is there and holds chunks back, since it keeps to its rate."""


class Unavailable(msgspec.Struct, frozen=True, tag=True):
    """The request was not carried out.

    Attributes:
        kind: One of "not-held", "other-pool", "restarted", "no-channel", "invalid", "internal".
        reason: A sentence.
    """

    kind: str
    reason: str


TransferReply = Page | Meeting | Chunk | Alive | Unavailable
