"""Plays KubeRay over the host: a pod is a slot with a page owner, and what it deletes dies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from faults_nodes import Nodes
from simulated_cluster import SimulatedCluster

from flexpert_operator.api import names
from flexpert_operator.kube import Kube
from flexpert_workers.memory.owner.config import OwnerConfig

COPY_BYTES_PER_S = 8_000_000


class HostPool:
    """The pods of one pool, as slots of the host; what `SimulatedCluster` takes a pool for.

    Attributes:
        port: Of the pool controller.
    """

    def __init__(self, nodes: Nodes, port: int, owner: Callable[[str], OwnerConfig]) -> None:
        self.port = port
        self._nodes = nodes
        self._owner = owner
        self._pods: tuple[str, ...] = ()

    def set_pods(self, experts: tuple[str, ...], engines: tuple[str, ...]) -> None:
        """The pods that run now; a pod of engines is as good as any other here."""
        if experts != self._pods:
            slots = [{"id": pod, "owner": msgspec.json.encode(self._owner(pod)).decode()} for pod in experts]
            self._nodes.ask("slots", slots=slots)
            self._pods = experts

    def stop(self) -> None:
        """The host ends what runs."""


class HostCluster(SimulatedCluster):
    """A cluster of one pool.

    Attributes:
        holds_deletions: Pods that are to be deleted stay, as long as it is set.
    """

    def __init__(self, kube: Kube, services: Path, name: str, pool: HostPool, ingress: Callable[[], str]) -> None:
        super().__init__(kube, services)
        self.holds_deletions = False
        self._name = name
        self._pool = pool
        self._ingress = ingress
        self.pools[name] = pool  # type: ignore[assignment]

    def start(self) -> None:
        """Begin to play."""
        self.__enter__()

    def stop(self) -> None:
        """End playing; the pods stay."""
        self.__exit__()

    def _play_group(self, cluster: dict[str, Any], group: dict[str, Any], pods: list[dict[str, Any]]) -> None:
        if not (self.holds_deletions and group["scaleStrategy"]["workersToDelete"]):
            super()._play_group(cluster, group, pods)

    def _table(self, clusters: list[dict[str, Any]]) -> dict[str, str]:
        return {
            names.pool_control_address(self._name, "default"): f"127.0.0.1:{self._pool.port}",
            names.cluster_control_address(self._name, "default"): f"127.0.0.1:{self._pool.port}",
            names.ingress_address(self._name, "default", 9000): self._ingress(),
        }
