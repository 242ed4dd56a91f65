"""Between the controller's frozen values and the messages of `pool.proto`. Pure; used by `service`."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flexpert_proto import pool_pb2
from flexpert_proto.measuring import figures_message
from flexpert_workers.pool.controller import PoolController
from flexpert_workers.pool.exceptions import InvalidMessage, InvalidPlan
from flexpert_workers.pool.leases import News
from flexpert_workers.pool.state import (
    Cause,
    Condition,
    Engine,
    Expert,
    ModelFacts,
    ModelFiles,
    Move,
    Operation,
    PoolSpec,
    Prediction,
    Request,
    Worker,
)
from flexpert_workers.pool.tables import placement_of
from flexpert_workers.routing import Epoch

# ---- to messages


def pool_message(controller: PoolController, asked: pool_pb2.GetPoolRequest) -> pool_pb2.Pool:
    """All that is known of a pool, as far as it is asked for."""
    model = controller.model
    num_experts = model.experts if model is not None else 0
    message = pool_pb2.Pool(
        uid=controller.settings.pool,
        incarnation=controller.incarnation,
        term=controller.keeper.term,
        epoch=epoch_message(controller.keeper.epoch),
        workers=[worker_message(worker, num_experts, asked.with_placement) for worker in controller.fleet.all()],
        engines=[engine_message(engine) for engine in controller.engines.engines()],
        generation=controller.generation,
        message=controller.message(),
        lost=[expert_message(expert) for expert in controller.lost_experts()],
    )
    if controller.keeper.table is not None:
        message.table_operation = controller.keeper.table.operation
    if controller.spec is not None:
        message.wanted_standby_workers = controller.spec.standby_workers
        if controller.spec.workers is not None:
            message.wanted_workers = controller.spec.workers
    if asked.with_placement:
        message.placement.extend(replica_messages(placement_of(controller.keeper.table)))
    if model is not None:
        message.model.CopyFrom(model_message(model))
    if model is not None and asked.with_loads:
        message.loads.extend(controller.fleet.loads.total(model.layers * num_experts))
        message.loads_since = controller.fleet.loads.since
    if asked.with_figures:
        _add_figures(message, controller)
    message.model_files.CopyFrom(files_message(controller.files()))
    if controller.operations.last is not None:
        message.operation.CopyFrom(operation_message(controller.operations.last))
    return message


def _add_figures(message: pool_pb2.Pool, controller: PoolController) -> None:
    """What was measured: all together, of each worker, and of each layer."""
    message.figures.CopyFrom(figures_message(controller.figures.total()))
    for worker in message.workers:
        figures = controller.figures.last(worker.id)
        if figures is not None:
            worker.busy_seconds = figures.counter("worker_busy_seconds")
            worker.up_seconds = figures.counter("worker_up_seconds")
    message.layer_imbalance.extend(controller.layer_imbalance())


def engine_list_message(controller: PoolController) -> pool_pb2.EngineList:
    """The engines that an ingress can use, and what they serve."""
    engines = [engine for engine in controller.engines.engines() if engine.condition is not Condition.LOST]
    message = pool_pb2.EngineList(pool=controller.settings.pool, engines=[engine_message(one) for one in engines])
    if controller.spec is not None:
        message.wanted_engines = controller.spec.engine_replicas
    if controller.model is not None:
        model = controller.model
        named = pool_pb2.Model(source=model.opened or model.source, revision=model.revision, dtype=model.dtype)
        message.model.CopyFrom(named)
        message.info.CopyFrom(model_message(model))
    return message


def epoch_message(epoch: Epoch) -> pool_pb2.Epoch:
    """An epoch."""
    return pool_pb2.Epoch(term=epoch.term, sequence=epoch.sequence)


def expert_message(expert: Expert) -> pool_pb2.Expert:
    """An expert."""
    return pool_pb2.Expert(layer=expert[0], index=expert[1])


def replica_messages(placement: Mapping[Expert, Mapping[str, float]]) -> list[pool_pb2.Replica]:
    """Every replica of a placement, by expert and worker."""
    return [
        pool_pb2.Replica(expert=expert_message(expert), worker=worker, share=share)
        for expert, shares in sorted(placement.items())
        for worker, share in sorted(shares.items())
    ]


def worker_message(worker: Worker, num_experts: int, with_experts: bool) -> pool_pb2.Worker:
    """A worker; `num_experts` per layer packs what it holds."""
    message = pool_pb2.Worker(id=worker.id, state=pool_pb2.Worker.State.Value(worker.condition))
    if worker.slot is not None:
        slot = worker.slot
        message.pod, message.node, message.ray_node_id = slot.pod, slot.node, slot.ray_node_id
        message.failure_domain = slot.failure_domain or slot.node
    if worker.state is not None:
        state = worker.state
        message.incarnation, message.endpoint, message.memory_bytes = (
            state.incarnation,
            state.endpoint,
            state.memory_bytes,
        )
    if worker.state is not None and worker.live:
        message.pid, message.resident_bytes = worker.state.pid, worker.state.resident_bytes
        message.threads, message.domain = worker.state.threads, worker.state.domain
        if with_experts:
            message.experts.extend(sorted(layer * num_experts + index for layer, index in worker.experts))
    return message


def engine_message(engine: Engine) -> pool_pb2.Engine:
    """An engine."""
    return pool_pb2.Engine(
        id=engine.id,
        endpoint=engine.endpoint,
        state=pool_pb2.Engine.State.Value(engine.condition),
        epoch=epoch_message(engine.epoch),
        pid=engine.pid,
        running=engine.running,
        waiting=engine.waiting,
        expert_bytes=engine.expert_bytes,
        kv_bytes=engine.kv_bytes,
        kv_use=engine.kv_use,
        generated_tokens=engine.generated_tokens,
        pod=engine.pod,
        threads=engine.threads,
    )


def directive_message(news: News, lease_s: float) -> pool_pb2.EngineDirective:
    """What an engine is told."""
    message = pool_pb2.EngineDirective(routing_table=news.table, lease_seconds=lease_s)
    if news.recording is not None:
        order = news.recording
        message.record.CopyFrom(pool_pb2.RecordOrder(id=order.id, tokens=order.tokens, seconds=order.seconds))
    return message


def model_message(model: ModelFacts) -> pool_pb2.ModelInfo:
    """What placement and validation need to know of a checkpoint."""
    return pool_pb2.ModelInfo(
        architecture=model.architecture,
        digest=model.digest,
        layers=model.layers,
        experts=model.experts,
        experts_per_token=model.experts_per_token,
        expert_bytes=model.expert_bytes,
        dense_bytes=model.dense_bytes,
        kv_bytes_per_token=model.kv_bytes_per_token,
        context_length=model.context_length,
        source=model.opened or model.source,
        revision=model.resolved,
        fetched_bytes=model.fetched_bytes,
    )


def files_message(files: ModelFiles) -> pool_pb2.ModelFiles:
    """How far the model's files are."""
    return pool_pb2.ModelFiles(**asdict(files))


