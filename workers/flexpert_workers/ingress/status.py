"""Errors of the pool as gRPC statuses, with hints that clients of any language understand."""

from typing import Any, Never

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from flexpert_workers.errors import FlexpertError, InvalidRequest, Overloaded
from flexpert_workers.ingress.balancer import RequestBroke
from flexpert_workers.ingress.stalls import Stalled
from flexpert_workers.ingress.tokens import PermissionDenied, Unauthenticated
from flexpert_workers.ingress.validate import UnknownModel

RETRY_AFTER = "retry-after-ms"
PUSHBACK = "grpc-retry-pushback-ms"
DETAILS = "grpc-status-details-bin"

Context = grpc.aio.ServicerContext[Any, Any]


def status_of(error: FlexpertError) -> grpc.StatusCode:
    """The status that tells a client what happened and whether to try again."""
    match error:
        case InvalidRequest():
            return grpc.StatusCode.INVALID_ARGUMENT
        case UnknownModel():
            return grpc.StatusCode.NOT_FOUND
        case Unauthenticated():
            return grpc.StatusCode.UNAUTHENTICATED
        case PermissionDenied():
            return grpc.StatusCode.PERMISSION_DENIED
        case Overloaded():
            return grpc.StatusCode.RESOURCE_EXHAUSTED
        case RequestBroke():
            return grpc.StatusCode.INTERNAL
        case Stalled():
            return grpc.StatusCode.CANCELLED
        case _:
            return grpc.StatusCode.UNAVAILABLE


def trailers_of(error: FlexpertError) -> tuple[tuple[str, str | bytes], ...]:
    """What goes with the status: the wait predicted, the field that is wrong."""
    match error:
        case Overloaded(retry_after_s=wait_s):
            milliseconds = str(round(wait_s * 1000))
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(round(wait_s * 1000))
            hint = _details(error, error_details_pb2.RetryInfo(retry_delay=delay))
            return ((RETRY_AFTER, milliseconds), (PUSHBACK, milliseconds), (DETAILS, hint))
        case InvalidRequest(field=field):
            violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=str(error))
            return ((DETAILS, _details(error, error_details_pb2.BadRequest(field_violations=[violation]))),)
        case _:
            return ()


async def abort(context: Context, error: FlexpertError) -> Never:
    """End the call with the status of an error."""
    await context.abort(status_of(error), str(error), trailing_metadata=trailers_of(error))
    raise AssertionError("abort raises")


def _details(error: FlexpertError, detail: Any) -> bytes:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status = status_pb2.Status(code=status_of(error).value[0], message=str(error), details=[packed])
    return bytes(status.SerializeToString())
