"""Errors as OpenAI's interface words them: a status, and a body with message, type, param and code."""

import math
from dataclasses import dataclass
from typing import Any

from flexpert_workers.errors import FlexpertError, InvalidRequest, Overloaded
from flexpert_workers.ingress.balancer import RequestBroke
from flexpert_workers.ingress.tokens import PermissionDenied, Unauthenticated
from flexpert_workers.ingress.validate import UnknownModel

INVALID = "invalid_request_error"
SERVER = "server_error"


@dataclass(frozen=True)
class Problem:
    """What goes to the client instead of an answer.

    Attributes:
        param: The parameter that is wrong, as the client wrote it.
        retry_after_s: When to come back.
    """

    status: int
    type: str
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        if self.status == 401:
            return {"www-authenticate": "Bearer"}
        if self.retry_after_s is None:
            return {}
        return {"retry-after": str(math.ceil(self.retry_after_s)), "retry-after-ms": f"{self.retry_after_s * 1000:.0f}"}


def problem_of(error: FlexpertError, renamed: dict[str, str]) -> Problem:
    """An error of the pool; `renamed` says what the dialect calls the fields of `generation.proto`."""
    match error:
        case InvalidRequest():
            param = param_of(error.field, renamed)
            message = str(error).removeprefix(f"{error.field}: ")
            return Problem(400, INVALID, f"Invalid '{param}': {message}", param)
        case UnknownModel():
            return Problem(404, INVALID, str(error), "model", "model_not_found")
        case Unauthenticated():
            return Problem(401, INVALID, str(error), None, "invalid_api_key")
        case PermissionDenied():
            return Problem(403, INVALID, str(error), None, "permission_denied")
        case Overloaded():
            return Problem(429, "requests", str(error), None, "rate_limit_exceeded", error.retry_after_s)
        case RequestBroke():
            return Problem(500, SERVER, str(error))
        case _:
            return Problem(503, SERVER, str(error), retry_after_s=1.0)


def param_of(field: str, renamed: dict[str, str]) -> str:
    """`parameters.stop[1]` → `stop[1]`, `token_ids[3]` → `prompt[3]` or as the dialect says."""
    name, bracket, index = field.removeprefix("parameters.").partition("[")
    return renamed.get(name, name) + bracket + index
