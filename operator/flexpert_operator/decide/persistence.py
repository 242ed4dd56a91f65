"""Does a Ray head that is lost come back with its tables? Pure; the condition HeadPersistent says so beforehand."""

from flexpert_operator.api.conditions import HEAD_PERSISTENT, Condition, ConditionStatus
from flexpert_operator.settings import GcsStore


def persistence_condition(store: GcsStore | None) -> Condition:
    """The condition HeadPersistent of every MoEDeployment of an operator with this setting."""
    if store is None:
        message = (
            "Ray's tables are in the head's memory: a lost head is a lost pool. Start the operator with "
            "--gcs-redis-address or --gcs-volume-size"
        )
        return Condition(HEAD_PERSISTENT, ConditionStatus.FALSE, "GcsInMemory", message)
    if store.backend == "redis":
        message = f"Ray's tables are in Redis at {store.redis_address}"
        return Condition(HEAD_PERSISTENT, ConditionStatus.TRUE, "GcsInRedis", message)
    return Condition(HEAD_PERSISTENT, ConditionStatus.TRUE, "GcsOnVolume", "Ray's tables are on a volume of the head")
