"""The page's HTTP side over a controller among fakes: state, changes, a dry run, and who is not answered."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from flexpert_workers.pool.state import Cause, Condition, Engine, Phase
from flexpert_workers.ui import UiServer, serve_ui
from flexpert_workers.ui.feed import MOST_WATCHERS, Feed

WAIT_S = 60.0


class Page:
    """A served page, and a client of it."""

    def __init__(self, rig: Any, ui: UiServer, client: httpx2.AsyncClient) -> None:
        self.rig = rig
        self.ui = ui
        self.client = client

    async def state(self) -> dict[str, Any]:
        answer = await self.client.get("/ui/api/pool")
        assert answer.status_code == 200
        return answer.json()

    async def plan(self, **wish: Any) -> httpx2.Response:
        return await self.client.post("/ui/api/plan", json=wish, timeout=WAIT_S)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[tuple[str, dict[str, Any]]]]:
        async with self.client.stream("GET", "/ui/api/events", timeout=WAIT_S) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            yield events_of(answer)


async def events_of(answer: httpx2.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    name = ""
    async for line in answer.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        if line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


async def until(events: AsyncIterator[tuple[str, dict[str, Any]]], true: Callable[[dict[str, Any]], Any]) -> Any:
    """What `true` says of the first change that it says something of."""
    async with asyncio.timeout(WAIT_S):
        async for _, change in events:
            if found := true(change):
                return found
    raise AssertionError("the stream ended")


@pytest.fixture
async def page(rig: Any) -> AsyncIterator[Page]:
    ui = await serve_ui(rig.controller, "127.0.0.1:0")
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{ui.port}") as client:
        yield Page(rig, ui, client)
    await ui.stop()


async def test_the_page_is_served_with_headers_that_protect_it(page: Page) -> None:
    answer = await page.client.get("/ui")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert (await page.client.get("/")).headers["location"] == "/ui"
    again = await page.client.get("/ui", headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304
    for path in ("/ui/../app.py", "/ui/app.py", "/ui/nothing.js", "/etc/passwd", "/ui/static/index.html"):
        missing = await page.client.get(path)
        assert missing.status_code == 404
        assert missing.headers["content-security-policy"]


async def test_only_this_page_is_answered(page: Page) -> None:
    for host in ("evil.example", f"evil.example:{page.ui.port}", "127.0.0.1.evil.example", ""):
        refused = await page.client.get("/ui/api/pool", headers={"host": host})
        assert refused.status_code in (400, 421)
    assert (await page.client.get("/ui", headers={"host": f"localhost:{page.ui.port}"})).status_code == 200
    assert (await page.client.get("/ui", headers={"host": "[::1]"})).status_code == 200
    foreign = await page.client.post("/ui/api/plan", json={}, headers={"origin": "http://evil.example"})
    assert foreign.status_code == 421
    assert "access-control-allow-origin" not in foreign.headers
    form = await page.client.post("/ui/api/plan", data={"seconds": "1"})
    assert form.status_code == 415


async def test_what_is_known_is_shown(page: Page) -> None:
    empty = await page.state()
    assert empty["model"] is None
    assert "waiting for the operator" in empty["pool"]["message"]
    names = await page.rig.placed(3)
    page.rig.workers.workers[names[0]].tokens[5] = 21
    await page.rig.until(lambda: page.rig.controller.fleet.loads.total(8)[5] == 21)
    engine = Engine("e-1", Condition.READY, running=3, waiting=2, kv_use=0.5, generated_tokens=70)
    page.rig.controller.engines.register(engine)
    state = await page.state()
    assert state["pool"]["epoch"] == "1.1"
    assert (state["model"]["layers"], state["model"]["experts"]) == (2, 4)
    assert [worker["id"] for worker in state["workers"]] == sorted(names)
    assert {worker["state"] for worker in state["workers"]} == {"READY"}
    assert sum(worker["replicas"] for worker in state["workers"]) == 8
    assert all(worker["residentBytes"] == 100 * worker["replicas"] for worker in state["workers"])
    assert state["loads"]["tokens"] == [0, 0, 0, 0, 0, 21, 0, 0]
    assert state["placement"]["workers"] == sorted(names)
    assert state["placement"]["replicas"][5] == [sorted(names).index(names[5 % 3]), 1.0]
    assert state["engines"][0]["generatedTokens"] == 70
    assert state["operation"]["phase"] == "SUCCEEDED"
    assert [one["id"] for one in state["history"]] == ["initial"]
    assert state["progress"]["stages"] == "s" * 8
    assert state["moves"]["moves"][0][2] == -1, "from the checkpoint's file"


async def test_changes_come_as_they_happen_and_cost_nothing_unwatched(page: Page) -> None:
    names = await page.rig.placed(3)
    rig, feed = page.rig, page.ui.feed
    looks = feed.num_looks
    await rig.reconfigure("unwatched", rig.spread(names[::-1]))
    assert feed.num_looks == looks
    async with page.events() as events:
        name, state = await anext(events)
        assert (name, state["pool"]["epoch"], len(state["loads"]["tokens"])) == ("state", "1.2", 8)
        rig.workers.workers[names[0]].tokens[3] += 9
        assert (await until(events, lambda change: change.get("loads")))["added"] == [0, 0, 0, 9, 0, 0, 0, 0]
        for worker in rig.workers.workers.values():
            worker.gate.clear()
        moving = asyncio.create_task(rig.reconfigure("watched", rig.spread(names)))
        stages = await until(events, lambda change: "c" in (change.get("progress") or {}).get("stages", "") and change)
        assert stages["operation"]["phase"] in ("PENDING", "PREPARE")
        assert "placement" not in stages, "what is as before is not told again"
        for worker in rig.workers.workers.values():
            worker.gate.set()
        pool = await until(events, lambda change: change.get("pool"))
        assert pool["epoch"] == "1.3"
        assert (await moving).phase is Phase.SUCCEEDED
        rig.workers.workers[names[0]].kill()
        lost = await until(
            events, lambda change: [one for one in change.get("workers") or () if one["state"] == "LOST"]
        )
        assert lost[0]["id"] == names[0]
    await rig.until(lambda: feed.num_watchers == 0)
    looks = feed.num_looks
    await rig.until(lambda: rig.controller.lost_experts() == () and rig.controller.operations.running is None)
    assert feed.num_looks == looks


async def test_what_rolled_back_is_shown_as_undone(page: Page) -> None:
    names = await page.rig.placed(3)
    for worker in page.rig.workers.workers.values():
        worker.gate.clear()
    page.rig.controller.reconfigure(page.rig.request("undone", page.rig.spread(names[::-1]), Cause.REBALANCE))
    page.rig.controller.operations.cancel("undone")
    assert (await page.rig.finished("undone")).phase is Phase.CANCELLED
    state = await page.state()
    assert set(state["progress"]["stages"]) == {"u"}
    assert [one["phase"] for one in state["history"]] == ["SUCCEEDED", "CANCELLED"]
    assert state["pool"]["epoch"] == "1.1"


async def test_a_dry_run_says_what_would_come_of_it_and_changes_nothing(page: Page) -> None:
    nothing = await page.plan()
    assert (nothing.status_code, "operator" in nothing.json()["message"]) == (409, True)
    names = await page.rig.placed(3)
    rig = page.rig
    for worker in rig.workers.workers.values():
        worker.tokens = [90, 10, 10, 90, 10, 10, 10, 10]
    await rig.until(lambda: rig.controller.fleet.loads.total(8)[0] == 270)
    before = await page.state()
    asked = {name: len(worker.asked) for name, worker in rig.workers.workers.items()}
    answer = await page.plan(seconds=2.0)
    assert answer.status_code == 200, answer.text
    tried = answer.json()
    assert tried["after"] <= tried["before"]
    assert tried["prediction"]["refusal"] == ""
    assert tried["prediction"]["movedBytes"] == 100 * len(tried["moves"])
    assert len(tried["placement"]["replicas"]) == 8
    without = (await page.plan(without=[names[0]], seconds=1.0)).json()
    assert names[0] not in without["placement"]["workers"]
    assert without["moves"]
    after = await page.state()
    same = ("pool", "placement", "operation", "history", "moves", "progress", "workers")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    told = [type(one).__name__ for name, worker in rig.workers.workers.items() for one in worker.asked[asked[name] :]]
    assert set(told) <= {"AskLoads", "Describe"}, "a dry run asks workers to do nothing"


async def test_what_cannot_be_tried_is_refused_with_a_reason(page: Page) -> None:
    names = await page.rig.placed(3)
    for wish, status in (
        ({"without": ["nobody"]}, 409),
        ({"without": names}, 409),
        ({"replicas": 0}, 400),
        ({"seconds": 1e9}, 400),
        ({"moves": "many"}, 400),
        ({"reconfigure": True}, 400),
        ({"replicas": 9}, 409),
    ):
        refused = await page.plan(**wish)
        assert (refused.status_code, bool(refused.json()["message"])) == (status, True), wish
    for body in (b"", b"{", b"\xff\xfe", b"[1]", b"null"):
        broken = await page.client.post("/ui/api/plan", content=body, headers={"content-type": "application/json"})
        assert broken.status_code == 400, body
    large = b'{"without": ["' + b"x" * 2**20 + b'"]}'
    too_large = await page.client.post("/ui/api/plan", content=large, headers={"content-type": "application/json"})
    assert too_large.status_code == 413
    both = await asyncio.gather(page.plan(seconds=1.0), page.plan(seconds=1.0))
    assert sorted(answer.status_code for answer in both) == [200, 429]


async def test_nothing_but_a_dry_run_can_be_asked(page: Page) -> None:
    await page.rig.placed(3)
    for path in ("/ui", "/ui/api/pool", "/ui/api/events", "/ui/api/plan", "/ui/main.js", "/"):
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            if (method, path) != ("POST", "/ui/api/plan"):
                assert (await page.client.request(method, path)).status_code == 405, (method, path)


async def test_no_more_watch_than_can_be_served(page: Page) -> None:
    feed = page.ui.feed
    watching = [feed.events() for _ in range(MOST_WATCHERS)]
    for events in watching:
        await anext(events)
    assert (await page.client.get("/ui/api/events")).status_code == 503
    for events in watching:
        await events.aclose()
    async with page.events() as events:
        assert (await anext(events))[0] == "state"


async def test_a_pool_that_takes_long_to_look_at_is_looked_at_less_often(rig: Any) -> None:
    seconds = itertools.count()
    feed = Feed(rig.controller, clock=lambda: float(next(seconds)))  # every look takes a second
    events = feed.events()
    await anext(events)
    for _ in range(40):
        rig.controller.changes.bump()
        await asyncio.sleep(0.02)
    assert feed.num_looks <= 2, "the next look is 20 s away"
    await events.aclose()
    assert feed.num_watchers == 0


async def test_a_standby_and_a_worker_that_starts_are_shown(page: Page) -> None:
    page.rig.configure(spec=replace(page.rig.default_spec, workers=2, standby_workers=1))
    await page.rig.ready(2)
    await page.rig.until(lambda: any(one.condition is Condition.STANDBY for one in page.rig.controller.fleet.all()))
    state = await page.state()
    assert sorted(worker["state"] for worker in state["workers"]) == ["READY", "READY", "STANDBY"]
    assert (state["pool"]["wantedWorkers"], state["pool"]["wantedStandby"]) == (2, 1)
