"""Watches that end as soon as they begin, as behind some proxies; the API is a script here, and time a number."""

import asyncio
from collections.abc import AsyncIterator, Mapping

from kubernetes import client

from flexpert_operator.errors import KubeNotFound, KubeUnavailable
from flexpert_operator.informers import LONGEST_PAUSE_S, Informer, WatchClient
from flexpert_operator.kube import SERVICES, Object
from flexpert_operator.object_store import ObjectStore


class Script(WatchClient):
    """An API server with nothing in it, whose every watch lasts `lasts_s`, or is refused for `retry_after_s`.

    It does not know the kind when it is asked for the first `unknown` times.
    """

    def __init__(self, lasts_s: float, retry_after_s: float | None = None, unknown: int = 0) -> None:
        super().__init__(client.Configuration())
        self.unknown = unknown
        self.now = 100.0
        self.watches = 0
        self._lasts_s = lasts_s
        self._retry_after_s = retry_after_s

    async def page(self, path: str, query: Mapping[str, str]) -> Object:
        """An empty list, once the kind is known."""
        self.unknown -= 1
        if self.unknown >= 0:
            raise KubeNotFound("404 page not found")
        return {"items": [], "metadata": {"resourceVersion": "1"}}

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[tuple[str, Object]]:
        """One bookmark, and a proper end."""
        self.watches += 1
        if self._retry_after_s is not None:
            raise KubeUnavailable("too many requests", self._retry_after_s)
        await asyncio.sleep(0)
        yield "BOOKMARK", {"metadata": {"resourceVersion": str(1 + self.watches)}}
        self.now += self._lasts_s


def watch_often(script: Script, times: int = 20) -> tuple[list[float], list[str]]:
    """Pauses and restarts until so many watches were asked for."""
    pauses: list[float] = []
    restarts: list[str] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    async def run() -> None:
        informer = Informer(
            script, SERVICES, None, ObjectStore(), lambda *_: None, restarts.append, lambda: script.now, pause
        )
        task = asyncio.create_task(informer.run())
        for _ in range(1000 * times):
            if script.watches >= times:
                break
            await asyncio.sleep(0)
        task.cancel()
        assert informer.lists == 1

    asyncio.run(run())
    assert script.watches >= times
    return pauses, restarts


def test_watches_that_end_at_once_are_not_asked_for_as_fast_as_they_end() -> None:
    pauses, restarts = watch_often(Script(lasts_s=0.01))
    assert len(pauses) >= 19
    assert all(pause > 0.1 for pause in pauses)
    assert len(restarts) == len(pauses), "each is told as a restart"
    assert set(restarts) == {"services"}


def test_watches_that_last_go_on_without_a_pause() -> None:
    assert watch_often(Script(lasts_s=240.0)) == ([], [])


def test_an_api_server_that_asks_for_a_day_is_asked_earlier() -> None:
    pauses, _ = watch_often(Script(0.0, retry_after_s=86400.0), times=3)
    assert set(pauses) == {LONGEST_PAUSE_S}


def test_a_kind_that_is_not_there_yet_is_waited_for_by_nobody_and_told_once_it_is() -> None:
    script, served, restarts = Script(lasts_s=240.0, unknown=8), [], []
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    async def run() -> None:
        informer = Informer(
            script,
            SERVICES,
            None,
            ObjectStore(),
            lambda *_: None,
            restarts.append,
            lambda: script.now,
            pause,
            note_served=lambda: served.append(script.unknown),
        )
        task = asyncio.create_task(informer.run())
        await informer.synced.wait()
        assert not informer.served
        for _ in range(1000):
            if script.watches >= 3:
                break
            await asyncio.sleep(0)
        task.cancel()
        assert informer.served

    asyncio.run(run())
    assert served == [-1], "once, when it was listed"
    assert restarts == []
    assert len(pauses) == 8
    assert 15.0 <= max(pauses) <= 30.0
