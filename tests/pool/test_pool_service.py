"""The gRPC services over a controller among fakes, and an engine that attaches as a real client."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from flexpert_proto import pool_pb2, pool_pb2_grpc
from flexpert_workers.pool.service import serve
from flexpert_workers.routing import RoutingTable

POOL = "uid-1"
WAIT_S = 30


class Clients:
    def __init__(self, rig: Any, channel: grpc.aio.Channel) -> None:
        self.rig = rig
        self.control: Any = pool_pb2_grpc.PoolControlStub(channel)
        self.membership: Any = pool_pb2_grpc.PoolMembershipStub(channel)

    async def pool(self) -> pool_pb2.Pool:
        return await self.control.GetPool(pool_pb2.GetPoolRequest(with_placement=True, with_loads=True))

    async def configure(self, term: int = 1, **changes: Any) -> None:
        request = pool_pb2.ConfigureRequest(
            incarnation=self.rig.controller.incarnation,
            term=term,
            generation=7,
            spec=pool_pb2.PoolSpec(
                uid=POOL,
                name="tiny",
                namespace="default",
                model=pool_pb2.Model(source="file:///model"),
                engines=pool_pb2.EngineSpec(replicas=2),
                experts=pool_pb2.ExpertSpec(memory_per_worker_bytes=10_000),
            ),
        )
        request.MergeFrom(pool_pb2.ConfigureRequest(**changes))
        await self.control.Configure(request)

    async def plan(self, name: str, reverse: bool = False) -> pool_pb2.ReconfigureRequest:
        """Every expert on one worker, in turn."""
        pool = await self.pool()
        workers = [worker for worker in pool.workers if worker.state == pool_pb2.Worker.READY]
        workers.sort(key=lambda worker: worker.id, reverse=reverse)
        request = pool_pb2.ReconfigureRequest(operation_id=name, base_epoch=pool.epoch, cause=pool_pb2.SCALE)
        for number in range(pool.model.layers * pool.model.experts):
            expert = pool_pb2.Expert(layer=number // pool.model.experts, index=number % pool.model.experts)
            target = workers[number % len(workers)]
            request.plan.target.add(expert=expert, worker=target.id, share=1.0)
            if number not in target.experts:
                request.plan.moves.add(expert=expert, target=target.id, sources=[""])
        return request

    async def placed(self) -> pool_pb2.Operation:
        await self.configure()
        await self.rig.ready(3)
        await self.control.Reconfigure(await self.plan("initial"))
        return await self.watched("initial")

    async def watched(self, name: str) -> pool_pb2.Operation:
        stream = self.control.WatchOperation(pool_pb2.WatchOperationRequest(operation_id=name), timeout=WAIT_S)
        return [operation async for operation in stream][-1]


@pytest.fixture
async def clients(rig: Any) -> AsyncIterator[Clients]:
    server, port = await serve(rig.controller, "127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Clients(rig, channel)
    await server.stop(None)


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    assert refused.value.details()
    return refused.value.code()


async def test_the_pool_is_told_as_it_is(clients: Clients) -> None:
    assert (await clients.pool()).message
    operation = await clients.placed()
    assert operation.phase == pool_pb2.SUCCEEDED
    assert operation.moved_experts == 8
    assert operation.moved_bytes == 800
    assert set(operation.phase_seconds) == {"prepare", "commit", "retire"}
    pool = await clients.pool()
    assert (pool.uid, pool.term, pool.generation, pool.message) == (POOL, 1, 7, "")
    assert (pool.epoch.term, pool.epoch.sequence) == (1, 1)
    assert (pool.model.layers, pool.model.experts, pool.model.expert_bytes) == (2, 4, 100)
    assert sorted(number for worker in pool.workers for number in worker.experts) == list(range(8))
    assert {worker.pod for worker in pool.workers} == {"pod-0", "pod-1", "pod-2"}
    assert all(worker.resident_bytes == 100 * len(worker.experts) for worker in pool.workers)
    assert len(pool.placement) == 8
    assert len(pool.loads) == 8
    assert pool.operation.id == "initial"
    small = await clients.control.GetPool(pool_pb2.GetPoolRequest())
    assert not small.placement
    assert not small.loads
    assert not any(worker.experts for worker in small.workers)


async def test_refusals_have_their_statuses(clients: Clients) -> None:
    control = clients.control
    empty = pool_pb2.ReconfigureRequest(operation_id="x")
    assert await code_of(control.Plan(empty)) is grpc.StatusCode.FAILED_PRECONDITION
    assert await code_of(control.Reconfigure(empty)) is grpc.StatusCode.FAILED_PRECONDITION
    assert await code_of(clients.configure(incarnation="other")) is grpc.StatusCode.FAILED_PRECONDITION
    await clients.placed()
    assert await code_of(control.Reconfigure(empty)) is grpc.StatusCode.ABORTED
    broken = await clients.plan("broken")
    del broken.plan.target[3]
    assert await code_of(control.Reconfigure(broken)) is grpc.StatusCode.INVALID_ARGUMENT
    twice = await clients.plan("twice")
    twice.plan.target.append(twice.plan.target[0])
    assert await code_of(control.Reconfigure(twice)) is grpc.StatusCode.INVALID_ARGUMENT
    assert await code_of(control.Cancel(pool_pb2.CancelRequest(operation_id="x"))) is grpc.StatusCode.NOT_FOUND
    assert await code_of(control.Drain(pool_pb2.DrainRequest(workers=["x"]))) is grpc.StatusCode.NOT_FOUND
    missing = pool_pb2.InspectModelRequest(model=pool_pb2.Model(source="file:///missing"))
    assert await code_of(control.InspectModel(missing)) is grpc.StatusCode.FAILED_PRECONDITION
    watch = control.WatchOperation(pool_pb2.WatchOperationRequest(operation_id="x"))
    assert await code_of(watch.read()) is grpc.StatusCode.NOT_FOUND


async def test_a_dry_run_changes_nothing(clients: Clients) -> None:
    await clients.placed()
    prediction = await clients.control.Plan(await clients.plan("dry", reverse=True))
    assert prediction.refusal == ""
    assert prediction.moved_bytes == 100 * prediction.moved_experts > 0
    assert len(prediction.peak_bytes) == 3
    assert (await clients.pool()).operation.id == "initial"


async def test_watchers_of_the_pool_hear_of_a_death(clients: Clients) -> None:
    await clients.placed()
    victim = (await clients.pool()).workers[0].id
    watch = clients.control.WatchPool(pool_pb2.GetPoolRequest(), timeout=WAIT_S)
    async for pool in watch:
        clients.rig.workers.workers[victim].kill()
        states = {worker.id: worker.state for worker in pool.workers}
        if pool.operation.cause == pool_pb2.FAILURE and pool.operation.phase == pool_pb2.SUCCEEDED:
            assert states[victim] == pool_pb2.Worker.LOST
            assert not pool.lost
            return
    raise AssertionError("the stream ended")


class EngineClient:
    """An engine's side of `Attach`; it acknowledges every table that it gets."""

    def __init__(self, clients: Clients, name: str, pool: str = POOL, digest: str = "digest") -> None:
        self.tables: list[RoutingTable] = []
        self.leases: list[float] = []
        self._clients = clients
        self._message = pool_pb2.EngineReport(
            engine=pool_pb2.Engine(id=name, endpoint=f"tcp://{name}", state=pool_pb2.Engine.READY, running=3),
            pool=pool,
            digest=digest,
        )

    async def run(self) -> None:
        stream = self._clients.membership.Attach(timeout=WAIT_S)
        await stream.write(self._message)
        async for directive in stream:
            self.leases.append(directive.lease_seconds)
            if directive.routing_table:
                self.tables.append(RoutingTable.decode(directive.routing_table))
                epoch = self.tables[-1].epoch
                self._message.engine.epoch.CopyFrom(pool_pb2.Epoch(term=epoch.term, sequence=epoch.sequence))
                await stream.write(self._message)


