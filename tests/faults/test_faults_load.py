"""A thousand streams at once for five minutes; the pool grows, a worker dies and an engine dies meanwhile.

Runs where FLEXPERT_LOAD names seconds, such as 300; its numbers go to `build/load.json`.
"""

import asyncio
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from faults_clients import reference
from faults_load import RESIDENTS, STREAMS_OF_RESIDENT, VISITORS, Load
from faults_pool import MODEL, ROOT
from faults_world import World, kill

SECONDS = float(os.environ.get("FLEXPERT_LOAD", "0"))
WARM_UP_S = 10.0
LOOK_S = 2.0
MIB = 2**20
MOST_GROWTH_BYTES = {"ingress": 96 * MIB, "engine": 96 * MIB, "worker": 64 * MIB, "controller": 64 * MIB}
"""By which a process's memory may grow from the time when all streams are open to the end."""
MOST_UNFAIR = 0.10

pytestmark = [
    pytest.mark.local,
    pytest.mark.timeout(SECONDS + 1200),
    pytest.mark.skipif(SECONDS <= 0, reason="FLEXPERT_LOAD names no seconds: this takes minutes"),
]


class Memory:
    """Looks at the memory of every process of the pool, again and again."""

    def __init__(self, world: World) -> None:
        self.seen: dict[tuple[str, int], list[int]] = {}
        self._world = world
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(LOOK_S):
            for kind in MOST_GROWTH_BYTES:
                for process in self._world.processes(kind):
                    if process.pid is not None and psutil.pid_exists(process.pid):
                        rss = psutil.Process(process.pid).memory_info().rss
                        self.seen.setdefault((kind, process.pid), []).append(rss)

    def growth(self) -> dict[str, int]:
        """Most that a process of each kind has grown behind its first third, by medians of the looks."""
        found: dict[str, int] = {}
        for (kind, _), looks in self.seen.items():
            third = len(looks) // 3
            if third >= 3:
                grown = int(np.median(looks[-third:]) - np.median(looks[third : 2 * third]))
                found[kind] = max(grown, found.get(kind, 0))
        return found


def test_a_thousand_streams(world: World) -> None:
    world.pool.clients.stop()
    assert world.pool.clients.take_wrong() == []
    load = Load(world._ingress_address, reference(MODEL))
    running = threading.Thread(target=lambda: asyncio.run(load.run(SECONDS, WARM_UP_S)))
    marks: dict[str, float] = {}
    with Memory(world) as memory:
        began = time.monotonic()
        running.start()
        at = lambda part: wait_until(began + WARM_UP_S + part * SECONDS)  # noqa: E731
        at(0.25)
        world.pool.scale(3)
        world.pool.until("three workers", lambda: holders(world) == 3, 240)
        marks["grown_s"] = time.monotonic() - began - WARM_UP_S - 0.25 * SECONDS
        at(0.5)
        kill(world.processes("worker")[0])
        at(0.7)
        kill(world.processes("engine")[0])
        running.join()
    report = told(load, memory, marks)
    (ROOT / "build").mkdir(exist_ok=True)
    Path(ROOT, "build", "load.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    assert load.seen.lost == []
    assert load.seen.most_open >= 0.95 * (RESIDENTS * STREAMS_OF_RESIDENT + VISITORS)
    assert report["unfairness"] <= MOST_UNFAIR
    assert all(grown <= MOST_GROWTH_BYTES[kind] for kind, grown in memory.growth().items()), memory.growth()
    world.pool.settle(3)


def wait_until(when: float) -> None:
    threading.Event().wait(max(0.0, when - time.monotonic()))


def holders(world: World) -> int:
    """Workers that hold experts."""
    pool = world.pool.seen()
    return len({replica.worker for replica in pool.placement}) if pool is not None else 0


def told(load: Load, memory: Memory, marks: dict[str, float]) -> dict[str, Any]:
    """The numbers."""
    seen, given = load.seen, list(load.seen.tokens.values())
    ttft = np.percentile(seen.ttft_s, (50, 99)) if seen.ttft_s else (0.0, 0.0)
    return {
        "seconds": SECONDS,
        "streams_open_at_once": seen.most_open,
        "completed": seen.completed,
        "left_early": seen.left,
        "told_to_come_again": seen.refused,
        "lost": len(seen.lost),
        "lost_examples": seen.lost[:5],
        "tokens_per_second": round(sum(given) / SECONDS, 1),
        "least_and_most_tokens_of_a_client": [min(given, default=0), max(given, default=0)],
        "unfairness": round((max(given, default=0) - min(given, default=0)) / max(float(np.mean(given or [1])), 1), 4),
        "ttft_p50_s": round(float(ttft[0]), 2),
        "ttft_p99_s": round(float(ttft[1]), 2),
        "longest_gap_s": round(seen.gap_s, 2),
        "grown_mib": {kind: round(grown / MIB, 1) for kind, grown in memory.growth().items()},
        **{name: round(value, 2) for name, value in marks.items()},
    }
