"""The one module that calls `PoolControl`; it turns protobuf messages into the values that decisions are made of."""

from collections.abc import Callable

import grpc

from flexpert_operator.api.spec import Model, MoEDeployment
from flexpert_operator.decide.observation import (
    Cause,
    Engine,
    Epoch,
    MemberState,
    ModelFacts,
    ModelFiles,
    Operation,
    Phase,
    Pool,
    Prediction,
    Worker,
)
from flexpert_operator.decide.placing import Reconfiguration
from flexpert_operator.errors import ModelRefused, Outdone, PlanRefused, PoolError, PoolRefused, PoolUnavailable
from flexpert_operator.fence import Fence, NoFence
from flexpert_placement.types import ExpertId, Placement, Plan
from flexpert_proto import names as pool_names
from flexpert_proto import pool_pb2 as pb
from flexpert_proto.channels import pool_channel
from flexpert_proto.credentials import CredentialsError
from flexpert_proto.measuring import figures_of
from flexpert_proto.pool_pb2_grpc import PoolControlStub

CALL_TIMEOUT_S = 10.0
INSPECT_TIMEOUT_S = 600.0
MAX_MESSAGE_BYTES = 64 * 2**20

STATES = {0: MemberState.STARTING, 1: MemberState.READY, 2: MemberState.DRAINING, 3: MemberState.LOST}
STATES[pb.Worker.STANDBY] = MemberState.STANDBY
CAUSES = {
    pb.CAUSE_UNSPECIFIED: Cause.UNKNOWN,
    pb.SCALE: Cause.SCALE,
    pb.REBALANCE: Cause.REBALANCE,
    pb.FAILURE: Cause.FAILURE,
    pb.UPGRADE: Cause.UPGRADE,
    pb.INITIAL: Cause.INITIAL,
    pb.DRAIN: Cause.DRAIN,
}
PHASES = {
    pb.PENDING: Phase.PENDING,
    pb.PREPARE: Phase.PREPARE,
    pb.COMMIT: Phase.COMMIT,
    pb.RETIRE: Phase.RETIRE,
    pb.SUCCEEDED: Phase.SUCCEEDED,
    pb.ROLLED_BACK: Phase.ROLLED_BACK,
    pb.CANCELLED: Phase.CANCELLED,
    pb.FAILED: Phase.FAILED,
}
MODEL_REFUSALS = {
    grpc.StatusCode.NOT_FOUND: "ModelNotFound",
    grpc.StatusCode.FAILED_PRECONDITION: "ModelRefused",
    grpc.StatusCode.INVALID_ARGUMENT: "ModelRefused",
    grpc.StatusCode.PERMISSION_DENIED: "ModelAccessDenied",
    grpc.StatusCode.OUT_OF_RANGE: "ModelUnreachable",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "ModelCacheUnusable",
}
UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class PoolClient:
    """Talks to the controller of one pool. Used by one thread at a time.

    The address is resolved anew after every failure, since a new controller may be elsewhere.

    Args:
        address: Of the controller, or what says it at each connect.
        fence: Asked before everything that steers the pool, and told when the pool obeys a later leader.
    """

    def __init__(self, address: str | Callable[[], str], fence: Fence | None = None) -> None:
        self._find: Callable[[], str] = address if callable(address) else lambda: address
        self._fence = fence or NoFence()
        self._channel: grpc.Channel | None = None
        self._followed: tuple[str, int] | None = None

    def close(self) -> None:
        """Forget the connection; the next call makes another."""
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    def get_pool(self) -> Pool:
        """What the controller sees; raises `PoolUnavailable`."""
        request = pb.GetPoolRequest(with_placement=True, with_loads=True)
        try:
            return pool_of(self._stub().GetPool(request, timeout=CALL_TIMEOUT_S))
        except grpc.RpcError as failure:
            raise self._translate(failure) from failure

    def inspect_model(self, model: Model) -> ModelFacts:
        """Look at a checkpoint; raises `ModelRefused` with what to change, or `PoolUnavailable`."""
        request = pb.InspectModelRequest(model=model_message(model))
        try:
            return facts_of(self._stub().InspectModel(request, timeout=INSPECT_TIMEOUT_S))
        except grpc.RpcError as failure:
            reason = MODEL_REFUSALS.get(failure.code())
            if reason is not None:
                raise ModelRefused(reason, failure.details() or "") from failure
            raise self._translate(failure) from failure

    def configure(
        self, deployment: MoEDeployment, model: Model, incarnation: str, term: int, engines: int, workers: int
    ) -> None:
        """Grant `term` to `incarnation`, say what the pool is for and who leads; raises `PoolRefused`."""
        request = pb.ConfigureRequest(
            incarnation=incarnation,
            term=term,
            generation=deployment.generation,
            spec=spec_message(deployment, model, engines, workers),
            leader=self._fence.check(),
        )
        try:
            self._stub().Configure(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as failure:
            raise self._translate(failure) from failure
        self._followed = (incarnation, request.leader)

    def is_followed(self, incarnation: str) -> bool:
        """Whether this incarnation of the controller was told who leads, so that it refuses earlier leaders."""
        leader = self._fence.check()
        return leader == 0 or self._followed == (incarnation, leader)

    def drain(self, workers: tuple[str, ...], undo: bool) -> None:
        """Have workers lose their experts at the next reconfiguration, or take that back."""
        try:
            request = pb.DrainRequest(workers=workers, undo=undo, leader=self._fence.check())
            self._stub().Drain(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as failure:
            raise self._translate(failure) from failure

    def reconfigure(self, wanted: Reconfiguration) -> Operation:
        """Begin a reconfiguration, or find the one with the same id.

        Raises:
            PlanRefused: It cannot be carried out.
            PoolRefused: Its base is not the newest table, or another operation runs: observe again.
        """
        request = request_message(wanted, self._fence.check())
        try:
            return operation_of(self._stub().Reconfigure(request, timeout=CALL_TIMEOUT_S))
        except grpc.RpcError as failure:
            if failure.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise PlanRefused(failure.details()) from failure
            raise self._translate(failure) from failure

    def predict(self, wanted: Reconfiguration) -> Prediction:
        """What a reconfiguration would cost: a dry run; raises `PoolError`."""
        try:
            return prediction_of(self._stub().Plan(request_message(wanted), timeout=CALL_TIMEOUT_S))
        except grpc.RpcError as failure:
            raise self._translate(failure) from failure

    def _stub(self) -> PoolControlStub:
        if self._channel is None:
            options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
            try:
                self._channel = pool_channel(self._find(), options)
            except CredentialsError as error:
                raise PoolUnavailable(f"{self._find()}: {error}") from error
        return PoolControlStub(self._channel)

    def _translate(self, failure: grpc.RpcError) -> PoolError:
        if failure.code() in UNAVAILABLE:
            self.close()
            return PoolUnavailable(f"{self._find()}: {failure.details()}")
        said = {entry.key: entry.value for entry in failure.trailing_metadata() or ()}
        if pool_names.LEADER_METADATA in said:
            self._fence.outdone(int(said[pool_names.LEADER_METADATA]))
            return Outdone(f"{self._find()}: {failure.details()}")
        return PoolRefused(f"{failure.code().name}: {failure.details()}")


def model_message(model: Model) -> pb.Model:
    """A model as the pool controller takes it."""
    return pb.Model(source=model.source, revision=model.revision, dtype=model.dtype, resolved=model.resolved)


def spec_message(deployment: MoEDeployment, model: Model, engines: int, workers: int) -> pb.PoolSpec:
    """What the pool is for, with the model and the numbers of engines and of workers it is to have now."""
    return pb.PoolSpec(
        uid=deployment.uid,
        name=deployment.name,
        namespace=deployment.namespace,
        model=model_message(model),
        engines=pb.EngineSpec(
            replicas=engines,
            max_batch_tokens=deployment.engines.max_batch_tokens,
            kv_cache_bytes=deployment.engines.kv_cache_bytes,
        ),
        experts=pb.ExpertSpec(
            workers_per_pod=deployment.experts.workers_per_pod,
            memory_per_worker_bytes=deployment.experts.memory_per_worker_bytes,
            workers=workers,
            standby_workers=deployment.experts.standby_workers,
            copy_bytes_per_s=deployment.experts.copy_bytes_per_s or 0,
        ),
    )


def request_message(wanted: Reconfiguration, leader: int = 0) -> pb.ReconfigureRequest:
    """A reconfiguration as the pool controller takes it, from a leader with that number."""
    return pb.ReconfigureRequest(
        operation_id=wanted.operation_id,
        base_epoch=pb.Epoch(term=wanted.base_epoch.term, sequence=wanted.base_epoch.sequence),
        cause=next(number for number, cause in CAUSES.items() if cause is wanted.cause),
        plan=plan_message(wanted.plan),
        leader=leader,
    )


def plan_message(plan: Plan) -> pb.Plan:
    """A plan as the pool controller takes it; every move ends with the checkpoint's file as a source."""
    return pb.Plan(
        moves=[
            pb.Move(expert=expert_message(move.expert), target=move.target, sources=[*move.sources, ""])
            for move in plan.moves
        ],
        target=[
            pb.Replica(expert=expert_message(expert), worker=worker, share=share)
            for expert, row in sorted(plan.target.items())
            for worker, share in sorted(row.items())
        ],
    )


def expert_message(expert: ExpertId) -> pb.Expert:
    """An expert's layer and index."""
    return pb.Expert(layer=expert.layer, index=expert[1])


def pool_of(message: pb.Pool) -> Pool:
    """The pool as decisions see it."""
    return Pool(
        incarnation=message.incarnation,
        term=message.term,
        epoch=epoch_of(message.epoch),
        workers=tuple(worker_of(worker) for worker in message.workers),
        engines=tuple(engine_of(engine) for engine in message.engines),
        placement=placement_of(message),
        model=facts_of(message.model) if message.HasField("model") else None,
        loads=tuple(message.loads),
        loads_since=message.loads_since,
        operation=operation_of(message.operation) if message.HasField("operation") else None,
        generation=message.generation,
        message=message.message,
        lost=tuple(ExpertId(expert.layer, expert.index) for expert in message.lost),
        wanted_workers=message.wanted_workers if message.HasField("wanted_workers") else None,
        wanted_standby=message.wanted_standby_workers,
        table_operation=message.table_operation,
        files=files_of(message.model_files),
        figures=figures_of(message.figures) if message.HasField("figures") else None,
        layer_imbalance=tuple(message.layer_imbalance),
    )


def placement_of(message: pb.Pool) -> Placement:
    """The placement in force."""
    placement: dict[ExpertId, dict[str, float]] = {}
    for replica in message.placement:
        row = placement.setdefault(ExpertId(replica.expert.layer, replica.expert.index), {})
        row[replica.worker] = replica.share
    return placement


def worker_of(message: pb.Worker) -> Worker:
    """A worker as decisions see it."""
    return Worker(
        id=message.id,
        pod=message.pod,
        state=STATES[message.state],
        memory_bytes=message.memory_bytes,
        resident_bytes=message.resident_bytes,
        num_experts=len(message.experts),
        node=message.node,
        failure_domain=message.failure_domain,
    )


def engine_of(message: pb.Engine) -> Engine:
    """An engine as decisions see it."""
    return Engine(message.id, message.pod, STATES[message.state], message.running, message.waiting)


def facts_of(message: pb.ModelInfo) -> ModelFacts:
    """A checkpoint's facts as decisions see them."""
    return ModelFacts(
        message.architecture,
        message.digest,
        message.layers,
        message.experts,
        message.expert_bytes,
        message.revision,
        message.fetched_bytes,
    )


def files_of(message: pb.ModelFiles) -> ModelFiles:
    """How far the model's files are, as decisions see it."""
    return ModelFiles(
        phase=message.phase,
        bytes_done=message.bytes_done,
        bytes_total=message.bytes_total,
        nodes_ready=message.nodes_ready,
        nodes=message.nodes,
        error=message.error,
        message=message.message,
        newer_revision=message.newer_revision,
    )


def epoch_of(message: pb.Epoch) -> Epoch:
    """An epoch as decisions see it."""
    return Epoch(message.term, message.sequence)


def operation_of(message: pb.Operation) -> Operation:
    """An operation as decisions see it."""
    return Operation(
        id=message.id,
        cause=CAUSES[message.cause],
        phase=PHASES[message.phase],
        base_epoch=epoch_of(message.base_epoch),
        moved_experts=message.moved_experts,
        moved_bytes=message.moved_bytes,
        message=message.message,
        started_at=message.started_at,
        finished_at=message.finished_at or None,
        phase_seconds=dict(message.phase_seconds),
        attached_experts=message.attached_experts,
        step_seconds=dict(message.step_seconds),
        peak_bytes=max(message.peak_bytes.values(), default=0),
        predicted=prediction_of(message.predicted) if message.HasField("predicted") else None,
        wave=message.wave or 1,
    )


def prediction_of(message: pb.PlanPrediction) -> Prediction:
    """A prediction as decisions see it."""
    peak = max(message.peak_bytes.values(), default=0)
    return Prediction(message.moved_bytes, message.seconds, peak, message.waves or 1, message.refusal)
