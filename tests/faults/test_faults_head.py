"""SIGKILL of the Ray head in every phase of a reconfiguration, on real Ray nodes, while clients stream greedy text.

With the head go its GCS, its raylet and the pool controller; the runtime starts it again on its port, with its tables.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults_laptop import Laptop
from faults_report import MESSAGES, PHASES, RAY_HEAD, Found, Report, runs_all

pytestmark = [
    pytest.mark.local,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not runs_all(), reason="`make faults` kills the Ray head in every phase"),
]

ORDER = ("provision", "deprovision", "prepare", "commit", "retire")
assert set(ORDER) == set(PHASES)


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    folder: Path = tmp_path_factory.mktemp("laptop")
    with pytest.MonkeyPatch.context() as patch:
        made = Laptop(folder, patch)
        try:
            made.start()
            yield made
        finally:
            made.close()


@pytest.mark.parametrize("phase", ORDER)
def test_the_head_dies_in_a_phase(laptop: Laptop, report: Report, phase: str) -> None:
    pool = laptop.pool
    before = pool.begin(("provision", "prepare"), ("deprovision", "commit"), phase)
    wanted = 5 - len(before.workers)
    restarts = pool.until("the head", lambda: laptop.head_restarts() + 1) - 1
    with _held(laptop, phase) as held:
        pool.scale(wanted)
        held()
        under_way = pool.operation()
        laptop.kill_head()
        died = time.monotonic()
        pool.streams_go_on()
    pool.until("the next head", lambda: laptop.head_restarts() > restarts)
    after = pool.settle(wanted)
    healed_s = time.monotonic() - died
    pool.streams_go_on()
    assert pool.clients.take_wrong() == []
    assert after.epoch > before.epoch
    change = f"{len(before.workers)} → {wanted}"
    report.cells[phase, RAY_HEAD] = Found(change, pool.ended(under_way), healed_s)
    report.completed["laptop"] = pool.clients.completed


@contextmanager
def _held(laptop: Laptop, phase: str) -> Iterator[Callable[[], None]]:
    """Hold a phase; pods that are to be deleted need not be held, for Ray nodes take seconds to end."""
    if phase == "deprovision":
        yield lambda: laptop.pool.until("a pod is to go", laptop.pool.to_delete)
        return
    with laptop.pool.held(*MESSAGES[phase]) as held:
        yield held
