"""gRPC in front of a pool controller: PoolControl for the operator, PoolMembership for engines and ingresses."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import grpc

from flexpert_proto import names, pool_pb2, pool_pb2_grpc
from flexpert_proto.channels import add_pool_port
from flexpert_proto.measuring import figures_of
from flexpert_workers import errors
from flexpert_workers.pool import exceptions, view
from flexpert_workers.pool.aside import aside
from flexpert_workers.pool.controller import PoolController
from flexpert_workers.pool.leases import Lease
from flexpert_workers.pool.malformed import MalformedRefuser
from flexpert_workers.pool.state import Operation, Prediction, Request

_STATUSES: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (errors.StaleEpoch, grpc.StatusCode.ABORTED),
    (errors.CheckpointNotFound, grpc.StatusCode.NOT_FOUND),
    (errors.AccessDenied, grpc.StatusCode.PERMISSION_DENIED),
    (errors.SourceUnreachable, grpc.StatusCode.OUT_OF_RANGE),
    (errors.CacheUnusable, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.CheckpointError, grpc.StatusCode.FAILED_PRECONDITION),
    (exceptions.InvalidMessage, grpc.StatusCode.INVALID_ARGUMENT),
    (exceptions.InvalidPlan, grpc.StatusCode.INVALID_ARGUMENT),
    (exceptions.InvalidRecording, grpc.StatusCode.INVALID_ARGUMENT),
    (exceptions.UnknownName, grpc.StatusCode.NOT_FOUND),
    (exceptions.StaleLeader, grpc.StatusCode.PERMISSION_DENIED),
    (exceptions.PoolRefusal, grpc.StatusCode.FAILED_PRECONDITION),
)
_REFRESH_S = 2.0
_SMALLEST_PAUSE_S = 0.02
_MAX_MESSAGE_BYTES = 256 * 1024 * 1024
_SERVER_OPTIONS = (
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # watchers ping every 10 s, silent or not
    ("grpc.keepalive_permit_without_calls", 1),
)

_Message = TypeVar("_Message")
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


def status_of(error: errors.FlexpertError) -> grpc.StatusCode:
    """The gRPC status of what the controller refuses."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


class PoolControlService(pool_pb2_grpc.PoolControlServicer):
    """What the operator asks."""

    def __init__(self, controller: PoolController) -> None:
        self._controller = controller

    async def Configure(self, request: pool_pb2.ConfigureRequest, context: Context) -> pool_pb2.ConfigureResponse:  # noqa: N802
        """Take a specification and a term."""
        spec = view.spec_of(request.spec)
        granted = (request.incarnation, request.term, request.generation)
        await _answered(context, lambda: self._controller.configure(*granted, spec, request.leader))
        return pool_pb2.ConfigureResponse()

    async def InspectModel(self, request: pool_pb2.InspectModelRequest, context: Context) -> pool_pb2.ModelInfo:  # noqa: N802
        """Facts of a checkpoint, or why it cannot be served."""
        model = request.model
        try:
            facts = await self._controller.inspect(model.source, model.revision, model.dtype or "Auto", model.resolved)
        except errors.FlexpertError as refusal:
            await context.abort(status_of(refusal), str(refusal))
        return view.model_message(facts)

    async def GetPool(self, request: pool_pb2.GetPoolRequest, context: Context) -> pool_pb2.Pool:  # noqa: N802
        """All that is known now."""
        return view.pool_message(self._controller, request)

    async def WatchPool(  # noqa: N802
        self, request: pool_pb2.GetPoolRequest, context: Context
    ) -> AsyncIterator[pool_pb2.Pool]:
        """All that is known, now and at every change; what was told already is not told again."""
        told = None
        async for _ in _changes(self._controller, request.refresh_seconds or _REFRESH_S):
            message = view.pool_message(self._controller, request)
            if message != told:
                told = message
                yield message

    async def Drain(self, request: pool_pb2.DrainRequest, context: Context) -> pool_pb2.DrainResponse:  # noqa: N802
        """Mark workers to be emptied, or take that back."""
        workers = tuple(request.workers)
        await _answered(context, lambda: self._controller.drain(workers, request.undo, request.leader))
        return pool_pb2.DrainResponse()

    async def Plan(self, request: pool_pb2.ReconfigureRequest, context: Context) -> pool_pb2.PlanPrediction:  # noqa: N802
        """The dry run of a plan."""
        prediction = await _awaited(context, self._predict(request))
        return view.prediction_message(prediction)

    async def Reconfigure(self, request: pool_pb2.ReconfigureRequest, context: Context) -> pool_pb2.Operation:  # noqa: N802
        """Begin a reconfiguration."""
        operation = await _awaited(context, self._reconfigure(request))
        return view.operation_message(operation)

    async def WatchOperation(  # noqa: N802
        self, request: pool_pb2.WatchOperationRequest, context: Context
    ) -> AsyncIterator[pool_pb2.Operation]:
        """An operation as it goes on, until it has finished."""
        told = None
        async for _ in _changes(self._controller):
            operation = await _answered(context, lambda: self._controller.operations.get(request.operation_id))
            if operation != told:
                told = operation
                yield view.operation_message(operation)
            if operation.phase.finished:
                return

    async def Cancel(self, request: pool_pb2.CancelRequest, context: Context) -> pool_pb2.Operation:  # noqa: N802
        """End an operation before it commits."""
        operation = await _answered(context, lambda: self._controller.operations.cancel(request.operation_id))
        return view.operation_message(operation)

    async def RecordTrace(  # noqa: N802
        self, request: pool_pb2.RecordTraceRequest, context: Context
    ) -> AsyncIterator[pool_pb2.TraceChunk]:
        """What the routers of all engines choose, until there are enough tokens or the time is up."""
        recordings = self._controller.recordings
        recording = await _answered(context, lambda: recordings.begin(request.tokens, request.seconds))
        try:
            async for chunk in recording.chunks():
                yield chunk
        finally:
            recordings.end(recording)

    async def _predict(self, request: pool_pb2.ReconfigureRequest) -> Prediction:
        return await self._controller.predict_aside(await _request_of(request))

    async def _reconfigure(self, request: pool_pb2.ReconfigureRequest) -> Operation:
        return await self._controller.reconfigure_aside(await _request_of(request))


