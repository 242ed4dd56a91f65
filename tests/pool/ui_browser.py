"""A page of the pool in headless Chromium: what went wrong in it is collected, axe-core judges its accessibility."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import pytest

playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT_MS = 120_000
POLL_S = 0.05
PHONE = {"width": 375, "height": 720}
DESK = {"width": 1280, "height": 900}


@asynccontextmanager
async def chromium() -> AsyncIterator[Any]:
    """A browser; skips where there is none."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on PATH")
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"], timeout=WAIT_MS
        )
        try:
            yield browser
        finally:
            await browser.close()


class Window:
    """A page that is open at `/ui` of a port.

    Attributes:
        problems: Errors on its console, exceptions in it, requests that failed.
        expected: Parts of messages on its console that are meant to come.
        hosts: That it asked anything.
    """

    def __init__(self, page: Any, port: int) -> None:
        self.page = page
        self.problems: list[str] = []
        self.expected: list[str] = []
        self.hosts: set[str] = set()
        self._origin = f"http://127.0.0.1:{port}"
        page.set_default_timeout(WAIT_MS)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    async def open(self) -> None:
        answer = await self.page.goto(f"{self._origin}/ui")
        assert answer.status == 200
        await self.until("document.querySelector('#connection').textContent === 'Live'")

    async def until(self, expression: str) -> Any:
        """The first true value of a JavaScript expression.

        It is asked again and again from here: the page's policy lets nothing be evaluated in it.
        """
        async with asyncio.timeout(WAIT_MS / 1000):
            while True:
                if value := await self.page.evaluate(expression):
                    return value
                await asyncio.sleep(POLL_S)

    async def text(self, selector: str) -> str:
        return str(await self.page.text_content(selector))

    async def rows(self, body: str) -> list[list[str]]:
        """Cells of a table, row by row."""
        script = "rows => rows.map(row => [...row.children].map(cell => cell.textContent.trim()))"
        return list(await self.page.eval_on_selector_all(f"#{body} > tr", script))

    async def until_rows(self, body: str, true: Callable[[list[list[str]]], object]) -> None:
        """Wait until something is true of a table's cells: what is clicked shows when the page has drawn it."""
        rows: list[list[str]] = []
        try:
            async with asyncio.timeout(WAIT_MS / 1000):
                while True:
                    if true(rows := await self.rows(body)):
                        return
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            pytest.fail(f"#{body} still has {rows}")

    async def violations(self) -> list[str]:
        """What axe-core finds wrong, in words."""
        axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
        await self.page.evaluate(axe)
        found = await self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{one['id']}: {node['html'][:160]} {node['failureSummary']}"
            for one in found["violations"]
            for node in one["nodes"]
        ]

    async def overhang(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(await self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))

    def check(self) -> None:
        """Nothing went wrong, and nobody else was asked."""
        assert not self.problems, self.problems
        assert {f"http://{host}" for host in self.hosts} == {self._origin}

    def _on_console(self, message: Any) -> None:
        meant = any(part in message.text for part in self.expected)
        if message.type in ("error", "warning") and not meant:
            self.problems.append(message.text)


@asynccontextmanager
async def window(
    browser: Any, port: int, scheme: str = "light", size: dict[str, int] | None = None
) -> AsyncIterator[Window]:
    """The page of a port, opened; what went wrong in it fails the test."""
    context = await browser.new_context(color_scheme=scheme, viewport=size or DESK, reduced_motion="reduce")
    try:
        made = Window(await context.new_page(), port)
        await made.open()
        yield made
        made.check()
    finally:
        await context.close()
