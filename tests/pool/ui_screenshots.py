"""`python tests/pool/ui_screenshots.py FOLDER`: the pictures of docs/ui.md, of a pool of fakes that serves."""

import asyncio
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import Rig
from PIL import Image
from ui_browser import PHONE, Window, chromium, window

from flexpert_proto.measuring import Recorder
from flexpert_proto.metrics import ENGINE, INGRESS
from flexpert_workers.pool.controller import PoolController, Settings
from flexpert_workers.pool.fakes import FakeEngines, FakeWorkers
from flexpert_workers.pool.state import Cause, Condition, Engine, ModelFacts, Placement, PoolSpec, Slot
from flexpert_workers.ui import serve_ui

MODEL = ModelFacts("pvc://models/olmoe", "", "Auto", "digest", "OlmoeForCausalLM", 16, 64, 8, 12 << 20)
SPEC = PoolSpec("uid-1", "olmoe", "default", MODEL.source, engine_replicas=2, workers=6, standby_workers=1)
SLOTS = [Slot(f"slot-{n}", pod=f"olmoe-experts-{n}", node=f"node-{n // 2}") for n in range(7)]
COLOURS = 256
BEAT_S = 0.1
TOKENS_PER_S = 430


class Scene:
    """A pool that looks alive."""

    def __init__(self, rig: Any) -> None:
        self.rig = rig
        self._drawn = random.Random(7)
        popular = [1.5 / (1 + place) ** 0.6 for place in range(MODEL.experts)]
        self._heat = [heat for _ in range(MODEL.layers) for heat in self._drawn.sample(popular, MODEL.experts)]
        self._measured = Recorder((*INGRESS, *ENGINE))
        self._generated, self._at = [0, 0], time.monotonic()

    async def serve(self) -> None:
        """Compute tokens, for ever."""
        leases = [self.rig.controller.engines.register(engine) for engine in self._engines()]
        while True:
            for worker in self.rig.workers.up():
                worker.tokens = [have + self._more(heat) for have, heat in zip(worker.tokens, self._heat, strict=True)]
            for lease, engine in zip(leases, self._engines(), strict=True):
                self.rig.controller.engines.renew(lease, engine)
            for _ in range(2):
                self._measured.buckets["ingress_ttft_seconds"].observe(self._drawn.lognormvariate(-2, 0.5))
                self._measured.buckets["ingress_tpot_seconds"].observe(self._drawn.lognormvariate(-3.7, 0.3))
                self._measured.buckets["ingress_queue_seconds"].observe(self._drawn.lognormvariate(-5, 0.6))
                self._measured.buckets["engine_step_seconds"].observe(self._drawn.lognormvariate(-3.8, 0.2))
                self._measured.buckets["engine_step_tokens"].observe(self._drawn.randrange(20, 90))
            self.rig.controller.figures.note("ingress-1", self._measured.read({}, {}))
            await asyncio.sleep(BEAT_S)

    def placement(self, shift: int) -> Placement:
        """Every expert on a worker, hot ones on two."""
        names = [worker.id for worker in self.rig.controller.fleet.all() if worker.condition is Condition.READY]
        placed: dict[tuple[int, int], dict[str, float]] = {}
        for number, expert in enumerate(sorted(MODEL.all_experts())):
            first, second = names[(number + shift) % 6], names[(number * 5 + 2) % 6]
            hot = self._heat[number] > 0.7 and first != second
            placed[expert] = {first: 0.5, second: 0.5} if hot else {first: 1.0}
        return placed

    def partly(self, shift: int) -> Placement:
        """The placement, with every ninth expert where another shift has it."""
        now, then = self.placement(0), self.placement(shift)
        return {expert: then[expert] if number % 9 == 0 else now[expert] for number, expert in enumerate(sorted(now))}

    def _engines(self) -> list[Engine]:
        before, self._at = self._at, time.monotonic()
        lately = TOKENS_PER_S * (self._at - before)
        self._generated = [count + round(lately * self._drawn.uniform(0.8, 1.2)) for count in self._generated]
        plain = Engine("", Condition.READY, epoch=self.rig.controller.keeper.epoch)
        return [
            replace(
                plain,
                id=f"engine-{number}",
                pod=f"olmoe-engines-{number}",
                running=self._drawn.randrange(9, 14),
                waiting=self._drawn.randrange(3),
                kv_use=self._drawn.uniform(0.4, 0.6),
                generated_tokens=count,
            )
            for number, count in enumerate(self._generated)
        ]

    def _more(self, heat: float) -> int:
        return int(heat * self._drawn.uniform(4, 6) + self._drawn.random())


async def take(page: Window, path: Path, selector: str | None = None) -> None:
    """A picture of the page, or of a part of it, in few colours."""
    shot = page.page.locator(selector) if selector else page.page
    await shot.screenshot(path=path)
    picture = Image.open(path).convert("RGB")
    picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)


async def main(folder: Path) -> None:
    """Take them all."""
    workers = FakeWorkers(MODEL, SLOTS, 400)

    async def inspect(*_: str) -> ModelFacts:
        return MODEL

    controller = PoolController(Settings("uid-1"), workers, FakeEngines(), workers.link, inspect)
    await controller.start()
    rig = Rig(controller, workers)
    async with chromium() as browser:
        rig.configure(spec=SPEC)
        await rig.ready(6)
        scene = Scene(rig)
        await rig.reconfigure("initial-5d0c1a2b.0", scene.placement(0), Cause.INITIAL)
        serving = asyncio.create_task(scene.serve())
        ui = await serve_ui(rig.controller, "127.0.0.1:0")
        async with window(browser, ui.port) as light, window(browser, ui.port, "dark") as dark:
            await light.page.wait_for_timeout(12_000)
            await light.page.focus("#heat")
            for key in ("Home", "ArrowDown", "ArrowDown", *["ArrowRight"] * 9):
                await light.page.keyboard.press(key)
            await take(light, folder / "ui-light.png")
            await rig.reconfigure("rebalance-77e0c3f9.0", scene.partly(2), Cause.REBALANCE)
            await light.page.wait_for_timeout(18_000)
            back = rig.request("rebalance-91ab40de.0", scene.placement(0), Cause.REBALANCE)
            workers.workers[back.moves[0].target].gate.clear()
            controller.reconfigure(back)
            await dark.until("document.querySelector('#moves-summary').textContent.includes('arriving')")
            await dark.page.wait_for_timeout(2000)
            await take(dark, folder / "ui-dark.png")
            await take(dark, folder / "ui-moves.png", "#reconfiguration")
            for worker in workers.up():
                worker.gate.set()
            await rig.finished(back.operation)
            await light.page.wait_for_timeout(20_000)
            await take(light, folder / "ui-timeline.png", "#timeline")
            await light.page.fill("#plan-seconds", "3")
            await light.page.click("#plan-form summary")
            await light.page.check("#plan-without label:nth-of-type(2) input")
            await light.page.click("#plan-form button")
            await light.until("!document.querySelector('#plan-result').hidden")
            await take(light, folder / "ui-plan.png", "#plan")
        async with window(browser, ui.port, "dark", PHONE) as phone:
            await phone.page.wait_for_timeout(4000)
            await take(phone, folder / "ui-phone.png")
        serving.cancel()
        await ui.stop()
    await controller.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
