"""Which device and which page owner belong to a slot."""

from dataclasses import replace

from flexpert_workers.pool.owners import device_of, owner_config, owner_domain, owner_place
from flexpert_workers.pool.state import PoolSpec, Slot

SPEC = PoolSpec("uid", "name", "default", "file:///model", workers_per_pod=4, memory_per_worker_bytes=100)


def slots(gpus: int) -> list[Slot]:
    return [Slot(f"node/{number}", pod="pod", number=number, gpus=gpus) for number in range(4)]


def test_the_workers_of_a_pod_without_gpus_share_the_hosts_memory() -> None:
    places = {owner_place("pod", slot) for slot in slots(0)}
    assert places == {"pod"}
    assert {device_of(slot) for slot in slots(0)} == {"cpu"}
    config = owner_config("domain", SPEC, slots(0)[0])
    assert (config.budget_bytes, config.device, config.copy_bytes_per_s) == (400, "cpu", None)
    limited = owner_config("domain", replace(SPEC, copy_bytes_per_s=1000), slots(0)[0])
    assert limited.copy_bytes_per_s == 1000


def test_workers_take_the_gpus_of_their_pod_in_turn_and_share_an_owner_on_each() -> None:
    assert [device_of(slot) for slot in slots(2)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    domains = [owner_domain(owner_place("pod", slot), SPEC) for slot in slots(2)]
    assert domains[0] == domains[2] != domains[1] == domains[3]
    config = owner_config(domains[1], SPEC, slots(2)[1])
    assert (config.budget_bytes, config.device) == (200, "cuda:1")
    alone = owner_config(domains[0], replace(SPEC, workers_per_pod=1), slots(1)[0])
    assert (alone.budget_bytes, alone.device) == (100, "cuda:0")
