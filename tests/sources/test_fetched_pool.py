"""A pool whose model is on a hub: a real controller, inspection, fetch and worker, each in a process of its own."""

import asyncio
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import COMMIT, NAME, NEWER, Hub, serving

from flexpert_proto import names
from flexpert_workers.errors import AccessDenied
from flexpert_workers.pool.controller import PoolController, Settings
from flexpert_workers.pool.fakes import FakeEngines
from flexpert_workers.pool.fetch_process import SubprocessFetcher
from flexpert_workers.pool.inspector import inspect_in_subprocess
from flexpert_workers.pool.links import ControlLink
from flexpert_workers.pool.state import Condition, PoolSpec, Slot
from flexpert_workers.pool.subprocesses import Host, SubprocessWorkers

TINY = Path(__file__).parents[2] / "examples/models/tiny-moe"
SLOT = Slot("slot-0", pod="pod-0", node="node-0")
SPEC = PoolSpec("uid", "tiny", "default", f"hf://{NAME}", "main", "Float32", memory_per_worker_bytes=1 << 26, workers=1)
PATIENCE_S = 240.0


class FetchedPool:
    """The controller and what it started."""

    def __init__(self):
        self.launcher = SubprocessWorkers([SLOT], Host())
        self.fetcher = SubprocessFetcher((SLOT,), os.environ)
        settings = Settings("uid", patience=replace(Settings("uid").patience, answer_s=60.0))
        self.engines = FakeEngines()
        self.controller = PoolController(
            settings, self.launcher, self.engines, ControlLink, inspect_in_subprocess, fetcher=self.fetcher
        )

    async def until(self, true):
        async with asyncio.timeout(PATIENCE_S):
            while not true():
                await self.controller.changes.wait(self.controller.changes.count, 0.1)

    async def close(self):
        await self.controller.stop()
        self.launcher.kill_all()
        if self.controller.model is not None:
            await self.fetcher.end(SLOT.pod, self.controller.model.opened)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving(Hub.of(TINY)) as hub:
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv(names.ENV_MODEL_CACHE, str(tmp_path / "cache"))
        yield hub


@pytest.mark.timeout(600)
async def test_a_worker_starts_once_its_node_has_the_files_that_were_pinned(hub):
    pool = FetchedPool()
    controller = pool.controller
    try:
        facts = await inspect_in_subprocess(SPEC.source, "main", "Float32")
        assert (facts.source, facts.opened, facts.resolved) == (SPEC.source, f"{SPEC.source}@{COMMIT}", COMMIT)
        hub.commits = {"main": NEWER, "before": COMMIT}
        await controller.start()
        hub.cut, hub.hold = [("model.safetensors", 5_000_000)], threading.Event()

        controller.configure(controller.incarnation, 1, 1, replace(SPEC, resolved=COMMIT))
        await pool.until(lambda: hub.held.is_set() and controller.files().phase == "Downloading")

        assert controller.files().bytes_total == facts.fetched_bytes
        assert controller.fleet.all() == ()
        hub.hold.set()
        await pool.until(lambda: [one.condition for one in controller.fleet.all()] == [Condition.READY])
        files = controller.files()
        assert (files.phase, files.bytes_done, files.nodes_ready) == ("Ready", facts.fetched_bytes, 1)
        assert controller.fleet.all()[0].state.digest == facts.digest
        assert (controller.model.source, controller.model.opened) == (facts.source, facts.opened)
    finally:
        await pool.close()


@pytest.mark.timeout(600)
async def test_a_hub_that_refuses_is_told_by_the_inspection(hub):
    hub.token = "hf_other"

    with pytest.raises(AccessDenied, match=r"spec\.model\.tokenSecretRef"):
        await inspect_in_subprocess(SPEC.source, "main", "Auto")
