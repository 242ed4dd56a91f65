import pytest

from flexpert_operator.decide.persistence import persistence_condition
from flexpert_operator.settings import GcsStore


@pytest.mark.parametrize(
    ("store", "status", "reason"),
    [
        (None, "False", "GcsInMemory"),
        (GcsStore("redis", "redis:6379"), "True", "GcsInRedis"),
        (GcsStore("rocksdb"), "True", "GcsOnVolume"),
    ],
)
def test_it_is_said_whether_a_head_comes_back_with_its_tables(store: GcsStore | None, status: str, reason: str) -> None:
    condition = persistence_condition(store)
    assert (condition.type, condition.status, condition.reason) == ("HeadPersistent", status, reason)
    assert store is not None or "--gcs-redis-address" in condition.message
