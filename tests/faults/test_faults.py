"""SIGKILL of every part in every phase of a reconfiguration, while clients stream greedy text."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from faults_nodes import Process
from faults_report import PHASES, VICTIMS, Cell, Found, Report, documented
from faults_world import Standing, World, kill

from flexpert_proto import pool_pb2

pytestmark = pytest.mark.skipif(
    os.environ.get("FLEXPERT_FAULTS") != "1", reason="set FLEXPERT_FAULTS=1 to kill every part in every phase"
)

IMPOSSIBLE: dict[Cell, str] = {
    ("deprovision", "source worker"): "it was ended when it had nothing left, before its pod goes",
}
GROWS, SHRINKS = ("provision",), ("deprovision",)
MESSAGES = {
    "provision": ("FirstDescribe", 0),
    "prepare": ("AskPrepare", 0),
    "commit": ("StoreTable", 1),
    "retire": ("Retire", 0),
}
"""What is held on its way to workers so that a phase lasts, and how many of these messages pass before."""


def order() -> Iterator[Cell]:
    """Growth and shrinking in turn, so that a cell seldom has to prepare the pool's size for itself."""
    for number, victim in enumerate(VICTIMS):
        in_turn = ["provision", "deprovision", "prepare", "commit", "retire"]
        back = ["deprovision", "provision", "commit", "prepare", "retire"]
        phases = back if number % 2 else in_turn
        yield from ((phase, victim) for phase in phases if (phase, victim) not in IMPOSSIBLE)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("phase", "victim"), order())
def test_a_death_in_a_phase(world: World, report: Report, phase: str, victim: str) -> None:
    before = _start(world, phase)
    wanted = 5 - len(before.workers)
    with _held(world, phase) as held:
        world.scale(wanted)
        held()
        under_way = world.operation()
        kill(_victim(world, before, victim, grows=wanted == 3))
        died = time.monotonic()
    after = world.settle(wanted)
    healed_s = time.monotonic() - died
    world.streams_go_on()
    assert world.clients.wrong == []
    assert after.epoch > before.epoch
    change = f"{len(before.workers)} → {wanted}"
    report.cells[phase, victim] = Found(change, world.ended(under_way), healed_s)
    report.completed = world.clients.completed


def test_the_document_tells_of_every_cell(world: World, report: Report) -> None:
    report.write(IMPOSSIBLE)
    told = documented()
    assert set(told) == {(phase, victim) for phase in PHASES for victim in VICTIMS}
    assert {cell for cell, text in told.items() if not text.startswith("✓")} == set(IMPOSSIBLE)


def _start(world: World, phase: str) -> Standing:
    pool = world.pool()
    assert pool is not None
    size = len({replica.worker for replica in pool.placement})
    size = 2 if phase in GROWS else 3 if phase in SHRINKS else size
    world.scale(size)
    return world.settle(size)


def _held(world: World, phase: str) -> AbstractContextManager[Callable[[], None]]:
    return world.deletions_held() if phase == "deprovision" else world.held(*MESSAGES[phase])


def _victim(world: World, before: Standing, victim: str, *, grows: bool) -> Process:
    if victim in ("operator", "engine"):
        return world.processes(victim)[0]
    if victim == "pool controller":
        return world.processes("controller")[0]
    workers = {one.name: one for one in world.processes("worker")}
    going = world.to_delete()
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
    pool = world.pool()
    assert pool is not None
    leaving = {one.id for one in pool.workers if one.state == pool_pb2.Worker.DRAINING} & set(before.workers)
    staying = [name for name in before.workers if name not in leaving]
    target = workers[staying[0]]
    return workers.get(leaving.pop(), target), target
