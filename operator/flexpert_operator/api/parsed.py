"""Objects of our API beside MoEDeployment as typed values: those that say how large a MoEDeployment's pools are."""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from flexpert_operator.api.fields import FieldError, Json, read
from flexpert_operator.api.spec import InvalidObject

T = TypeVar("T")


@dataclass(frozen=True)
class Parsed(Generic[T]):
    """An object as it was read.

    Attributes:
        created_at: RFC 3339 time.
        status: As it was, raw.
    """

    name: str
    namespace: str
    uid: str
    generation: int
    resource_version: str
    created_at: str
    spec: T
    status: Json = field(default_factory=dict)


def parse(kind: str, model: type[T], body: Json) -> Parsed[T]:
    """The typed object of one that the API server validated and defaulted.

    Raises:
        InvalidObject: A field is missing or has a wrong type; the message has its path.
    """
    metadata = body["metadata"]
    try:
        return Parsed(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            generation=int(metadata.get("generation", 1)),
            resource_version=metadata["resourceVersion"],
            created_at=metadata.get("creationTimestamp", ""),
            spec=read(model, body.get("spec") or {}, "spec"),
            status=dict(body.get("status") or {}),
        )
    except (KeyError, FieldError) as error:
        raise InvalidObject(f"cannot read {metadata.get('name')}: {error}; update the {kind} CRD") from error
