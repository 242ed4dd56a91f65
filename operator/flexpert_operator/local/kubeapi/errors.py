"""What a request can get wrong, as the `Status` objects of a Kubernetes API server.

    ApiError
    ├── BadRequest 400        ├── Conflict 409         ├── Invalid 422
    ├── Unauthorized 401      ├── AlreadyExists 409    ├── TooManyRequests 429
    ├── Forbidden 403         ├── Expired 410          ├── InternalError 500
    ├── NotFound 404          ├── TooLarge 413         └── Timeout 504
    ├── MethodNotAllowed 405  └── UnsupportedMediaType 415
    └── NotAcceptable 406

Raised by every layer below `server`, which turns them into responses.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flexpert_operator.local.kubeapi.objects import JsonObject


class ApiError(Exception):
    """A request that failed, with the `Status` that tells the client why."""

    code = 500
    reason = "InternalError"

    def __init__(self, message: str, details: JsonObject | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def status(self) -> JsonObject:
        """The `Status` object of the response."""
        body: JsonObject = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details:
            body["details"] = self.details
        return body | {"code": self.code}


class BadRequest(ApiError):
    """The request itself cannot be read."""

    code, reason = 400, "BadRequest"


class Unauthorized(ApiError):
    """No bearer token, or a wrong one."""

    code, reason = 401, "Unauthorized"


class Forbidden(ApiError):
    """The request is understood and refused, such as a write into a namespace that is going."""

    code, reason = 403, "Forbidden"


class NotFound(ApiError):
    """There is no such object or resource."""

    code, reason = 404, "NotFound"


class MethodNotAllowed(ApiError):
    """The resource does not have this verb."""

    code, reason = 405, "MethodNotAllowed"


class NotAcceptable(ApiError):
    """None of the media types the client accepts is served."""

    code, reason = 406, "NotAcceptable"


class AlreadyExists(ApiError):
    """A create met an object of that name."""

    code, reason = 409, "AlreadyExists"


class Conflict(ApiError):
    """A stale resourceVersion, a failed precondition, or a field another manager owns."""

    code, reason = 409, "Conflict"


class Expired(ApiError):
    """The resourceVersion is older than what history holds; list again."""

    code, reason = 410, "Expired"


class TooLarge(ApiError):
    """The body is larger than the server takes."""

    code, reason = 413, "RequestEntityTooLarge"


class UnsupportedMediaType(ApiError):
    """The body's format is not one the resource takes."""

    code, reason = 415, "UnsupportedMediaType"


class Invalid(ApiError):
    """The object breaks its schema or a rule."""

    code, reason = 422, "Invalid"


class TooManyRequests(ApiError):
    """Refused for now, such as an eviction that a disruption budget forbids."""

    code, reason = 429, "TooManyRequests"


class InternalError(ApiError):
    """The object that is stored cannot answer the request."""

    code, reason = 500, "InternalError"


class Timeout(ApiError):
    """A resourceVersion from the future was asked for."""

    code, reason = 504, "Timeout"


WRONG_TYPE = "FieldValueTypeInvalid"
"""Reason of a field whose value is of another JSON type than the schema's."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing that is wrong with an object.

    Attributes:
        path: the field, as in `spec.experts.workers`.
        reason: the cause's type, as in `FieldValueInvalid`.
        body: the message without the path.
        blocking: whether rules over the object make no sense until this is corrected.
    """

    path: str
    reason: str
    body: str
    blocking: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.body}"


def _shown(value: Any) -> str:
    """A value as it stands in a message."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def invalid_value(path: str, value: Any, detail: str) -> FieldError:
    """A value that breaks a constraint."""
    return FieldError(path, "FieldValueInvalid", f"Invalid value: {_shown(value)}: {detail}")


def wrong_type(path: str, actual: str, wanted: str) -> FieldError:
    """A value of another JSON type than the schema's."""
    detail = f'{path} in body must be of type {wanted}: "{actual}"'
    return FieldError(path, WRONG_TYPE, f'Invalid value: "{actual}": {detail}', blocking=True)


def required(path: str, detail: str = "") -> FieldError:
    """A field that is missing."""
    return FieldError(path, "FieldValueRequired", "Required value" + (f": {detail}" if detail else ""), blocking=True)


def unsupported(path: str, value: Any, allowed: Sequence[Any]) -> FieldError:
    """A value that is not of an enumeration."""
    values = ", ".join(_shown(item) for item in allowed)
    return FieldError(path, "FieldValueNotSupported", f"Unsupported value: {_shown(value)}: supported values: {values}")


def too_long(path: str, limit: int) -> FieldError:
    """A string longer than the schema allows."""
    return FieldError(path, "FieldValueTooLong", f"Too long: may not be more than {limit} bytes", blocking=True)


def too_many(path: str, count: int, limit: int) -> FieldError:
    """A list or map with more members than the schema allows."""
    body = f"Too many: {count}: must have at most {limit} items"
    return FieldError(path, "FieldValueTooMany", body, blocking=True)


def duplicate(path: str, value: Any) -> FieldError:
    """A member of a set or list-map that stands twice."""
    return FieldError(path, "FieldValueDuplicate", f"Duplicate value: {_shown(value)}")


def forbidden_field(path: str, detail: str) -> FieldError:
    """A field that may not be set or changed now."""
    return FieldError(path, "FieldValueForbidden", f"Forbidden: {detail}")


def invalid_object(kind: str, group: str, name: str, errors: Sequence[FieldError]) -> Invalid:
    """The 422 for an object with these errors, each one a cause with its path."""
    texts = list(dict.fromkeys(str(error) for error in errors))
    listed = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    qualified = f"{kind}.{group}" if group else kind
    details: JsonObject = {"name": name, "kind": kind}
    if group:
        details["group"] = group
    details["causes"] = [{"reason": error.reason, "message": error.body, "field": error.path} for error in errors]
    return Invalid(f'{qualified} "{name}" is invalid: {listed}', details)


def about(name: str, plural: str, group: str) -> JsonObject:
    """The `details` that name an object by its resource."""
    return {"name": name, "kind": plural} | ({"group": group} if group else {})
