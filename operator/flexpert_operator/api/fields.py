"""What a field of our API says beside its type, and how values are read by it.

The models in `spec` and `status` annotate their fields with `Field`; `schema` makes the CustomResourceDefinitions of
them, `reference` the page that describes them, and `read` reads an object of the API server into them. So a field's
type, default, bounds, description and rules stand in one place.
"""

import functools
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import StrEnum
from typing import Any, TypeVar

from flexpert_operator.api.quantities import to_bytes

Json = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """A rule in CEL beside what it is about: `self` is the object or field that carries it.

    Attributes:
        rule: Must be true. A rule on an object that defaults to `{}` runs before nested defaults: guard with `has()`.
        message: What to change.
        path: Field below that is to blame, such as `.workers`.
    """

    rule: str
    message: str
    path: str = ""


@dataclass(frozen=True)
class Field:
    """What the schema says of a field beside its type.

    Attributes:
        description: What it means, in sentences.
        name: In JSON; the attribute's in camelCase when empty.
        quantity: A number of bytes, which the API writes as a Kubernetes quantity.
        max_items: Of a list, or of a mapping.
        core: Name of the Kubernetes model whose schema the value, or each item of a list, has; it is passed through.
        inline: Its fields stand in the object around it.
        keys: Fields that tell the items of a list apart; empty: the list is replaced as a whole.
        bits: Of an integer.
        absent: What it means that the field is left out, where there is no default.
    """

    description: str
    name: str = ""
    minimum: int | None = None
    maximum: int | None = None
    min_length: int | None = None
    max_length: int | None = None
    max_items: int | None = None
    pattern: str = ""
    values: tuple[str, ...] = ()
    quantity: bool = False
    core: str = ""
    inline: bool = False
    keys: tuple[str, ...] = ()
    bits: int = 32
    format: str = ""
    rules: tuple[Rule, ...] = ()
    absent: str = ""


@dataclass(frozen=True)
class Member:
    """A field of a model as `read` and `schema` see it.

    Attributes:
        attribute: Its name in Python.
        name: Its name in JSON.
        type: Without `None`.
        optional: It may be absent without a default.
        default: What the attribute is where the object says nothing; `MISSING` where the object has to say it.
    """

    attribute: str
    name: str
    type: Any
    optional: bool
    default: Any
    field: Field


class FieldError(ValueError):
    """A value that the schema should have refused; `path` is where it is."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


@functools.cache
def members(model: type[Any]) -> tuple[Member, ...]:
    """The fields of a model that carry a `Field`, in their order."""
    hints = typing.get_type_hints(model, include_extras=True)
    found = []
    for one in fields(model):
        said = next((item for item in getattr(hints[one.name], "__metadata__", ()) if isinstance(item, Field)), None)
        if said is None:
            continue
        kind, optional = without_none(typing.get_args(hints[one.name])[0])
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        found.append(Member(one.name, said.name or camel_case(one.name), kind, optional, default, said))
    return tuple(found)


def without_none(kind: Any) -> tuple[Any, bool]:
    """A type without `None`, and whether that was a part of it."""
    if not isinstance(kind, types.UnionType) or types.NoneType not in typing.get_args(kind):
        return kind, False
    left = [item for item in typing.get_args(kind) if item is not types.NoneType]
    return functools.reduce(lambda one, other: one | other, left), True


def camel_case(attribute: str) -> str:
    """`workers_per_pod` as the API writes it."""
    first, *others = attribute.split("_")
    return first + "".join(word.capitalize() for word in others)


def read(model: type[T], body: Json, path: str = "") -> T:
    """The values of a model in an object that the API server validated; what is absent has its default.

    Raises:
        FieldError: A field is missing, or is of another type than the installed schema should have let through.
    """
    if not isinstance(body, Mapping):
        raise FieldError(path, f"must be an object, is {body!r}")
    values: dict[str, Any] = {}
    for member in members(typing.cast(Any, model)):
        if member.field.inline:
            values[member.attribute] = read(member.type, body, path)
            continue
        below = f"{path}.{member.name}" if path else member.name
        value = body.get(member.name)
        if value is not None:
            values[member.attribute] = read_value(member.type, member.field, value, below)
        elif member.default is MISSING:
            raise FieldError(below, "is missing")
    return model(**values)


def written(value: Any) -> Any:
    """A value of a model as the API writes it, without what it does not say: `read` makes the same of it again.

    For models whose fields are texts, numbers, truth values and such models.
    """
    if not is_dataclass(value) or isinstance(value, type):
        return value
    said = {one.name: getattr(value, one.attribute) for one in members(type(value))}
    return {name: written(one) for name, one in said.items() if one is not None}


def read_value(kind: Any, field: Field, value: Any, path: str) -> Any:
    """One value of a field."""
    origin = typing.get_origin(kind)
    if field.quantity:
        return read_bytes(value, path)
    if origin is tuple:
        inner = typing.get_args(kind)[0]
        expect(isinstance(value, Sequence) and not isinstance(value, str), "a list", value, path)
        return tuple(read_value(inner, field, item, f"{path}[{index}]") for index, item in enumerate(value))
    if origin is not None:
        expect(isinstance(value, Mapping), "an object", value, path)
        return value
    if is_dataclass(kind):
        return read(typing.cast(type[Any], kind), value, path)
    if issubclass(kind, StrEnum):
        expect(value in list(kind), f"one of {', '.join(kind)}", value, path)
        return kind(value)
    number = kind in (int, float)
    expect(isinstance(value, int | float if number else kind), kind.__name__, value, path)
    expect(not (number and isinstance(value, bool)), "a number", value, path)
    return value


def read_bytes(value: Any, path: str) -> int:
    """A quantity of bytes."""
    expect(isinstance(value, int | str), "a quantity", value, path)
    try:
        return to_bytes(value)
    except ValueError:
        raise FieldError(path, f"must be a quantity, is {value!r}") from None


def expect(holds: bool, what: str, value: Any, path: str) -> None:
    """Raise `FieldError` unless a value is what it must be."""
    if not holds:
        raise FieldError(path, f"must be {what}, is {value!r}")
