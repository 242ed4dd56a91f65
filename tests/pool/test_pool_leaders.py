"""Two operators, each with its lease and its client, against one pool controller: the one that led steers no more."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flexpert_operator.api.spec import Model, parse_deployment
from flexpert_operator.decide.observation import Cause, Epoch
from flexpert_operator.decide.placing import Reconfiguration
from flexpert_operator.errors import KubeUnavailable, Outdone, PoolRefused
from flexpert_operator.fence import Fence, NoFence
from flexpert_operator.kube import Kube, Resource, api_client
from flexpert_operator.leadership import CountingLock, Leadership, Times
from flexpert_operator.local.kubeapi import KubeApiServer
from flexpert_operator.pool_client import PoolClient
from flexpert_placement.types import Plan
from flexpert_workers.pool.service import serve
from flexpert_workers.pool.state import Condition

LEASES = Resource("coordination.k8s.io", "v1", "leases")
TIMES = Times(lease_s=15.0, deadline_s=10.0, retry_s=0.001)
BODY = {
    "metadata": {"name": "tiny", "namespace": "default", "uid": "uid-1", "generation": 1, "resourceVersion": "1"},
    "spec": {"model": {"source": "file:///model"}, "experts": {"workers": 3, "memoryPerWorker": 10_000}},
}
MODEL = Model("file:///model", "", "Auto")


class Number(NoFence):
    """The fence of what was sent while it was still open."""

    def __init__(self, number: int) -> None:
        self._number = number

    def check(self) -> int:
        return self._number


class Clock:
    """A clock that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Steerer:
    """An operator's lease, the clock of its host, and what it steers the pool with."""

    leadership: Leadership
    clock: Clock
    pool: PoolClient

    async def leads(self) -> bool:
        """Whether one attempt at the lease succeeds."""

        class Once(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                self.set()
                return True

        return await asyncio.to_thread(self.leadership.acquire, Once())

    async def ask(self, what: str, *arguments: Any) -> Any:
        return await asyncio.to_thread(getattr(self.pool, what), *arguments)

    async def configure(self, incarnation: str, term: int = 1) -> None:
        await self.ask("configure", parse_deployment(BODY), MODEL, incarnation, term, 1, 3)


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with KubeApiServer() as api:
        yield api.write_kubeconfig(tmp_path_factory.mktemp("leaders") / "kubeconfig")


@pytest.fixture
async def operators(rig: Any, kubeconfig: Path, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """Makes operators in front of the rig's controller, of one lease where they have no other fence."""
    server, port = await serve(rig.controller, "127.0.0.1:0")
    made: list[PoolClient] = []

    def make(identity: str, fence: Fence | None = None) -> Steerer:
        clock, lease = Clock(), request.node.name.replace("_", "-")
        lock = CountingLock(api_client(kubeconfig), lease, "default", identity, 10.0)
        leadership = Leadership(lock, TIMES, clock)
        made.append(PoolClient(f"127.0.0.1:{port}", fence or leadership))
        return Steerer(leadership, clock, made[-1])

    yield make
    for client in made:
        client.close()
    await server.stop(None)


def draining(rig: Any) -> set[str]:
    return {worker.id for worker in rig.controller.fleet.all() if worker.condition is Condition.DRAINING}


async def test_a_leader_that_was_followed_by_another_steers_no_more(rig: Any, operators: Any) -> None:
    old, new = operators("old"), operators("new")
    incarnation = rig.controller.incarnation
    assert await old.leads()
    await old.configure(incarnation)
    first, second, _ = await rig.ready(3)
    await old.ask("drain", (first,), False)
    assert not await new.leads()
    new.clock.now += 16.0  # time that the old one, stopped in the middle of a reconciliation, knows nothing of
    assert await new.leads()
    assert new.leadership.check() > old.leadership.check()
    await old.ask("drain", (first,), True)
    assert not new.pool.is_followed(incarnation)
    await new.configure(incarnation)
    assert new.pool.is_followed(incarnation)
    wanted = Reconfiguration("late", Epoch(0, 0), Cause.SCALE, Plan((), {}, ()))
    on_its_way = operators("old", Number(1))
    for what, arguments in (
        ("drain", ((second,), False)),
        ("configure", (parse_deployment(BODY), MODEL, incarnation, 1, 7, 9)),
        ("reconfigure", (wanted,)),
    ):
        with pytest.raises(Outdone, match=r"leader 1 steers no more: this pool has heard from leader 2"):
            await on_its_way.ask(what, *arguments)
    with pytest.raises(Outdone):
        await old.ask("drain", (second,), False)
    with pytest.raises(KubeUnavailable, match="later leader"):
        await old.ask("drain", (second,), False)
    assert rig.controller.spec.workers == 3
    assert not rig.controller.operations.running
    assert draining(rig) == set()
    assert not await old.leads()
    told: list[str] = []
    await asyncio.to_thread(old.leadership.keep, told.append)
    assert told == ["new leads"]
    await new.ask("drain", (second,), False)
    await operators("a pod that ends", NoFence()).ask("drain", (first,), False)
    assert draining(rig) == {first, second}


async def test_a_leader_whose_lease_was_deleted_takes_a_higher_number(
    rig: Any, operators: Any, kubeconfig: Path, request: pytest.FixtureRequest
) -> None:
    rig.controller.keeper.follow(41)
    only, incarnation = operators("only"), rig.controller.incarnation
    assert await only.leads()
    assert only.leadership.check() == 1
    with pytest.raises(Outdone):
        await only.configure(incarnation)
    with pytest.raises(KubeUnavailable):
        only.leadership.check()
    assert await only.leads(), "the lease says that it leads"
    assert only.leadership.check() == 42
    await only.configure(incarnation)
    only.clock.now += 1.0
    assert await only.leads()
    assert only.leadership.check() == 42, "a renewal is no other leadership"
    lease = Kube(api_client(kubeconfig)).get(LEASES, "default", request.node.name.replace("_", "-"))
    assert lease["spec"]["leaseTransitions"] == 42


async def test_operators_that_are_not_elected_are_not_compared(rig: Any, operators: Any) -> None:
    one, incarnation = operators("one", NoFence()), rig.controller.incarnation
    rig.controller.keeper.follow(3)
    await one.configure(incarnation)
    assert one.pool.is_followed(incarnation)
    with pytest.raises(PoolRefused, match="incarnation"):
        await one.configure("another")
