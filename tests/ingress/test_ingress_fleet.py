"""Which engine an attempt gets, and what becomes of attempts when engines come and go; links and clock are fakes."""

import asyncio
from collections.abc import Callable

import pytest

from flexpert_workers.errors import Overloaded
from flexpert_workers.ingress.fleet import OVERLOAD_PAUSE_S, Attempt, EngineFacts, Fleet, Lost
from flexpert_workers.ingress.link import LinkListener
from flexpert_workers.messages.generation import (
    Cancel,
    Finish,
    GenerationRequest,
    Rejected,
    Sampling,
    Submit,
    TokenOutput,
)


class FakeLink:
    """Keeps what was sent."""

    def __init__(self, engine: str, endpoint: str) -> None:
        self.engine = engine
        self.endpoint = endpoint
        self.sent: list[GenerationRequest] = []
        self.closed = False

    def send(self, message: GenerationRequest) -> None:
        self.sent.append(message)

    def close(self) -> None:
        self.closed = True


class Bench:
    """A fleet, its links by engine, and its clock."""

    def __init__(self, max_waiting: int = 8) -> None:
        self.now = 0.0
        self.links: dict[str, FakeLink] = {}
        self.fleet = Fleet(self._connect, lambda: self.now, max_waiting=max_waiting, retry_after_s=lambda: 0.5)

    def _connect(self, engine: str, endpoint: str, listener: LinkListener) -> FakeLink:
        assert listener is self.fleet
        self.links[engine] = FakeLink(engine, endpoint)
        return self.links[engine]

    def list_engines(self, *names: str, ready: bool = True, **loads: int) -> None:
        self.fleet.update([EngineFacts(name, f"at-{name}", ready, loads.get(name, 0)) for name in names])

    def up(self, *names: str) -> None:
        for name in names:
            self.fleet.link_up(self.links[name])  # type: ignore[arg-type]

    def lose(self, name: str) -> None:
        self.fleet.link_lost(self.links[name], "killed")  # type: ignore[arg-type]

    def reply(self, attempt: Attempt, reply: TokenOutput | Rejected) -> None:
        self.fleet.link_replies(self.links[attempt.engine], [reply])  # type: ignore[arg-type]

    def submit(self, resumed: bool = False) -> "asyncio.Task[Attempt]":
        return asyncio.create_task(self.fleet.submit(message, wait_s=5, resumed=resumed))

    async def attempt(self) -> Attempt:
        return await self.submit()


def message(number: int) -> Submit:
    return Submit(number, (1,), (), Sampling(max_tokens=4))


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_attempts_go_to_the_least_busy_engine() -> None:
    bench = Bench()
    bench.list_engines("a", "b", "c", a=5, b=1, c=0)
    bench.up("a", "b")
    chosen = [(await bench.attempt()).engine for _ in range(4)]
    assert chosen == ["b", "a", "b", "a"], "c is not connected; our own load counts before what was reported"


async def test_a_finished_attempt_makes_room_and_needs_no_cancel() -> None:
    bench = Bench()
    bench.list_engines("a", "b")
    bench.up("a", "b")
    first, second = await bench.attempt(), await bench.attempt()
    bench.reply(second, TokenOutput(second.number, (1,), 0, finish=Finish.STOP))
    bench.fleet.end(second)
    assert (await bench.attempt()).engine == second.engine
    bench.fleet.end(first)
    assert bench.links[first.engine].sent[-1] == Cancel(first.number)
    assert not any(isinstance(sent, Cancel) for sent in bench.links[second.engine].sent)


async def test_waiting_attempts_are_served_in_order_and_resumed_ones_first() -> None:
    bench = Bench()
    first, second = bench.submit(), bench.submit()
    await turns()
    resumed = bench.submit(resumed=True)
    await turns()
    assert bench.fleet.num_waiting == 3
    bench.list_engines("a")
    bench.up("a")
    numbers = [(await task).number for task in (resumed, first, second)]
    assert numbers == sorted(numbers)


async def test_a_full_queue_refuses_new_attempts_but_not_resumed_ones() -> None:
    bench = Bench(max_waiting=1)
    waiting = bench.submit()
    await turns()
    with pytest.raises(Overloaded) as caught:
        await bench.attempt()
    assert caught.value.retry_after_s == 0.5
    resumed = bench.submit(resumed=True)
    await turns()
    assert bench.fleet.num_waiting == 2
    for task in (waiting, resumed):
        task.cancel()
    await turns()
    assert bench.fleet.num_waiting == 0


async def test_an_overloaded_engine_gets_nothing_for_a_moment() -> None:
    bench = Bench()
    bench.list_engines("a", "b", b=9)
    bench.up("a", "b")
    attempt = await bench.attempt()
    bench.reply(attempt, Rejected(attempt.number, "overloaded", "full"))
    assert (await bench.attempt()).engine == "b"
    bench.now += OVERLOAD_PAUSE_S * 1.01
    assert (await bench.attempt()).engine == "a"


async def test_a_lost_engine_tells_its_attempts_and_is_dialled_again_while_listed() -> None:
    bench = Bench()
    bench.list_engines("a")
    bench.up("a")
    attempt = await bench.attempt()
    lost = bench.links["a"]
    bench.lose("a")
    assert await attempt.take() == [Lost("killed")]
    assert lost.closed
    bench.list_engines("a")
    assert bench.links["a"] is not lost
    late = TokenOutput(attempt.number, (1,), 0)
    bench.fleet.link_replies(lost, [late])  # type: ignore[arg-type]
    bench.up("a")
    assert (await bench.attempt()).number != attempt.number


async def test_an_engine_that_the_list_omits_is_a_last_resort() -> None:
    bench = Bench()
    bench.list_engines("a")
    bench.up("a")
    bench.list_engines("b")
    assert (await bench.attempt()).engine == "a"
    bench.up("b")
    assert [(await bench.attempt()).engine for _ in range(3)] == ["b", "b", "b"]
    bench.lose("a")
    await asyncio.sleep(0)
    assert bench.fleet.num_up == 1


async def test_an_engine_at_another_address_is_another_engine() -> None:
    bench = Bench()
    bench.list_engines("a")
    bench.up("a")
    attempt = await bench.attempt()
    bench.fleet.update([EngineFacts("a", "elsewhere", True, 0)])
    assert isinstance((await attempt.take())[0], Lost)
    assert bench.links["a"].endpoint == "elsewhere"
    assert bench.fleet.num_up == 0


@pytest.mark.parametrize("stop", [lambda b, a: b.reply(a, Rejected(a.number, "draining", "")), None])
async def test_engines_that_drain_or_start_get_nothing(stop: Callable[[Bench, Attempt], None] | None) -> None:
    bench = Bench()
    bench.list_engines("a", "b", b=1)
    bench.up("a", "b")
    if stop is None:
        bench.fleet.update([EngineFacts("a", "at-a", False, 0), EngineFacts("b", "at-b", True, 1)])
    else:
        stop(bench, await bench.attempt())
    assert [(await bench.attempt()).engine for _ in range(2)] == ["b", "b"]