class PoolMembershipService(pool_pb2_grpc.PoolMembershipServicer):
    """What engines and ingresses ask."""

    def __init__(self, controller: PoolController) -> None:
        self._controller = controller

    async def Attach(  # noqa: N802
        self, request_iterator: AsyncIterator[pool_pb2.EngineReport], context: Context
    ) -> AsyncIterator[pool_pb2.EngineDirective]:
        """An engine's lease: it reports, and is told tables."""
        first = await anext(aiter(request_iterator))
        await self._check(first, context)
        registry = self._controller.engines
        lease = await _answered(context, lambda: registry.register(view.engine_of(first.engine)))
        self._note(first)
        reader = asyncio.create_task(self._read(request_iterator, lease))
        try:
            yield pool_pb2.EngineDirective(lease_seconds=registry.terms.lease_s)
            while (news := await registry.next_news(lease)) is not None:
                yield view.directive_message(news, registry.terms.lease_s)
        finally:
            reader.cancel()
            registry.release(lease)

    async def WatchEngines(  # noqa: N802
        self, request: pool_pb2.WatchEnginesRequest, context: Context
    ) -> AsyncIterator[pool_pb2.EngineList]:
        """The engines to use, now and at every change."""
        told = None
        async for _ in _changes(self._controller):
            engines = view.engine_list_message(self._controller)
            if engines != told:
                told = engines
                yield engines

    async def ReportIngress(  # noqa: N802
        self, request: pool_pb2.IngressReport, context: Context
    ) -> pool_pb2.IngressReportResponse:
        """What an ingress has measured."""
        if request.pool and request.pool != self._controller.settings.pool:
            text = f"this is pool {self._controller.settings.pool}, not {request.pool}"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, text)
        figures, before = figures_of(request.figures), self._controller.figures.last(request.ingress)
        self._controller.figures.note(request.ingress, figures)
        waited = before is not None and before.gauge("ingress_waiting") > 0
        if figures.gauge("ingress_waiting") > 0 and not waited:
            self._controller.changes.bump()  # whoever can wake an idle pool hears of it at once
        return pool_pb2.IngressReportResponse()

    async def SendTrace(  # noqa: N802
        self, request_iterator: AsyncIterator[pool_pb2.TraceChunk], context: Context
    ) -> pool_pb2.SendTraceResponse:
        """An engine's part of a recording."""
        async for chunk in request_iterator:
            await _awaited(context, self._controller.recordings.take(chunk))
        return pool_pb2.SendTraceResponse()

    async def _read(self, reports: AsyncIterator[pool_pb2.EngineReport], lease: Lease) -> None:
        try:
            async for report in reports:
                self._controller.engines.renew(lease, view.engine_of(report.engine))
                self._note(report)
        finally:
            lease.end()

    def _note(self, report: pool_pb2.EngineReport) -> None:
        if report.HasField("figures"):
            self._controller.figures.note(report.engine.id, figures_of(report.figures))

    async def _check(self, report: pool_pb2.EngineReport, context: Context) -> None:
        pool, table = self._controller.settings.pool, self._controller.keeper.table
        if report.pool != pool:
            text = f"this is pool {pool}, not {report.pool}"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, text)
        if table is not None and report.digest and report.digest != table.digest:
            text = f"checkpoint {table.digest} is served here, not {report.digest}"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, text)


async def serve(controller: PoolController, address: str) -> tuple[grpc.aio.Server, int]:
    """Serve a controller at `host:port` (port 0: any); returns the server and its port.

    Raises:
        RuntimeError: The address is taken.
    """
    server = grpc.aio.server(interceptors=(MalformedRefuser(),), options=_SERVER_OPTIONS)
    pool_pb2_grpc.add_PoolControlServicer_to_server(PoolControlService(controller), server)
    pool_pb2_grpc.add_PoolMembershipServicer_to_server(PoolMembershipService(controller), server)
    port = add_pool_port(server, address)
    await server.start()
    return server, port


async def _answered(context: Context, act: Callable[[], _Message]) -> _Message:
    """What `act` returns; its refusal becomes the call's status."""
    try:
        return act()
    except errors.FlexpertError as refusal:
        await _refuse(context, refusal)
        raise


async def _awaited(context: Context, answer: Awaitable[_Message]) -> _Message:
    """What `answer` comes to; its refusal becomes the call's status."""
    try:
        return await answer
    except errors.FlexpertError as refusal:
        await _refuse(context, refusal)
        raise


async def _refuse(context: Context, refusal: errors.FlexpertError) -> None:
    newest = ((names.LEADER_METADATA, str(refusal.newest)),) if isinstance(refusal, exceptions.StaleLeader) else ()
    await context.abort(status_of(refusal), str(refusal), newest)


async def _request_of(message: pool_pb2.ReconfigureRequest) -> Request:
    return await aside(len(message.plan.target), lambda: view.request_of(message))


async def _changes(controller: PoolController, refresh_s: float = _REFRESH_S) -> AsyncIterator[int]:
    """Ticks at once, at every change (many in a row make one) and every `refresh_s`, for figures that creep."""
    while True:
        seen = controller.changes.count
        yield seen
        await asyncio.sleep(_SMALLEST_PAUSE_S)
        await controller.changes.wait(seen, refresh_s)
