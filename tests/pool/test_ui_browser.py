"""The page in headless Chromium: live figures, moves, keyboard, screen readers, both colour schemes, a phone."""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pool_processes import PATIENCE_S, Dispatching, Processes, engine_of, patient, spread
from ui_browser import DESK, PHONE, Window, chromium, window

from flexpert_proto.measuring import Recorder
from flexpert_proto.metrics import INGRESS
from flexpert_workers.pool.state import Cause, Condition, Engine, Phase, Slot
from flexpert_workers.pool.subprocesses import Host, SubprocessWorkers
from flexpert_workers.ui import serve_ui

HOT = [80, 10, 5, 5, 10, 10, 70, 10]
"""Tokens of the 2 × 4 experts of the fakes."""
SMALLEST = {"width": 320, "height": 640}
BRIGHTNESS = """([row, column]) => {
  const canvas = document.querySelector('#heat-canvas'), scale = devicePixelRatio;
  const x = 34 + (column + 0.1) * 64, y = 20 + (row + 0.25) * 28;
  return [...canvas.getContext('2d').getImageData(x * scale, y * scale, 1, 1).data].slice(0, 3).reduce((a, b) => a + b);
}"""


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    async with chromium() as made:
        yield made


async def figure(page: Window, term: str) -> str:
    """What is said of one of the figures at the top: its value, and what is written below it."""
    said = await page.page.eval_on_selector_all(
        "#now dl > div", "all => all.map(one => [...one.children].map(x => x.textContent))"
    )
    return {name: f"{value} {further}".strip() for name, value, further in said}[term]


