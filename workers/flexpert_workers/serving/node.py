"""What a process learns from the environment of the pod it runs in. Used by the actors of `serving`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from flexpert_proto import names


@dataclass(frozen=True)
class NodeFacts:
    """The pod's names, where to listen, how many threads its processes may use together, and how long they poll."""

    pod: str
    node: str
    bind_host: str
    socket_dir: str
    threads: int
    poll_us: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "NodeFacts":
        """Read the variables that the manifest sets on every container."""
        return cls(
            pod=environment.get(names.ENV_POD, ""),
            node=environment.get(names.ENV_NODE, ""),
            bind_host=environment.get(names.ENV_BIND_HOST, "127.0.0.1"),
            socket_dir=environment.get(names.ENV_SOCKET_DIR, ""),
            threads=max(1, int(environment.get(names.ENV_THREADS, "1"))),
            poll_us=int(environment.get(names.ENV_POLL_US, "0")),
        )

    def threads_each(self, wanted: int, num_processes: int) -> int:
        """Threads of one of `num_processes` alike: what is wanted, or (0) its share."""
        return wanted or max(1, self.threads // max(1, num_processes))
