"""Patches that say what to change: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge patch.

`operations` picks one by the request's content type. Server-side apply is in `apply`.
"""

from typing import Any

import jsonpatch

from flexpert_operator.local.kubeapi.errors import BadRequest, Invalid
from flexpert_operator.local.kubeapi.objects import JsonObject, copy_json
from flexpert_operator.local.kubeapi.structural import child_schema, item_schema

PATCH_KEY = "x-kubernetes-patch-merge-key"
PATCH_STRATEGY = "x-kubernetes-patch-strategy"

_DIRECTIVE = "$patch"
_DELETE_PRIMITIVES = "$deleteFromPrimitiveList/"
_ELEMENT_ORDER = "$setElementOrder/"
_RETAIN_KEYS = "$retainKeys"


def json_patch(obj: JsonObject, operations: Any) -> JsonObject:
    """`obj` after the operations of a JSON patch; a copy.

    Raises:
        BadRequest: `operations` is not a JSON patch.
        Invalid: an operation does not fit the object, such as a failed `test`.
    """
    try:
        patched: JsonObject = jsonpatch.JsonPatch(operations).apply(copy_json(obj))
    except (jsonpatch.InvalidJsonPatch, TypeError, AttributeError) as error:
        raise BadRequest(f"error decoding patch: {error}") from error
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
        raise Invalid(f"the server rejected our request due to an error in our request: {error}") from error
    return patched


def merge_patch(obj: Any, patch: Any) -> Any:
    """`obj` after a JSON merge patch; a copy. A null removes its member."""
    if not isinstance(patch, dict):
        return copy_json(patch)
    merged = copy_json(obj) if isinstance(obj, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def strategic_merge_patch(obj: Any, patch: Any, schema: JsonObject | None) -> Any:
    """`obj` after a strategic merge patch; a copy. Lists merge by the keys their schema names.

    Raises:
        BadRequest: an item of a merged list lacks its merge key, or a directive is unknown.
    """
    if not isinstance(patch, dict):
        return copy_json(patch)
    directive = patch.get(_DIRECTIVE)
    if directive == "delete":
        return {}
    base = {} if directive == "replace" or not isinstance(obj, dict) else copy_json(obj)
    if directive not in (None, "replace", "merge"):
        raise BadRequest(f"unknown {_DIRECTIVE} directive {directive!r}")
    for name, value in patch.items():
        _merge_member(base, name, value, schema)
    if _RETAIN_KEYS in patch:
        base = {name: value for name, value in base.items() if name in patch[_RETAIN_KEYS]}
    return base


def _merge_member(base: JsonObject, name: str, value: Any, schema: JsonObject | None) -> None:
    if name.startswith(_DELETE_PRIMITIVES):
        target = name.removeprefix(_DELETE_PRIMITIVES)
        base[target] = [item for item in base.get(target, []) if item not in value]
    elif name.startswith(("$patch", _ELEMENT_ORDER, _RETAIN_KEYS)):
        return
    elif value is None:
        base.pop(name, None)
    elif isinstance(value, list):
        base[name] = _merge_list(base.get(name) or [], value, child_schema(schema, name))
    else:
        merged = strategic_merge_patch(base.get(name), value, child_schema(schema, name))
        base[name] = merged


def _merge_list(base: list[Any], patch: list[Any], schema: JsonObject | None) -> list[Any]:
    if (schema or {}).get(PATCH_STRATEGY) != "merge":
        return [copy_json(item) for item in patch]
    key = (schema or {}).get(PATCH_KEY)
    if key is None:
        return base + [item for item in patch if item not in base]
    replaces = any(isinstance(item, dict) and item.get(_DIRECTIVE) == "replace" for item in patch)
    merged = [] if replaces else copy_json(base)
    for item in patch:
        if item.get(_DIRECTIVE) == "replace" and len(item) == 1:
            continue
        if key not in item:
            raise BadRequest(f"map: {item} does not contain declared merge key: {key}")
        merged = _merge_item(merged, item, key, item_schema(schema))
    return merged


def _merge_item(items: list[Any], item: JsonObject, key: str, schema: JsonObject | None) -> list[Any]:
    position = next((i for i, existing in enumerate(items) if existing.get(key) == item[key]), None)
    if item.get(_DIRECTIVE) == "delete":
        return [existing for existing in items if existing.get(key) != item[key]]
    if position is None:
        clean = {name: value for name, value in item.items() if not name.startswith("$")}
        return [*items, strategic_merge_patch({}, clean, schema)]
    merged = strategic_merge_patch(items[position], item, schema)
    return [*items[:position], merged, *items[position + 1 :]]