async def test_an_engine_attaches_is_told_tables_and_listed(clients: Clients) -> None:
    engine = EngineClient(clients, "e-1")
    attached = asyncio.create_task(engine.run())
    watch = clients.membership.WatchEngines(pool_pb2.WatchEnginesRequest(), timeout=WAIT_S)
    async for listed in watch:
        if listed.engines:
            break
    assert listed.pool == POOL
    assert listed.engines[0].endpoint == "tcp://e-1"
    assert engine.leases
    operation = await clients.placed()
    assert operation.message == ""
    assert [table.operation for table in engine.tables] == ["initial"]
    pool = await clients.pool()
    assert (pool.engines[0].epoch.sequence, pool.engines[0].running) == (1, 3)
    async for listed in watch:
        if listed.info.layers:
            break
    assert listed.model.source == "file:///model"
    attached.cancel()
    async for listed in watch:
        if not listed.engines:
            break
    assert (await clients.pool()).engines[0].state == pool_pb2.Engine.LOST


async def test_engines_of_another_pool_or_checkpoint_are_refused(clients: Clients) -> None:
    await clients.placed()
    assert await code_of(EngineClient(clients, "e-1", pool="other").run()) is grpc.StatusCode.FAILED_PRECONDITION
    assert await code_of(EngineClient(clients, "e-1", digest="other").run()) is grpc.StatusCode.FAILED_PRECONDITION
