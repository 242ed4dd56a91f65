"""The structural schema of a model; `crd` puts CustomResourceDefinitions together from it.

What the schema says of a field follows from its type, its default and its `Field` alone. Fields that are Kubernetes'
own (tolerations, volumes) get the schema of the Kubernetes model that `Field.core` names.
"""

import typing
from collections.abc import Callable
from dataclasses import MISSING, is_dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from flexpert_operator.api.fields import Field, Member, Rule, members

Schema = dict[str, Any]
CoreSchema = Callable[[str], Schema]
"""Name of a Kubernetes model → its structural schema."""

BYTES_PATTERN = r"^[1-9][0-9]*(\.[0-9]+)?(k|[KMGTPE]i|[MGTPE])?$"
QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|[KMGTPE]i|[MGTPE])?$"
SUFFIXES = ("", "Ki", "Mi", "Gi", "Ti", "Pi")


def object_schema(model: type, core: CoreSchema) -> Schema:
    """Schema of a model: its fields in their order, what is required, and its rules."""
    properties: Schema = {}
    required = []
    rules = rules_of(model)
    for member in members(model):
        if member.field.inline:
            properties |= object_schema(member.type, core)["properties"]
            rules += rules_of(member.type)
            continue
        properties[member.name] = field_schema(member, core)
        if member.default is MISSING:
            required.append(member.name)
    schema: Schema = {"type": "object"}
    if required:
        schema["required"] = required
    return schema | rules_schema(rules) | {"properties": properties}


def rules_of(model: type) -> tuple[Rule, ...]:
    """The rules of a model as a whole."""
    return tuple(getattr(model, "RULES", ()))


def rules_schema(rules: tuple[Rule, ...]) -> Schema:
    """Rules as the API server takes them, or nothing."""
    listed = [
        {"rule": one.rule, "message": one.message} | ({"fieldPath": one.path} if one.path else {}) for one in rules
    ]
    return {"x-kubernetes-validations": listed} if listed else {}


def field_schema(member: Member, core: CoreSchema) -> Schema:
    """Schema of a field: its description, its type with bounds, its default and its rules."""
    schema = {"description": description(member)} | type_schema(member.type, member.field, core)
    default = default_of(member)
    schema |= {"default": default} if default is not None else {}
    return schema | rules_schema(member.field.rules)


def description(member: Member) -> str:
    """What the field means, and what leaving it out does."""
    return (
        f"{member.field.description} Left out: {member.field.absent}."
        if member.field.absent
        else (member.field.description)
    )


def default_of(member: Member) -> Any:
    """The default as it stands in the schema; None where there is none."""
    if member.default is MISSING or member.default is None or member.field.absent or member.optional:
        return None
    if is_dataclass(member.default):
        return {}
    if member.field.quantity:
        return quantity(member.default)
    if isinstance(member.default, StrEnum):
        return str(member.default)
    return member.default if isinstance(member.default, str | bool | int) else None


def quantity(num_bytes: int) -> str:
    """Bytes as a quantity, with the largest suffix that leaves a whole number."""
    power = 0
    while num_bytes and num_bytes % 1024 == 0 and power + 1 < len(SUFFIXES):
        num_bytes, power = num_bytes // 1024, power + 1
    return f"{num_bytes}{SUFFIXES[power]}"


def type_schema(kind: Any, field: Field, core: CoreSchema) -> Schema:
    """Schema of a value of a field, or of a list's item, without description and default."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if field.quantity:
        return int_or_string(BYTES_PATTERN)
    if origin is tuple:
        return list_schema(type_schema(arguments[0], field, core), field)
    if field.core:
        return core(field.core)
    if origin is not None:
        values = {"type": "object", "additionalProperties": value_schema(arguments[1], field)}
        return values | given(maxProperties=field.max_items)
    if is_dataclass(kind):
        return object_schema(typing.cast(type, kind), core)
    return scalar_schema(kind, field)


def value_schema(kind: Any, field: Field) -> Schema:
    """Schema of the values of a mapping: quantities where they may be numbers, else text."""
    return scalar_schema(str, field) if kind is str else int_or_string(QUANTITY_PATTERN)


def int_or_string(pattern: str) -> Schema:
    """A number, or a text of that pattern."""
    return {
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "x-kubernetes-int-or-string": True,
        "pattern": pattern,
    }


def list_schema(items: Schema, field: Field) -> Schema:
    """A list; with keys it is a map, whose items are told apart by them."""
    bounds: Schema = {} if field.max_items is None else {"maxItems": field.max_items}
    if not field.keys:
        return {"type": "array", **bounds, "x-kubernetes-list-type": "atomic", "items": items}
    keys = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(field.keys)}
    return {"type": "array", **bounds, **keys, "items": items}


def scalar_schema(kind: type, field: Field) -> Schema:
    """A text, number or truth value with its bounds. The API has no fractions: what is a float here is whole there."""
    if issubclass(kind, datetime):
        return {"type": "string", "format": "date-time"}
    if issubclass(kind, bool):
        return {"type": "boolean"}
    if issubclass(kind, int | float):
        return {"type": "integer", "format": f"int{field.bits}"} | given(minimum=field.minimum, maximum=field.maximum)
    choices = [str(one) for one in kind] if issubclass(kind, StrEnum) else list(field.values)
    return {"type": "string"} | given(
        minLength=field.min_length,
        maxLength=field.max_length,
        pattern=field.pattern or None,
        format=field.format or None,
        enum=choices or None,
    )


def given(**said: Any) -> Schema:
    """What is not None."""
    return {key: value for key, value in said.items() if value is not None}
