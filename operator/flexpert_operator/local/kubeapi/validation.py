"""Validation of values by a structural schema, with the messages of a Kubernetes API server.

`strategy` calls `validate` on an object that is already pruned and defaulted. Rules in CEL are in `cel`.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from flexpert_operator.local.kubeapi.errors import (
    FieldError,
    duplicate,
    invalid_value,
    required,
    too_long,
    too_many,
    unsupported,
    wrong_type,
)
from flexpert_operator.local.kubeapi.objects import JsonObject, parse_time
from flexpert_operator.local.kubeapi.structural import INT_OR_STRING, LIST_KEYS, LIST_TYPE, child_schema, item_schema


def validate(schema: JsonObject, value: Any, path: str = "") -> list[FieldError]:
    """Everything in `value` that breaks `schema`; empty when it is valid."""
    return list(_walk(schema, value, path))


def json_type(value: Any) -> str:
    """Name of a JSON value's type, as messages have it."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer" if is_int64(value) else "number"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def is_int64(value: float) -> bool:
    """Whether a number is one that the API server can have as an integer."""
    return -(2**63) <= value < 2**63


def join(path: str, name: str) -> str:
    """Path of the member `name` of what is at `path`."""
    return f"{path}.{name}" if path else name


def _walk(schema: JsonObject, value: Any, path: str) -> Iterator[FieldError]:
    if value is None and schema.get("nullable"):
        return
    error = _type_error(schema, value, path)
    if error:
        yield error
        return
    yield from _enumeration(schema, value, path)
    match value:
        case bool():
            pass
        case int() | float():
            yield from _number(schema, value, path)
        case str():
            yield from _string(schema, value, path)
        case list():
            yield from _list(schema, value, path)
        case dict():
            yield from _object(schema, value, path)
    yield from _junctors(schema, value, path)


def _type_error(schema: JsonObject, value: Any, path: str) -> FieldError | None:
    actual = json_type(value)
    if schema.get(INT_OR_STRING):
        return None if actual in ("integer", "string") else wrong_type(path, actual, "integer or string")
    wanted = schema.get("type")
    if not wanted or actual == wanted:
        return None
    if wanted == "number" and actual == "integer":
        return None
    if wanted == "integer" and actual == "number" and float(value).is_integer() and is_int64(value):
        return None
    return wrong_type(path, actual, wanted)


def _enumeration(schema: JsonObject, value: Any, path: str) -> Iterator[FieldError]:
    allowed = schema.get("enum")
    if allowed is not None and not any(json_type(item) == json_type(value) and item == value for item in allowed):
        yield unsupported(path, value, allowed)


def _number(schema: JsonObject, value: int | float, path: str) -> Iterator[FieldError]:
    low, high, step = schema.get("minimum"), schema.get("maximum"), schema.get("multipleOf")
    if low is not None and (value < low or (schema.get("exclusiveMinimum") and value == low)):
        bound = "greater than" if schema.get("exclusiveMinimum") else "greater than or equal to"
        yield invalid_value(path, value, f"{path} in body should be {bound} {low}")
    if high is not None and (value > high or (schema.get("exclusiveMaximum") and value == high)):
        bound = "less than" if schema.get("exclusiveMaximum") else "less than or equal to"
        yield invalid_value(path, value, f"{path} in body should be {bound} {high}")
    if step and value % step:
        yield invalid_value(path, value, f"{path} in body should be a multiple of {step}")
    bits = {"int32": 31, "int64": 63}.get(schema.get("format", ""))
    if bits and not -(2**bits) <= value < 2**bits:
        yield invalid_value(path, value, f"{path} in body must be of type {schema['format']}: {value}")


def _string(schema: JsonObject, value: str, path: str) -> Iterator[FieldError]:
    longest, shortest, pattern = schema.get("maxLength"), schema.get("minLength"), schema.get("pattern")
    if longest is not None and len(value) > longest:
        yield too_long(path, longest)
    if shortest is not None and len(value) < shortest:
        yield invalid_value(path, value, f"{path} in body should be at least {shortest} chars long")
    if pattern is not None and not re.search(pattern, value):
        yield invalid_value(path, value, f"{path} in body should match '{pattern}'")
    if schema.get("format") == "date-time" and not _is_time(value):
        yield invalid_value(path, value, f'{path} in body must be of type date-time: "{value}"')


def _is_time(value: str) -> bool:
    try:
        parse_time(value)
    except ValueError:
        return False
    return True


def _list(schema: JsonObject, value: list[Any], path: str) -> Iterator[FieldError]:
    longest, shortest, items = schema.get("maxItems"), schema.get("minItems"), item_schema(schema)
    if longest is not None and len(value) > longest:
        yield too_many(path, len(value), longest)
    if shortest is not None and len(value) < shortest:
        yield invalid_value(path, len(value), f"{path} in body should have at least {shortest} items")
    for index, item in enumerate(value):
        if items is not None:
            yield from _walk(items, item, f"{path}[{index}]")
    yield from _duplicates(schema, value, path)


def _duplicates(schema: JsonObject, value: list[Any], path: str) -> Iterator[FieldError]:
    kind = schema.get(LIST_TYPE)
    if kind not in ("set", "map"):
        return
    seen: set[str] = set()
    for index, item in enumerate(value):
        identity = item
        if kind == "map":
            if not isinstance(item, dict):
                continue
            identity = {key: item[key] for key in schema.get(LIST_KEYS, []) if key in item}
        text = json.dumps(identity, sort_keys=True)
        if text in seen:
            yield duplicate(f"{path}[{index}]", identity)
        seen.add(text)


def _object(schema: JsonObject, value: JsonObject, path: str) -> Iterator[FieldError]:
    most, fewest = schema.get("maxProperties"), schema.get("minProperties")
    if most is not None and len(value) > most:
        yield too_many(path, len(value), most)
    if fewest is not None and len(value) < fewest:
        yield invalid_value(path, len(value), f"{path} in body should have at least {fewest} properties")
    for name in schema.get("required") or ():
        if name not in value:
            yield required(join(path, name))
    for name, item in value.items():
        below = child_schema(schema, name)
        if below is not None:
            yield from _walk(below, item, join(path, name))


def _junctors(schema: JsonObject, value: Any, path: str) -> Iterator[FieldError]:
    for part in schema.get("allOf") or ():
        yield from _walk(part, value, path)
    options = schema.get("anyOf")
    if options and all(validate(option, value, path) for option in options):
        yield invalid_value(path, value, f"{path} in body must validate at least one schema (anyOf)")
    options = schema.get("oneOf")
    if options and sum(not validate(option, value, path) for option in options) != 1:
        yield invalid_value(path, value, f"{path} in body must validate one and only one schema (oneOf)")
    if "not" in schema and not validate(schema["not"], value, path):
        yield invalid_value(path, value, f"{path} in body must not validate the schema (not)")
