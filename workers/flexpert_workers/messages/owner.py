"""Worker ↔ page owner, over a UNIX socket: one request at a time, and pages as file descriptors beside the messages.

A frame is four bytes of length, little-endian, and a tagged MessagePack struct (`memory.passing`). The connection is
the lease of all that was lent over it: when it ends, so do they.
"""

import msgspec

Expert = tuple[int, int]


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The first message of a borrower, whose name is unique for ever; answered by `Welcome`.

    Attributes:
        num_pages: Experts of the checkpoint, over all layers; each has a page of `page_bytes`.
        memory: In which the borrower maps pages: `PageBackend.name`.
    """

    borrower: str
    pool: str
    digest: str
    page_bytes: int
    num_pages: int
    memory: str = "host"


class Acquire(msgspec.Struct, frozen=True, tag=True):
    """Ask for experts: (layer, index, endpoints of peers to copy from). Answered by `Lent` again and again, each of
    which the borrower answers by `Received`, and in the end by `Done`; or by `Failed`.
    """

    experts: tuple[tuple[int, int, tuple[str, ...]], ...]


class Received(msgspec.Struct, frozen=True, tag=True):
    """The descriptors of a `Lent` have arrived; not `more` ends the request, also while pages are waited for.

    `released` is as in `Release`.
    """

    more: bool
    released: tuple[Expert, ...] = ()


class Release(msgspec.Struct, frozen=True, tag=True):
    """End leases. There is no answer."""

    experts: tuple[Expert, ...]


class HandBack(msgspec.Struct, frozen=True, tag=True):
    """Pages that an earlier owner lent, with their descriptors beside: (layer, index, checksum).

    Answered by `HandedBack`.
    """

    experts: tuple[tuple[int, int, int], ...]


class DropIdle(msgspec.Struct, frozen=True, tag=True):
    """Drop every page that nobody borrows; answered by `Done`."""


class AskOwner(msgspec.Struct, frozen=True, tag=True):
    """Ask what the owner has; answered by `OwnerState`."""


class Busy(msgspec.Struct, frozen=True, tag=True):
    """How busy the borrower is with serving, from 0 to 1; told at any time. There is no answer."""

    share: float


OwnerRequest = Hello | Acquire | Received | Release | HandBack | DropIdle | AskOwner | Busy


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """Who the owner is."""

    domain: str
    transfer_endpoint: str
    pid: int


class LentPage(msgspec.Struct, frozen=True, array_like=True):
    """One page of a `Lent`; see `memory.loans.Loan`."""

    layer: int
    index: int
    checksum: int
    origin: str
    copy_s: float
    verify_s: float


class Lent(msgspec.Struct, frozen=True, tag=True):
    """Pages, and beside them a descriptor each, in the same order."""

    pages: tuple[LentPage, ...]


class HandedBack(msgspec.Struct, frozen=True, tag=True):
    """Experts that the new owner did not adopt: the borrower keeps what it has mapped, and its lease."""

    refused: tuple[Expert, ...]


class Done(msgspec.Struct, frozen=True, tag=True):
    """Carried out; `freed` counts bytes."""

    freed: int = 0


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Not carried out. `kind` is one of "capacity", "checkpoint", "identity", "page" and "internal"."""

    kind: str
    reason: str


class OwnerState(msgspec.Struct, frozen=True, tag=True):
    """What an owner has; bytes include padding and empty pages made ahead of need. `busy` is what it makes way for."""

    experts: tuple[Expert, ...]
    used_bytes: int
    budget_bytes: int
    lent: int
    idle: int
    busy: float = 0.0


OwnerReply = Welcome | Lent | HandedBack | Done | Failed | OwnerState
