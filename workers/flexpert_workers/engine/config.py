"""What an engine is told when it starts: by the Serve replica, by the subprocess launcher, or by a test."""

import msgspec


class EngineConfig(msgspec.Struct, frozen=True):
    """Configuration of one engine process.

    Attributes:
        engine: Id of the engine, unique in the pool.
        pool: uid of the MoEDeployment.
        source: The checkpoint, "file:///…".
        dtype: "Auto", "Float32", "BFloat16" or "Float16".
        max_batch_tokens: Token budget of one forward pass.
        kv_cache_bytes: Bound of the KV cache and all that scales with it; 0 derives it (see `memory.derive_kv_bytes`).
        threads: torch threads of this process; 0 takes one.
        pool_control: Address of the pool controller's gRPC server, resolved anew at every connection; empty for none.
        bind_host: Host of the socket that ingresses connect to.
        pod: Name of the pod, for status.
        socket_dir: Folder for `ipc://` sockets; empty for none.
        max_running: Most requests that hold pages at once.
        max_waiting: Length of the waiting queue, behind which requests are refused as overloaded.
        block_tokens: Tokens in one block of the KV cache.
        dispatch_deadline_s: How long a MoE layer may wait for its experts before the pass is abandoned.
        dispatch_hang_s: How long one worker may stay silent before its share is sent elsewhere.
        poll_us: For how long the engine polls for a worker's answer before it sleeps.
    """

    engine: str
    pool: str
    source: str
    dtype: str = "Auto"
    max_batch_tokens: int = 2048
    kv_cache_bytes: int = 0
    threads: int = 0
    pool_control: str = ""
    bind_host: str = "127.0.0.1"
    pod: str = ""
    socket_dir: str = ""
    max_running: int = 256
    max_waiting: int = 1024
    block_tokens: int = 16
    dispatch_deadline_s: float = 10.0
    dispatch_hang_s: float = 2.0
    poll_us: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers with which no pass could ever run.

        Raises:
            ValueError: One of them is not positive.
        """
        for name in ("max_batch_tokens", "max_running", "max_waiting", "block_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} has to be at least 1, not {getattr(self, name)}")
