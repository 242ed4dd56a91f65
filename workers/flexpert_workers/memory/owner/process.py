"""A page owner with everything it needs: what the process `memory.owner` and the Ray actor of the same kind run."""

from typing import Any

import zmq

from flexpert_workers.expert.control_client import ControlClient
from flexpert_workers.memory.backend import ExpertKey
from flexpert_workers.memory.host import HostBackend
from flexpert_workers.memory.owner.config import OwnerConfig
from flexpert_workers.memory.owner.domain import Domain
from flexpert_workers.memory.owner.server import OwnerServer


class OwnerProcess:
    """Lends pages from `start` until `stop`.

    Raises:
        OSError: Its socket cannot be bound.
    """

    def __init__(self, config: OwnerConfig) -> None:
        self._domain = Domain(config, HostBackend(), lambda _pool, _digest: fetch_from_worker)
        self._server = OwnerServer(self._domain, config.domain, config.socket)

    def start(self) -> None:
        """Begin to lend."""
        self._server.start()

    def stop(self) -> None:
        """End every lease and let go of every page."""
        self._server.stop()
        self._domain.close()


def fetch_from_worker(
    endpoint: str, key: ExpertKey, page: memoryview, context: "zmq.Context[Any] | None" = None
) -> int | None:
    """Copy an expert from the worker that holds it; its chunks carry checksums, its page none."""
    with ControlClient(endpoint, context) as peer:
        page[:] = peer.fetch(*key)
    return None