async def figure_is(page: Window, term: str, true: Callable[[str], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if true(await figure(page, term)):
                return
            await asyncio.sleep(0.05)


async def focused(page: Window) -> str:
    """Id, or else the text, of what has the focus."""
    return str(
        await page.page.evaluate("(one => one.id || one.value || one.textContent.trim())(document.activeElement)")
    )


async def tree(page: Window) -> set[tuple[str, str]]:
    """(role, name) of everything that assistive technology is told of."""
    session = await page.page.context.new_cdp_session(page.page)
    nodes = (await session.send("Accessibility.getFullAXTree"))["nodes"]
    return {
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node.get("ignored") and "role" in node
    }


async def chart(page: Window) -> str:
    """What is said of the timeline instead of its picture."""
    return str(await page.page.get_attribute("#chart svg", "aria-label"))


async def load(rig: Any, tokens: list[int]) -> None:
    """Have every worker say that it computed so many tokens more for each expert."""
    workers = rig.workers.up()
    before = rig.controller.fleet.loads.total(len(tokens))
    for worker in workers:
        worker.tokens = [have + more for have, more in zip(worker.tokens, tokens, strict=True)]
    after = [have + len(workers) * more for have, more in zip(before, tokens, strict=True)]
    await rig.until(lambda: list(rig.controller.fleet.loads.total(len(tokens))) == after)


@pytest.mark.timeout(600)
async def test_a_live_pool_is_shown_and_can_be_asked_by_keyboard(rig: Any, browser: Any) -> None:
    names = await rig.placed(3)
    await load(rig, HOT)
    ui = await serve_ui(rig.controller, "127.0.0.1:0")
    async with window(browser, ui.port) as page:
        await shows_loads(page, rig)
        await shows_epochs_and_moves(page, rig, names)
        await shows_engines_and_latencies(page, rig)
        await is_used_by_keyboard(page)
        await tells_assistive_technology(page)
        await tries_a_plan(page, rig)
        rig.workers.workers[names[0]].kill()
        await page.until("[...document.querySelectorAll('#workers td')].some(cell => cell.textContent === 'lost')")
        await rig.until(lambda: rig.controller.lost_experts() == () and rig.controller.operations.running is None)
        await page.until("document.querySelector('#operation').textContent.includes('for failure: succeeded')")
        page.expected.append("net::ERR_")
        await ui.stop()
        await page.until("document.querySelector('#connection').dataset.state === 'away'")


async def shows_loads(page: Window, rig: Any) -> None:
    assert await figure(page, "Workers ready") == "3 of 3"
    page.expected.append("willReadFrequently")  # of this test, which reads what is drawn
    assert await page.page.evaluate(BRIGHTNESS, [0, 0]) > await page.page.evaluate(BRIGHTNESS, [0, 3]) + 100
    await page.page.click("text=The same by layer, as a table")
    wanted = [["0", "300", "0", "3.20"], ["1", "300", "2", "2.80"]]
    await page.until_rows("layers", lambda rows: [row[:4] for row in rows] == wanted)
    await load(rig, [0, 0, 0, 50, 0, 0, 0, 50])
    await page.until("document.querySelector('#layers td:nth-child(3)').textContent === '3'")
    assert "last 30 s" in await page.text("#heat-about")
    await page.page.check("input[name=tokens][value=all]")
    await page.until_rows("layers", lambda rows: [row[2] for row in rows] == ["0", "2"])
    await page.page.check("input[name=columns][value=workers]")
    await page.page.focus("#heat")
    await page.page.keyboard.press("Home")
    await page.until("document.querySelector('#heat-cell').textContent.includes('worker w-')")
    await page.page.check("input[name=columns][value=experts]")


async def shows_epochs_and_moves(page: Window, rig: Any, names: list[str]) -> None:
    assert await figure(page, "Epoch") == "1.1"
    for worker in rig.workers.up():
        worker.gate.clear()
    moving = asyncio.create_task(rig.reconfigure("swap", rig.spread(names[::-1]), Cause.REBALANCE))
    await page.until("document.querySelector('#moves-summary').textContent.includes('arriving')")
    await page.until_rows("moves", lambda rows: {row[3] for row in rows} == {"arriving"})
    assert {(row[1], row[2]) for row in await page.rows("moves")} <= {(a, b) for a in names for b in names}
    assert await page.page.get_attribute("#phases [aria-current]", "aria-current") == "step"
    assert await page.text("#phases [aria-current]") == "prepare"
    for worker in rig.workers.up():
        worker.gate.set()
    assert (await moving).phase is Phase.SUCCEEDED
    await page.until("document.querySelector('#moves-summary').textContent.includes('serving')")
    await figure_is(page, "Epoch", lambda text: text == "1.2")
    await page.until("document.querySelector('#announcement').textContent.includes('1.2')")
    await page.until("document.querySelectorAll('#history > tr').length === 2")
    bands = "[...document.querySelectorAll('#chart .band title')].map(one => one.textContent.split(' ')[1]).join()"
    await page.until(f"{bands} === '1.1,1.2'")
    assert "2 reconfigurations, now epoch 1.2, 3 workers ready, 8 replicas" in await chart(page)
    await page.until_rows("history", lambda rows: rows[0][1:4] == ["1.2", "rebalance", "succeeded"])


async def shows_engines_and_latencies(page: Window, rig: Any) -> None:
    rig.controller.engines.register(Engine("e-1", Condition.READY, running=3, kv_use=0.25, generated_tokens=7))
    await page.until_rows("engines", lambda rows: [row[:5] for row in rows] == [["e-1", "ready", "3", "0", "25 %"]])
    assert await figure(page, "To first token") == "– none lately"
    recorder = Recorder(INGRESS)
    for _ in range(10):
        recorder.buckets["ingress_ttft_seconds"].observe(0.04)
    rig.controller.figures.note("ingress-1", recorder.read({}, {}))
    await figure_is(page, "To first token", lambda text: text == "40 ms p99 50 ms")
    await page.until("document.querySelector('#chart svg').ariaLabel.includes('40 ms to the first token')")
    titles = await page.page.eval_on_selector_all("#chart .title", "all => all.map(one => one.textContent)")
    assert {"Replicas of experts", "Tokens per second", "Time to first token", "Time between tokens"} <= set(titles)


async def is_used_by_keyboard(page: Window) -> None:
    await page.page.focus(".skip")
    await page.page.keyboard.press("Tab")
    await page.page.keyboard.press("Shift+Tab")
    seen: list[str] = []
    while not await page.page.evaluate("document.activeElement === document.body") and len(seen) < 60:
        seen.append(await focused(page))
        ring = await page.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring != "none", f"{seen[-1]} does not show that it has the focus"
        await page.page.keyboard.press("Tab")
    assert seen[0] == "Skip to the heat map"
    for wanted in ("Load", "all", "outlined", "heat", "The same by layer, as a table", "plan-replicas", "Try it out"):
        assert any(wanted in one for one in seen), (wanted, seen)
    await page.page.focus("#heat")
    for key, cell in (
        ("Escape", "No cell chosen."),
        ("ArrowRight", "Layer 0, expert 0:"),
        ("ArrowRight", "Layer 0, expert 1:"),
        ("End", "Layer 0, expert 3:"),
        ("ArrowDown", "Layer 1, expert 3:"),
        ("PageUp", "Layer 0, expert 3:"),
        ("ArrowUp", "Layer 0, expert 3:"),
        ("Home", "Layer 0, expert 0:"),
    ):
        await page.page.keyboard.press(key)
        await page.until(f"document.querySelector('#heat-cell').textContent.startsWith('{cell}')")
    await page.until("document.querySelector('#heat-cell').textContent.includes('on w-')")


async def tells_assistive_technology(page: Window) -> None:
    told = await tree(page)
    for wanted in (
        ("heading", "Pool tiny"),
        ("heading", "Load of layers and experts"),
        ("application", "Load of layers and experts"),
        ("navigation", "Parts of this page"),
        ("table", "Expert workers"),
        ("columnheader", "State"),
        ("rowheader", "e-1"),
        ("table", "Epochs and reconfigurations, newest first"),
        ("combobox", "Outline worker"),
        ("spinbutton", "Replicas moved, at most"),
        ("button", "Try it out"),
    ):
        assert wanted in told, wanted
    assert any(role == "status" for role, _ in told)
    assert any(role in ("image", "img") and name.startswith("Since") for role, name in told)


async def tries_a_plan(page: Window, rig: Any) -> None:
    epoch, last = rig.controller.keeper.epoch, rig.controller.operations.last
    await page.page.fill("#plan-seconds", "1")
    await page.page.focus("#plan-form button")
    await page.page.keyboard.press("Enter")
    await page.until("document.querySelector('#plan-status').textContent.includes('Nothing was changed')")
    await page.until_rows("plan-peaks", lambda rows: len(rows) == 3)
    now, then = [float(await page.text(f"#plan-figures > div:nth-child({one}) dd")) for one in (1, 2)]
    assert then <= now
    await page.page.check("#plan-shown")
    await page.until("document.querySelector('#heat-about').textContent.includes('planned')")
    await page.page.uncheck("#plan-shown")
    page.expected.append("status of 409")  # the browser itself notes it
    await page.page.fill("#plan-replicas", "9")
    await page.page.press("#plan-replicas", "Enter")
    await page.until("document.querySelector('#plan-status').textContent.startsWith('Not possible')")
    assert (rig.controller.keeper.epoch, rig.controller.operations.last) == (epoch, last)


@pytest.mark.timeout(600)
async def test_both_colour_schemes_on_a_desk_and_a_phone(rig: Any, browser: Any) -> None:
    names = await rig.placed(3)
    await load(rig, HOT)
    rig.controller.engines.register(Engine("engine-" + "x" * 40, Condition.READY, pod="pod-" + "y" * 50))
    await rig.reconfigure("a-reconfiguration-with-a-name-that-is-rather-long", rig.spread(names[::-1]))
    ui = await serve_ui(rig.controller, "127.0.0.1:0")
    grounds = []
    for scheme in ("light", "dark"):
        for size in (DESK, PHONE, SMALLEST):
            async with window(browser, ui.port, scheme, size) as page:
                await page.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
                await page.until("document.querySelectorAll('#experts > tr').length === 4")
                await page.page.fill("#plan-seconds", "1")
                await page.page.click("#plan-form button")
                await page.until("!document.querySelector('#plan-result').hidden")
                assert await page.overhang() <= 0, (scheme, size)
                assert await page.violations() == [], (scheme, size)
                grounds.append(await page.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    await ui.stop()
    assert len(set(grounds[:3])) == len(set(grounds[3:])) == 1
    assert grounds[0] != grounds[3]


@pytest.mark.timeout(900)
async def test_a_pool_of_processes(
    tiny_checkpoint: str, controller_settings: Any, rig_type: Any, new_slot: Callable[[int], Slot], browser: Any
) -> None:
    """Real workers compute while the page watches: loads grow, one dies, its experts come back."""
    with tempfile.TemporaryDirectory(prefix="fxu") as folder:
        launcher = SubprocessWorkers([new_slot(0), new_slot(1)], Host(socket_dir=str(Path(folder) / "s")))
        processes = Processes(tiny_checkpoint, launcher, lambda: patient(controller_settings()), rig_type)
        try:
            rig = await processes.again()
            ui = await serve_ui(rig.controller, "127.0.0.1:0")
            async with window(browser, ui.port) as page:
                assert "waiting for the operator" in await page.text("#message")
                rig.controller.configure(rig.controller.incarnation, 1, 1, processes.spec)
                await watches(page, rig, processes)
            await ui.stop()
        finally:
            await processes.close()


async def watches(page: Window, rig: Any, processes: Processes) -> None:
    names = await rig.ready(2, timeout_s=PATIENCE_S)
    assert (await rig.reconfigure("initial", spread(names), Cause.INITIAL)).phase is Phase.SUCCEEDED
    await figure_is(page, "Epoch", lambda text: text == "1.1")
    dispatching = Dispatching(processes.spec.source, rig.controller.model.digest)
    engine = engine_of(rig, dispatching)
    dispatching.start()
    try:
        await figure_is(page, "Imbalance", lambda text: text.endswith("mean"))
        await page.page.focus("#heat")
        await page.page.keyboard.press("Home")
        await page.until("!document.querySelector('#heat-cell').textContent.includes(' 0 tokens')")
        os.kill(processes.launcher.pid(names[0]), signal.SIGKILL)
        await page.until("document.querySelector('#operation').textContent.includes('for failure: succeeded')")
        assert int((await figure(page, "Epoch")).split(".")[1]) >= 2
        assert await figure(page, "Experts lost") == "0"
    finally:
        dispatching.stop()
        engine.cancel()
    assert dispatching.wrong == []
