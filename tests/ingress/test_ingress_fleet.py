"""Which engine an attempt gets, and what becomes of attempts when engines come and go; links and clock are fakes."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from flexpert_workers.errors import Overloaded
from flexpert_workers.ingress.fleet import OVERLOAD_PAUSE_S, Fleet
from flexpert_workers.ingress.link import LinkListener
from flexpert_workers.ingress.member import LEAST_AHEAD, STREAM_TOKENS, TOKENS_AHEAD, Attempt, EngineFacts, Lost
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
        self.fleet = Fleet(self._connect, lambda: self.now, max_waiting=max_waiting)

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

    def submit(
        self, resumed: bool = False, *, client: str = "", tokens: Sequence[int] = (), wait_s: float = 5
    ) -> "asyncio.Task[Attempt]":
        return asyncio.create_task(
            self.fleet.submit(message, wait_s=wait_s, resumed=resumed, client=client, tokens=tokens)
        )

    async def attempt(self, **options: Any) -> Attempt:
        return await self.submit(**options)


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
    assert caught.value.retry_after_s == 1.0, "nothing is known yet"
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


async def test_an_engine_is_sent_a_few_requests_ahead_and_the_rest_waits_here() -> None:
    bench = Bench(max_waiting=100)
    bench.list_engines("a")
    bench.up("a")
    long = range(TOKENS_AHEAD)
    tasks = [bench.submit(tokens=long) for _ in range(LEAST_AHEAD + 2)]
    await turns()
    granted = [task.result() for task in tasks if task.done()]
    assert len(granted) == LEAST_AHEAD
    bench.reply(granted[0], TokenOutput(granted[0].number, (7,), 0))
    await turns()
    assert sum(task.done() for task in tasks) == LEAST_AHEAD + 1, "one started, so one more goes"
    assert bench.fleet.num_waiting == 1
    tasks[-1].cancel()


async def test_clients_get_equal_shares_however_many_requests_they_have() -> None:
    bench = Bench(max_waiting=100)
    bench.list_engines("a")
    bench.up("a")
    prompt = range(2000)
    tasks = {f"many{n}": bench.submit(client="many", tokens=prompt) for n in range(80)}
    await turns()
    tasks |= {f"few{n}": bench.submit(client="few", tokens=prompt) for n in range(10)}
    granted: dict[int, str] = {}
    for _ in range(20):
        await turns()
        for name in [name for name, task in tasks.items() if task.done()]:
            attempt = tasks.pop(name).result()
            granted[attempt.number] = name.rstrip("0123456789")
            bench.reply(attempt, TokenOutput(attempt.number, (1, 2, 3), 0, finish=Finish.STOP))
    order = [granted[number] for number in sorted(granted)]
    assert order[:LEAST_AHEAD] == ["many"] * LEAST_AHEAD, "nobody else was there"
    behind = order[LEAST_AHEAD : LEAST_AHEAD + 18]
    assert 8 <= behind.count("few") <= 10
    for task in tasks.values():
        task.cancel()


async def test_a_prompt_goes_where_its_beginning_is_while_that_is_worth_it() -> None:
    bench = Bench()
    bench.list_engines("a", "b")
    bench.up("a", "b")
    prompt = tuple(range(4 * STREAM_TOKENS))
    first = await bench.attempt(tokens=prompt)
    other = await bench.attempt(tokens=range(5000, 5100))
    assert other.engine != first.engine
    bench.reply(first, TokenOutput(first.number, (1,), 0))
    bench.reply(other, TokenOutput(other.number, (1,), 0))
    chosen = []
    for _ in range(6):
        again = await bench.attempt(tokens=(*prompt, 9, 9))
        bench.reply(again, TokenOutput(again.number, (1,), 0, cached_tokens=len(prompt)))
        chosen.append(again.engine)
    assert chosen[:4] == [first.engine] * 4, "the prefix is worth four streams more"
    assert other.engine in chosen, "then the other engine takes part, and holds it too"


async def test_a_wait_that_is_predicted_to_be_too_long_is_refused_at_once() -> None:
    bench = Bench(max_waiting=100)
    bench.list_engines("a")
    bench.up("a")
    tasks = [bench.submit(tokens=range(TOKENS_AHEAD)) for _ in range(LEAST_AHEAD + 12)]
    await turns()
    for task in tasks[:8]:
        bench.now += 2.0
        attempt = await task
        bench.reply(attempt, TokenOutput(attempt.number, (7,), 0))
        await turns()
    assert bench.fleet.num_waiting == 4
    assert bench.fleet.wait_s() == pytest.approx(8.0, rel=0.2)
    with pytest.raises(Overloaded, match=r"the request may wait 5\.0 s") as caught:
        await bench.attempt(tokens=(1,), wait_s=5)
    assert caught.value.retry_after_s == pytest.approx(8.0, rel=0.2)
    patient = bench.submit(tokens=(1,), wait_s=60)
    await turns()
    assert not patient.done()
    for task in (*tasks, patient):
        task.cancel()
