"""Structural schemas: what happens to an object before its values are validated.

`strategy` calls these in the API server's order: list the unknown fields (for `fieldValidation`), prune them, fill in
defaults. A schema is an OpenAPI v3 schema with the `x-kubernetes-*` extensions, as a CustomResourceDefinition has it.
"""

from typing import Any

from flexpert_operator.local.kubeapi.objects import JsonObject, copy_json

PRESERVE = "x-kubernetes-preserve-unknown-fields"
EMBEDDED = "x-kubernetes-embedded-resource"
INT_OR_STRING = "x-kubernetes-int-or-string"
LIST_TYPE = "x-kubernetes-list-type"
LIST_KEYS = "x-kubernetes-list-map-keys"
MAP_TYPE = "x-kubernetes-map-type"
RULES = "x-kubernetes-validations"

_TYPE_META = frozenset({"apiVersion", "kind", "metadata"})


def child_schema(schema: JsonObject | None, name: str) -> JsonObject | None:
    """Schema of the member `name` of an object with this schema, or None where the schema does not say."""
    if not schema:
        return None
    properties = schema.get("properties") or {}
    if name in properties:
        return dict_or_none(properties[name])
    return dict_or_none(schema.get("additionalProperties"))


def item_schema(schema: JsonObject | None) -> JsonObject | None:
    """Schema of the items of a list with this schema, or None where the schema does not say."""
    return dict_or_none((schema or {}).get("items"))


def dict_or_none(value: Any) -> JsonObject | None:
    """`value` where it is an object (a schema), None where it is a boolean or missing."""
    return value if isinstance(value, dict) else None


def unknown_fields(schema: JsonObject, value: Any, path: str = "") -> list[str]:
    """Paths of the fields that pruning removes, in the object's order."""
    found: list[str] = []
    if isinstance(value, list):
        for index, item in enumerate(value):
            found += unknown_fields(item_schema(schema) or {PRESERVE: True}, item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            below = f"{path}.{name}" if path else name
            inner = child_schema(schema, name)
            if inner is not None:
                found += unknown_fields(inner, item, below)
            elif not _keeps(schema, name, is_root=not path):
                found.append(below)
    return found


def prune(schema: JsonObject, value: Any, *, is_root: bool = True) -> Any:
    """Copy of `value` without the fields that the schema does not know."""
    if isinstance(value, list):
        inner = item_schema(schema)
        return [prune(inner, item, is_root=False) if inner else copy_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept: JsonObject = {}
    for name, item in value.items():
        below = child_schema(schema, name)
        if below is not None and not (is_root and name == "metadata"):
            kept[name] = prune(below, item, is_root=False)
        elif _keeps(schema, name, is_root=is_root):
            kept[name] = copy_json(item)
    return kept


def fill_defaults(schema: JsonObject, value: Any) -> None:
    """Fill in the schema's defaults, in place; a null where null is not allowed counts as absent."""
    if isinstance(value, list):
        inner = item_schema(schema)
        for item in value if inner else ():
            fill_defaults(inner or {}, item)
    elif isinstance(value, dict):
        for name, below in (schema.get("properties") or {}).items():
            if "default" in below and (name not in value or (value[name] is None and not below.get("nullable"))):
                value[name] = copy_json(below["default"])
        for name, item in value.items():
            inner = child_schema(schema, name)
            if inner is not None:
                fill_defaults(inner, item)


def _keeps(schema: JsonObject, name: str, *, is_root: bool) -> bool:
    """Whether a field that the schema does not list survives pruning."""
    if (is_root or schema.get(EMBEDDED)) and name in _TYPE_META:
        return True
    if schema.get(PRESERVE) or schema.get("additionalProperties") is True:
        return True
    return schema.get("type") not in ("object", None) or (schema.get("type") is None and "properties" not in schema)
