"""What commands ask a pool controller."""

import grpc

from flexpert_operator.cli.errors import CliError
from flexpert_operator.cli.plan_report import Prediction
from flexpert_operator.cli.reach import Reach
from flexpert_operator.pool_client import plan_message
from flexpert_placement.types import Plan
from flexpert_proto import pool_pb2 as pb
from flexpert_proto.pool_pb2_grpc import PoolControlStub

MAX_MESSAGE_BYTES = 64 * 2**20
OPTIONS = (("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),)
_READ_TIMEOUT_S = 30.0
_PLAN_TIMEOUT_S = 30.0


def read_pool(reach: Reach, address: str) -> pb.Pool:
    """The pool as its controller sees it, with placement and loads.

    Raises:
        CliError: The controller cannot be reached, or does not answer.
    """
    with reach.channel(address, OPTIONS) as channel:
        request = pb.GetPoolRequest(with_placement=True, with_loads=True)
        try:
            pool: pb.Pool = PoolControlStub(channel).GetPool(request, timeout=_READ_TIMEOUT_S)
        except grpc.RpcError as error:
            raise CliError(f"the pool controller does not answer at {address}: {error.details()}") from error
    return pool


def predict_plan(reach: Reach, address: str, base: pb.Epoch, plan: Plan) -> Prediction:
    """The pool's dry run of a plan.

    Raises:
        CliError: The controller cannot be reached, does not answer, or cannot say.
    """
    request = pb.ReconfigureRequest(
        operation_id="dry-run", base_epoch=base, cause=pb.REBALANCE, plan=plan_message(plan)
    )
    with reach.channel(address) as channel:
        try:
            answer: pb.PlanPrediction = PoolControlStub(channel).Plan(request, timeout=_PLAN_TIMEOUT_S)
        except grpc.RpcError as error:
            raise CliError(f"the pool controller at {address} cannot try the plan out: {error.details()}") from error
    return Prediction(
        moved_bytes=answer.moved_bytes,
        seconds=answer.seconds,
        peak_bytes=dict(answer.peak_bytes),
        waves=answer.waves or 1,
        refusal=answer.refusal,
    )
