"""SIGKILL of every part in every phase of a reconfiguration, while clients stream greedy text.

By default a few cells, in which every part dies once and every phase is met; all of them with FLEXPERT_FAULTS=1.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from faults_nodes import Process
from faults_policy import play_bursts
from faults_pool import Standing
from faults_report import IMPOSSIBLE, MESSAGES, RAY_HEAD, VICTIMS, Cell, Found, Report, runs_all
from faults_world import World, kill

from flexpert_proto import pool_pb2

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]

GROWS, SHRINKS = ("provision", "prepare"), ("deprovision",)
SOME: tuple[Cell, ...] = (
    ("provision", "target worker"),
    ("deprovision", "engine"),
    ("prepare", "pool controller"),
    ("commit", "source worker"),
    ("retire", "page owner"),
    ("commit", "operator"),
    ("prepare", "target worker"),
    ("retire", RAY_HEAD),
)
"""Growth and shrinking in turn, so that no cell has to prepare the pool's size for itself.

The Ray head is played here; `test_faults_head` kills a real one.
"""


def order() -> Iterator[Cell]:
    """The cells to run, growing and shrinking in turn as far as that goes."""
    if not runs_all():
        yield from SOME
        return
    for number, victim in enumerate(victim for victim in VICTIMS if victim != RAY_HEAD):
        in_turn = ["provision", "deprovision", "prepare", "commit", "retire"]
        back = ["deprovision", "provision", "commit", "prepare", "retire"]
        phases = back if number % 2 else in_turn
        yield from ((phase, victim) for phase in phases if (phase, victim) not in IMPOSSIBLE)


@pytest.mark.parametrize(("phase", "victim"), order())
def test_a_death_in_a_phase(world: World, report: Report, phase: str, victim: str) -> None:
    pool = world.pool
    before = pool.begin(GROWS, SHRINKS, phase)
    wanted = 5 - len(before.workers)
    with _held(world, phase) as held:
        pool.scale(wanted)
        held()
        under_way = pool.operation()
        _kill(world, before, victim, grows=wanted == 3)
        died = time.monotonic()
    after = pool.settle(wanted)
    healed_s = time.monotonic() - died
    pool.streams_go_on()
    assert pool.clients.take_wrong() == []
    assert after.epoch > before.epoch
    change = f"{len(before.workers)} → {wanted}"
    report.cells[phase, victim] = Found(change, pool.ended(under_way), healed_s)
    report.completed["processes"] = pool.clients.completed


def _held(world: World, phase: str) -> AbstractContextManager[Callable[[], None]]:
    return world.deletions_held() if phase == "deprovision" else world.pool.held(*MESSAGES[phase])


def test_an_engine_that_never_acknowledges_is_expelled_and_comes_back(world: World) -> None:
    """DESIGN §6, 6. Its requests go to the other engine; when it goes on it attaches anew and learns the table."""
    pool = world.pool
    seen = pool.until("the pool controller", pool.seen)
    size = len({replica.worker for replica in seen.placement})
    before = pool.settle(size)
    silent = world.processes("engine")[0]
    assert silent.pid is not None
    os.kill(silent.pid, signal.SIGSTOP)
    try:
        pool.scale(5 - size)
        pool.until("a commit without it", lambda: _expelled(pool.seen(), silent.name))
        pool.streams_go_on()
    finally:
        os.kill(silent.pid, signal.SIGCONT)
    after = pool.settle(5 - size)
    assert after.epoch > before.epoch
    assert [one.pid for one in world.processes("engine") if one.name == silent.name] == [silent.pid]
    pool.streams_go_on()
    assert pool.clients.take_wrong() == []


def _expelled(pool: pool_pb2.Pool | None, engine: str) -> bool:
    """Whether the operation succeeded, saying that it did so without an engine."""
    if pool is None or pool.operation.phase != pool_pb2.SUCCEEDED:
        return False
    return "expelled" in pool.operation.message and engine in pool.operation.message


def _kill(world: World, before: Standing, victim: str, *, grows: bool) -> None:
    if victim == RAY_HEAD:
        world.lose_head()
    else:
        kill(_victim(world, before, victim, grows=grows))


def _victim(world: World, before: Standing, victim: str, *, grows: bool) -> Process:
    if victim in ("operator", "engine"):
        return world.processes(victim)[0]
    if victim == "pool controller":
        return world.processes("controller")[0]
    workers = {one.name: one for one in world.processes("worker")}
    going = world.pool.to_delete()
    if victim == "page owner" and going:
        return next(one for one in world.processes("owner") if one.slot in going)
    source, target = _ends(world, before, workers, grows=grows)
    if victim == "page owner":
        return next(one for one in world.processes("owner") if one.slot == source.slot)
    return source if victim == "source worker" else target


def _ends(world: World, before: Standing, workers: dict[str, Process], *, grows: bool) -> tuple[Process, Process]:
    """A worker that experts come from, and one that they go to."""
    if grows:
        new = [one for name, one in workers.items() if name not in before.workers]
        return workers[before.workers[0]], new[0]
    seen = world.pool.seen()
    assert seen is not None
    leaving = {one.id for one in seen.workers if one.state == pool_pb2.Worker.DRAINING} & set(before.workers)
    staying = [name for name in before.workers if name not in leaving]
    target = workers[staying[0]]
    return workers.get(leaving.pop(), target), target


def test_bursts_under_a_policy(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody is killed here: it is the last to use the pool, whose size is the policy's from then on."""
    said = play_bursts(world)
    with capsys.disabled():
        print(f"\n{said}")
