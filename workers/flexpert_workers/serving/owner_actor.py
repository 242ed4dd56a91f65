"""The page owner as a Ray actor of the pod it lands in. `ray_launcher` creates it, one for all workers of the pod.

It is no child of a worker, and restarted by Ray when it dies: its pages come back from the workers that map them.
"""

import os

import msgspec

from flexpert_proto import logs
from flexpert_workers import threads
from flexpert_workers.memory.owner import OwnerConfig
from flexpert_workers.pool.owners import owner_socket
from flexpert_workers.serving.node import NodeFacts


class PodOwner:
    """A page owner that takes addresses and folders from its pod's environment.

    Args:
        config: `OwnerConfig` as JSON; what only the pod knows is left empty in it.
    """

    def __init__(self, config: str) -> None:
        logs.configure(own=logs.of_pool("page-owner"))
        os.environ.update(threads.environment(1))  # before torch reads it, should it be needed
        from flexpert_workers.memory.owner.process import OwnerProcess

        self._config = localised(msgspec.json.decode(config, type=OwnerConfig), NodeFacts.of())
        self._owner = OwnerProcess(self._config)
        self._owner.start()

    def ready(self) -> dict[str, str | int]:
        """Where the owner is, as a process of its own prints it."""
        return {"domain": self._config.domain, "socket": self._config.socket, "pid": os.getpid()}


def localised(config: OwnerConfig, node: NodeFacts) -> OwnerConfig:
    """The configuration with what the pod knows."""
    return msgspec.structs.replace(
        config,
        bind_host=node.bind_host,
        socket_dir=node.socket_dir,
        socket=owner_socket(node.socket_dir, config.domain),
    )
