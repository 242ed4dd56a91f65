"""What a RayCluster says about where its head keeps its tables; `ray_cluster` puts it into the spec."""

from typing import Any

from flexpert_operator.settings import GcsStore


def gcs_options(store: GcsStore | None) -> dict[str, Any]:
    """`gcsFaultToleranceOptions` as a part of the spec; nothing where the tables stay in memory."""
    if store is None:
        return {}
    return {"gcsFaultToleranceOptions": redis_options(store) if store.backend == "redis" else volume_options(store)}


def redis_options(store: GcsStore) -> dict[str, Any]:
    """Redis, and where its password is. Without `backend` it is Redis, also for a KubeRay that knows nothing else."""
    options: dict[str, Any] = {"redisAddress": store.redis_address}
    if store.redis_secret:
        reference = {"name": store.redis_secret, "key": store.redis_secret_key}
        options["redisPassword"] = {"valueFrom": {"secretKeyRef": reference}}
    return options


def volume_options(store: GcsStore) -> dict[str, Any]:
    """RocksDB on a volume that KubeRay makes, mounts, and deletes with the RayCluster."""
    storage: dict[str, Any] = {"size": store.volume_size, "deletionPolicy": "DeleteWithCluster"}
    if store.volume_class:
        storage["storageClassName"] = store.volume_class
    return {"backend": "rocksdb", "storage": storage}
