"""A page owner with everything it needs: what the process `memory.owner` and the Ray actor of the same kind run."""

from flexpert_workers.memory.devices import DeviceOpener, open_device
from flexpert_workers.memory.owner.config import OwnerConfig
from flexpert_workers.memory.owner.reception import Reception
from flexpert_workers.memory.owner.server import OwnerServer


class OwnerProcess:
    """Lends pages from `start` until `stop`.

    Raises:
        DeviceUnavailable: The device that it is to have pages on is not there.
        OSError: Its socket cannot be bound.
    """

    def __init__(self, config: OwnerConfig, opener: DeviceOpener = open_device) -> None:
        self._reception = Reception(config, opener(config.device, computes=False, copies=True))
        self._server = OwnerServer(self._reception)

    def start(self) -> None:
        """Begin to lend."""
        self._server.start()

    def stop(self) -> None:
        """End every lease and let go of every page."""
        self._server.stop()
        self._reception.close()
