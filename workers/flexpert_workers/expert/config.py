"""What an expert worker is told when it starts; the pool's launchers write it, as JSON for a process of its own."""

import msgspec


class WorkerConfig(msgspec.Struct, frozen=True):
    """One expert worker.

    Attributes:
        worker: Its id, unique in the pool for ever.
        pool: uid of the MoEDeployment that it serves, and no other.
        source: The checkpoint, e.g. "file:///models/tiny-moe".
        dtype: "Auto" (the checkpoint's), "Float32", "BFloat16" or "Float16".
        memory_bytes: Budget for experts.
        threads: Threads that compute.
        bind_host: Address to listen on.
        pod: Pod it runs in.
        node: Kubernetes node it runs on.
        socket_dir: Folder for UNIX sockets on a loopback `bind_host`; empty for TCP.
        owner_socket: Path of the socket of its page owner; empty for an owner inside the worker.
        poll_us: For how long the compute thread polls for the next dispatch before it sleeps.
        device: That computes, and in whose memory the experts are: "cpu", "cuda:N" or "cuda:UUID"; its page owner's.
    """

    worker: str
    pool: str
    source: str
    dtype: str
    memory_bytes: int
    threads: int
    bind_host: str
    pod: str
    node: str
    socket_dir: str
    owner_socket: str = ""
    poll_us: int = 0
    device: str = "cpu"