def operation_message(operation: Operation) -> pool_pb2.Operation:
    """A reconfiguration as it stands."""
    message = pool_pb2.Operation(
        id=operation.id,
        cause=pool_pb2.Cause.Value(operation.cause),
        phase=pool_pb2.Phase.Value(operation.phase),
        base_epoch=epoch_message(operation.base_epoch),
        moved_experts=operation.moved_experts,
        moved_bytes=operation.moved_bytes,
        message=operation.message,
        started_at=operation.started_at,
        finished_at=operation.finished_at or 0.0,
        phase_seconds=dict(operation.phase_seconds),
        attached_experts=operation.attached_experts,
        step_seconds=dict(operation.step_seconds),
        peak_bytes=dict(operation.peak_bytes),
        wave=operation.wave,
    )
    if operation.predicted is not None:
        message.predicted.CopyFrom(prediction_message(operation.predicted))
    if operation.epoch is not None:
        message.epoch.CopyFrom(epoch_message(operation.epoch))
    return message


def prediction_message(prediction: Prediction) -> pool_pb2.PlanPrediction:
    """A dry run's outcome."""
    return pool_pb2.PlanPrediction(
        moved_bytes=prediction.moved_bytes,
        moved_experts=prediction.moved_experts,
        seconds=prediction.seconds,
        peak_bytes=dict(prediction.peak_bytes),
        refusal=prediction.refusal,
        attached_experts=prediction.attached_experts,
        waves=prediction.waves,
    )


# ---- from messages


def request_of(message: pool_pb2.ReconfigureRequest) -> Request:
    """A reconfiguration asked for.

    Raises:
        InvalidPlan: It names a replica twice.
        InvalidMessage: There is no such cause.
    """
    target: dict[Expert, dict[str, float]] = defaultdict(dict)
    for replica in message.plan.target:
        shares = target[replica.expert.layer, replica.expert.index]
        if replica.worker in shares:
            raise InvalidPlan(
                f"{replica.worker} holds layer {replica.expert.layer} expert {replica.expert.index} twice"
            )
        shares[replica.worker] = replica.share
    moves = tuple(
        Move((move.expert.layer, move.expert.index), move.target, tuple(move.sources)) for move in message.plan.moves
    )
    base = Epoch(message.base_epoch.term, message.base_epoch.sequence)
    cause = Cause(_named(pool_pb2.Cause, message.cause, "cause"))
    return Request(message.operation_id, cause, base, moves, dict(target), leader=message.leader)


def _named(kind: Any, value: int, field: str) -> str:
    """The name of an enum's value."""
    try:
        return str(kind.Name(value))
    except ValueError as error:
        raise InvalidMessage(f"{field}: there is no value {value}") from error


def spec_of(message: pool_pb2.PoolSpec) -> PoolSpec:
    """What the operator wants of the pool."""
    return PoolSpec(
        uid=message.uid,
        name=message.name,
        namespace=message.namespace,
        source=message.model.source,
        revision=message.model.revision,
        dtype=message.model.dtype or "Auto",
        engine_replicas=message.engines.replicas,
        max_batch_tokens=message.engines.max_batch_tokens,
        kv_cache_bytes=message.engines.kv_cache_bytes,
        engine_threads=message.engines.threads,
        workers_per_pod=max(1, message.experts.workers_per_pod),
        memory_per_worker_bytes=message.experts.memory_per_worker_bytes,
        worker_threads=message.experts.threads,
        workers=message.experts.workers if message.experts.HasField("workers") else None,
        standby_workers=message.experts.standby_workers,
        copy_bytes_per_s=message.experts.copy_bytes_per_s or None,
        resolved=message.model.resolved,
    )


def engine_of(message: pool_pb2.Engine) -> Engine:
    """An engine as it reports itself; raises `InvalidMessage` for a state that there is not."""
    return Engine(
        id=message.id,
        condition=Condition(_named(pool_pb2.Engine.State, message.state, "engine.state")),
        endpoint=message.endpoint,
        epoch=Epoch(message.epoch.term, message.epoch.sequence),
        pid=message.pid,
        pod=message.pod,
        running=message.running,
        waiting=message.waiting,
        expert_bytes=message.expert_bytes,
        kv_bytes=message.kv_bytes,
        kv_use=message.kv_use,
        generated_tokens=message.generated_tokens,
        threads=message.threads,
    )
