"""Recording routing through the services: orders reach engines, their tokens reach who asked, and it ends."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from flexpert_proto import pool_pb2, pool_pb2_grpc
from flexpert_workers.pool.service import serve

POOL = "uid-1"
WAIT_S = 60.0


class Clients:
    """Stubs; what engines send goes by the one without asyncio, as they send it.

    The other one may say INTERNAL where the server refused meanwhile (grpc/grpc#36066).
    """

    def __init__(self, rig: Any, channel: grpc.aio.Channel, sending: grpc.Channel) -> None:
        self.rig = rig
        self.send_trace: Any = pool_pb2_grpc.PoolMembershipStub(sending).SendTrace
        self.control: Any = pool_pb2_grpc.PoolControlStub(channel)
        self.membership: Any = pool_pb2_grpc.PoolMembershipStub(channel)

    def record(self, tokens: int, seconds: float = WAIT_S) -> Any:
        return self.control.RecordTrace(pool_pb2.RecordTraceRequest(tokens=tokens, seconds=seconds), timeout=WAIT_S)


@pytest.fixture
async def clients(rig: Any) -> AsyncIterator[Clients]:
    server, port = await serve(rig.controller, "127.0.0.1:0")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as sending:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Clients(rig, channel, sending)
    await server.stop(None)


class Engine:
    """An engine's side: it has a lease, and sends `tokens` in chunks of 4 whenever it is ordered to record."""

    def __init__(self, clients: Clients, name: str, tokens: int) -> None:
        self.orders: asyncio.Queue[pool_pb2.RecordOrder] = asyncio.Queue()
        self._clients = clients
        self._name = name
        self._tokens = tokens
        self._tasks = [asyncio.create_task(self._attach())]
        self.outcomes: asyncio.Queue[grpc.StatusCode] = asyncio.Queue()

    async def _attach(self) -> None:
        stream = self._clients.membership.Attach(timeout=WAIT_S)
        engine = pool_pb2.Engine(id=self._name, state=pool_pb2.Engine.READY)
        await stream.write(pool_pb2.EngineReport(engine=engine, pool=POOL))
        async for directive in stream:
            if directive.HasField("record"):
                self.orders.put_nowait(directive.record)
                if directive.record.tokens:
                    self._tasks.append(asyncio.create_task(self._send(directive.record.id)))

    async def _send(self, recording: str) -> None:
        try:
            await asyncio.to_thread(self._clients.send_trace, self._chunks(recording), timeout=WAIT_S)
            self.outcomes.put_nowait(grpc.StatusCode.OK)
        except grpc.RpcError as refused:
            self.outcomes.put_nowait(refused.code())

    def _chunks(self, recording: str) -> Iterator[pool_pb2.TraceChunk]:
        for first in range(0, self._tokens, 4):
            experts = np.full((4, 2, 1), first, dtype="<u2")
            yield pool_pb2.TraceChunk(
                recording=recording,
                engine=self._name,
                layers=2,
                top_k=1,
                sequences=[0],
                lengths=[4],
                experts=experts.tobytes(),
            )

    async def order(self) -> pool_pb2.RecordOrder:
        return await asyncio.wait_for(self.orders.get(), WAIT_S)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def engine(clients: Clients) -> AsyncIterator[Any]:
    made: list[Engine] = []

    def make(name: str, tokens: int) -> Engine:
        made.append(Engine(clients, name, tokens))
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def code_of(stream: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in stream:
            pass
    return refused.value.code()


async def test_engines_that_are_there_or_come_later_send_what_was_asked_for(clients: Clients, engine: Any) -> None:
    first = engine("e-1", tokens=8)
    recording = clients.record(tokens=20)
    order = await first.order()
    assert (order.tokens, order.seconds) == (20, WAIT_S)
    second = engine("e-2", tokens=100)
    chunks = [chunk async for chunk in recording]
    assert sum(sum(chunk.lengths) for chunk in chunks) == 20
    assert {chunk.engine for chunk in chunks} == {"e-1", "e-2"}
    values = [np.frombuffer(chunk.experts, "<u2")[0] for chunk in chunks if chunk.engine == "e-2"]
    assert values == sorted(values)
    assert (await second.order()).id == order.id
    for one in (first, second):
        assert (await one.order()).tokens == 0


async def test_an_engine_that_sends_too_much_is_told_so(clients: Clients, engine: Any) -> None:
    busy = engine("e-1", tokens=4000)
    assert [sum(chunk.lengths) async for chunk in clients.record(tokens=8)] == [4, 4]
    assert await asyncio.wait_for(busy.outcomes.get(), WAIT_S) is grpc.StatusCode.NOT_FOUND


async def test_one_recording_at_a_time(clients: Clients, engine: Any) -> None:
    idle = engine("e-1", tokens=0)
    first = clients.record(tokens=4)
    order = await idle.order()
    assert await code_of(clients.record(tokens=4)) is grpc.StatusCode.FAILED_PRECONDITION
    first.cancel()
    assert (await idle.order()).tokens == 0
    again = clients.record(tokens=4)
    assert (await idle.order()).id not in ("", order.id)
    again.cancel()


@pytest.mark.parametrize(("tokens", "seconds"), [(0, 1.0), (10**9, 1.0), (5, 0.0), (5, 1e9)])
async def test_sizes_that_cannot_be_are_refused(clients: Clients, tokens: int, seconds: float) -> None:
    assert await code_of(clients.record(tokens, seconds)) is grpc.StatusCode.INVALID_ARGUMENT


async def test_it_ends_when_the_time_is_up(clients: Clients, engine: Any) -> None:
    slow = engine("e-1", tokens=4)
    assert [sum(chunk.lengths) async for chunk in clients.record(tokens=100, seconds=1.0)] in ([4], [])
    orders = [await slow.order()]
    if orders[0].tokens:
        orders.append(await slow.order())
    assert orders[-1].tokens == 0
