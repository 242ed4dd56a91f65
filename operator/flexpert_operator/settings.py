"""What an operator process is told about itself; `__main__` fills it in from the command line."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flexpert_proto import names

RAY_VERSION = "2.60.0"
IMAGE = "ghcr.io/flexpert/flexpert:0.1.0"


def on_a_laptop() -> bool:
    """Whether the laptop runtime plays the cluster: it tells every process where its Services are."""
    return names.ENV_SERVICES in os.environ


@dataclass(frozen=True)
class GcsStore:
    """Where Ray's heads keep their tables, so that a head that is lost comes back with them.

    Attributes:
        backend: "redis", or "rocksdb" on a volume of the head, which KubeRay has to be started with its feature gate
            GCSFaultToleranceEmbeddedStorage for.
        redis_address: `host:port` of the Redis server.
        redis_secret: Name of the Secret with its password, in the namespace of the MoEDeployment; empty: no password.
        redis_secret_key: Key in that Secret.
        volume_size: Of the volume, as Kubernetes writes quantities.
        volume_class: StorageClass of the volume; empty: the default one.
    """

    backend: Literal["redis", "rocksdb"]
    redis_address: str = ""
    redis_secret: str = ""
    redis_secret_key: str = "password"
    volume_size: str = "1Gi"
    volume_class: str = ""


@dataclass(frozen=True)
class PoolNetwork:
    """Who may reach the pods of pools from outside of them, as peers of a NetworkPolicy.

    Attributes:
        operators: The operator's own pods.
        clients: Who may send requests; none: anybody.
        monitors: Who may read metrics; none: anybody.
    """

    operators: tuple[Mapping[str, Any], ...]
    clients: tuple[Mapping[str, Any], ...] = ()
    monitors: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class PrometheusAt:
    """A Prometheus' HTTP API, and the file with the bearer token that it wants, if it wants one."""

    url: str
    token_file: Path | None = None


@dataclass(frozen=True)
class Settings:
    """Settings of an operator process.

    Attributes:
        resync_s: Seconds between two reconciliations of an object that does not change.
        busy_s: The same while something is under way.
        image: Container image of every pod.
        ingress_replicas: Ingress processes of a MoEDeployment.
        provision_deadline_s: Time that new pods have to come, before the old size is restored.
        retry_s: Time after which a failed growth is tried again.
        inspect_retry_s: Time after which a checkpoint that was refused is looked at again.
        drain_deadline_s: Time that running requests have to end when a MoEDeployment is deleted.
        max_surge: Pods of a group that are replaced at a time when their template changes.
        headroom_wait_s: Time that a new pod has to find a node, before an older one makes place for it.
        settle_s: Time that every ingress needs to learn that another RayCluster serves.
        streams_deadline_s: Time that the streams of a RayCluster that no longer serves have to end.
        gcs: Where Ray's heads keep their tables; None: in memory, and a lost head is a lost pool.
        network: Who may reach the pods of pools; None: no NetworkPolicies are made.
        prometheus: Where policies' figures are read; None: pool controllers tell them.
        refresh_s: Seconds between two tellings of figures that creep, such as loads, by a pool controller.
        threads: MoEDeployments that are reconciled at once.
        policy_threads: Policies that are decided about at once.
    """

    resync_s: float = 300.0
    busy_s: float = 0.5
    image: str = IMAGE
    ingress_replicas: int = 2
    provision_deadline_s: float = 600.0
    retry_s: float = 300.0
    inspect_retry_s: float = 15.0
    drain_deadline_s: float = 60.0
    max_surge: int = 1
    headroom_wait_s: float = 120.0
    settle_s: float = 45.0
    streams_deadline_s: float = 600.0
    gcs: GcsStore | None = None
    network: PoolNetwork | None = None
    prometheus: PrometheusAt | None = None
    refresh_s: float = 10.0
    threads: int = 8
    policy_threads: int = 2
