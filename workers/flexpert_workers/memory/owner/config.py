"""What a page owner is told when it starts; launchers write it, as JSON for a process of its own."""

import msgspec


class OwnerConfig(msgspec.Struct, frozen=True):
    """One page owner.

    Attributes:
        domain: Its id; a successor that takes over its socket has the same.
        pool: uid of the MoEDeployment that it serves, and no other.
        source: The checkpoint, e.g. "file:///models/tiny-moe".
        dtype: "Auto" (the checkpoint's), "Float32", "BFloat16" or "Float16".
        budget_bytes: All pages together take no more.
        socket: Path of the UNIX socket to lend over.
        bind_host: Address on which other owners may copy pages.
        socket_dir: Folder for UNIX sockets on a loopback `bind_host`; empty for TCP.
        readers: Pages that are filled at once.
        ahead: Empty pages made ahead of need.
        copy_bytes_per_s: Rate of what comes in, from other owners and the file, and of copies to other owners, each,
            while serving is idle; None for as fast as they go.
        device: In whose memory the pages are: "cpu", "cuda:N" or "cuda:UUID".
    """

    domain: str
    pool: str
    source: str
    dtype: str
    budget_bytes: int
    socket: str
    bind_host: str
    socket_dir: str
    readers: int = 2
    ahead: int = 4
    copy_bytes_per_s: int | None = None
    device: str = "cpu"
