"""The operator is killed at random moments while everything changes: the pools converge, and nothing is left over.

FLEXPERT_KILLS says how often (default 3).
"""

import contextlib
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from operator_process import OperatorProcess, moe_deployment
from simulated_cluster import NAMESPACE, SimulatedCluster
from simulated_world import World, pool_pods

from flexpert_operator.api import names
from flexpert_operator.errors import KubeError
from flexpert_operator.kube import DEPLOYMENTS, MOE_DEPLOYMENTS, PODS, RAY_CLUSTERS, SERVICES, Kube, api_client
from flexpert_operator.local.kubeapi import KubeApiServer
from flexpert_operator.local.up import install_crds
from flexpert_proto import names as pool_names

KILLS = int(os.environ.get("FLEXPERT_KILLS", "3"))
SEED = int(os.environ.get("FLEXPERT_KILLS_SEED", "7"))
OBJECTS = ("alpha", "beta", "gamma")
OPTIONS = ("--no-leader-elect", "--resync-seconds", "2", "--provision-deadline-seconds", "120")
MOST_S = 2.5


class Killable:
    """An operator process that is killed and started again."""

    def __init__(self, kubeconfig: Path, log: Path) -> None:
        self._kubeconfig = kubeconfig
        self._log = log
        self.process = self._start()

    def kill(self, chance: random.Random) -> None:
        """Kill it at some moment, in most cases once it has begun to work; start another one."""
        if chance.random() < 0.8:
            self.process.until("it works", lambda: "authentication has finished" in self.process.log())
        threading.Event().wait(chance.uniform(0.0, MOST_S))
        self.process.process.kill()
        self.process.process.wait()
        self._log.write_text("")
        self.process = self._start()

    def stop(self) -> None:
        """End it."""
        self.process.__exit__()

    def _start(self) -> OperatorProcess:
        return OperatorProcess(self._kubeconfig, self._log, *OPTIONS)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    services = tmp_path / "services.json"
    services.write_text("{}")
    monkeypatch.setenv(pool_names.ENV_SERVICES, str(services))
    with contextlib.ExitStack() as stack:
        api = stack.enter_context(KubeApiServer())
        kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
        kube = Kube(api_client(kubeconfig))
        install_crds(kube)
        cluster = stack.enter_context(SimulatedCluster(kube, services))
        operator = Killable(kubeconfig, tmp_path / "operator.log")
        stack.callback(operator.stop)
        yield World(kubeconfig, cluster, operator)


def churn(world: World, chance: random.Random) -> None:
    """Change something: a size, the engines, a child; or delete an object, which is then made anew."""
    name = chance.choice(OBJECTS)
    with contextlib.suppress(KubeError):
        body = world.kube.find(MOE_DEPLOYMENTS, NAMESPACE, name)
        if body is None:
            world.kube.create(MOE_DEPLOYMENTS, NAMESPACE, moe_deployment(name))
            return
        what = chance.random()
        if what < 0.6:
            world.scale(name, chance.randint(1, 4))
        elif what < 0.75:
            world.patch(name, {"engines": {"replicas": chance.randint(1, 2)}})
        elif what < 0.9:
            world.kube.delete(SERVICES, NAMESPACE, names.ingress(name))
        else:
            world.kube.delete(MOE_DEPLOYMENTS, NAMESPACE, name)


def test_kills_at_random(world: World) -> None:
    chance = random.Random(SEED)
    for name in OBJECTS:
        world.kube.create(MOE_DEPLOYMENTS, NAMESPACE, moe_deployment(name))
    for _ in range(KILLS):
        for _ in range(chance.randint(1, 3)):
            churn(world, chance)
        world.operator.kill(chance)
    wanted = dict.fromkeys(OBJECTS, 2)
    for name in OBJECTS:
        world.until(
            f"{name} is not being deleted",
            lambda name=name: "deletionTimestamp" not in (find(world, name) or {"metadata": {}})["metadata"],
        )
        if find(world, name) is None:
            world.kube.create(MOE_DEPLOYMENTS, NAMESPACE, moe_deployment(name))
        world.scale(name, wanted[name])
        world.patch(name, {"engines": {"replicas": 1}})
    for name in OBJECTS:
        world.until(f"{name} serves", lambda name=name: world.is_settled(name) and holders(world, name) == 2, 240)
        world.until(f"{name} has its pods", lambda name=name: len(pool_pods(world, name)) == 2, 240)
    check_nothing_is_left_over(world)


def find(world: World, name: str) -> dict[str, object] | None:
    return world.kube.find(MOE_DEPLOYMENTS, NAMESPACE, name)


def holders(world: World, name: str) -> int:
    return len(world.cluster.pools[name].holders())


def check_nothing_is_left_over(world: World) -> None:
    """One child of each name, of a living owner; no pod went that was not named; no operation was begun twice."""
    owners = {body["metadata"]["uid"] for body in world.kube.list(MOE_DEPLOYMENTS, NAMESPACE, "")}
    for resource in (RAY_CLUSTERS, SERVICES, DEPLOYMENTS):
        found = world.kube.list(resource, NAMESPACE, names.DEPLOYMENT_LABEL)
        of = [body["metadata"]["ownerReferences"][0]["uid"] for body in found]
        assert set(of) == owners
        assert len({of.count(uid) for uid in owners}) == 1, [body["metadata"]["name"] for body in found]
        assert resource == SERVICES or len(found) == len(OBJECTS)
    pods = world.kube.list(PODS, NAMESPACE, names.DEPLOYMENT_LABEL)
    roles = [pod["metadata"]["labels"][names.ROLE_LABEL] for pod in pods]
    assert {role: roles.count(role) for role in set(roles)} == {
        names.HEAD_ROLE: 3,
        names.ENGINES_ROLE: 3,
        names.EXPERTS_ROLE: 6,
        names.INGRESS_ROLE: 3,
    }
    assert world.cluster.random_deletions == []
    for pool in world.cluster.pools.values():
        identities = [request.operation_id for request in pool.requests]
        assert len(identities) == len(set(identities))
