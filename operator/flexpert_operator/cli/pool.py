"""What commands ask a pool controller, beyond what `status` reads."""

import grpc

from flexpert_operator.cli.errors import CliError
from flexpert_operator.cli.plan_report import Prediction
from flexpert_operator.pool_client import plan_message
from flexpert_placement.types import Plan
from flexpert_proto import names as pool_names
from flexpert_proto import pool_pb2 as pb
from flexpert_proto.pool_pb2_grpc import PoolControlStub

_TIMEOUT_S = 30.0


def predict_plan(address: str, base: pb.Epoch, plan: Plan) -> Prediction:
    """The pool's dry run of a plan.

    Raises:
        CliError: The controller does not answer, or cannot say.
    """
    target = pool_names.resolve(address)
    request = pb.ReconfigureRequest(
        operation_id="dry-run", base_epoch=base, cause=pb.REBALANCE, plan=plan_message(plan)
    )
    with grpc.insecure_channel(target) as channel:
        try:
            answer: pb.PlanPrediction = PoolControlStub(channel).Plan(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise CliError(f"the pool controller at {target} cannot try the plan out: {error.details()}") from error
    return Prediction(
        moved_bytes=answer.moved_bytes,
        seconds=answer.seconds,
        peak_bytes=dict(answer.peak_bytes),
        waves=answer.waves or 1,
        refusal=answer.refusal,
    )
