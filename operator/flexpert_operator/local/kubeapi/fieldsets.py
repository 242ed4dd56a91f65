"""Sets of fields of an object, for server-side apply: which exist, which changed, merging and removing them.

`apply` uses it. A field's path is a tuple of elements spelled as in FieldsV1: `f:name` a member, `k:{"name":"a"}` an
item of a list-map, `v:"a"` a member of a set. Lists are atomic unless their schema makes them a map or a set, as in
Kubernetes' structured-merge-diff, whose semantics these are.
"""

import json
from typing import Any

from flexpert_operator.local.kubeapi.objects import JsonObject, copy_json
from flexpert_operator.local.kubeapi.structural import LIST_KEYS, LIST_TYPE, MAP_TYPE, child_schema, item_schema

Path = tuple[str, ...]
FieldSet = frozenset[Path]

_PRESENT = object()


def leaves(value: Any, schema: JsonObject | None, path: Path = ()) -> dict[Path, Any]:
    """Every field that can be owned, with its value; items of list-maps and members of free maps count themselves."""
    if isinstance(value, dict) and value and not _is_atomic_map(schema):
        found: dict[Path, Any] = {}
        for name, item in value.items():
            found |= leaves(item, child_schema(schema, name), (*path, f"f:{name}"))
        return found
    if isinstance(value, list) and value and list_type(schema) == "map":
        found = {}
        for item in value:
            below = (*path, item_element(schema, item))
            found[below] = _PRESENT
            found |= leaves(item, item_schema(schema), below)
        return found
    if isinstance(value, list) and value and list_type(schema) == "set":
        return {(*path, item_element(schema, item)): item for item in value}
    return {path: value} if path else {}


def fields(value: Any, schema: JsonObject | None) -> FieldSet:
    """The fields that `value` has."""
    return frozenset(leaves(value, schema))


def changed(old: Any, new: Any, schema: JsonObject | None) -> tuple[FieldSet, FieldSet]:
    """Fields that `new` adds or changes, and fields of `old` that are gone."""
    before, after = leaves(old, schema), leaves(new, schema)
    written = frozenset(path for path, value in after.items() if path not in before or before[path] != value)
    return written, frozenset(before.keys() - after.keys())


def merge(live: Any, applied: Any, schema: JsonObject | None) -> Any:
    """`live` with every field of `applied` laid over it; a copy."""
    if isinstance(live, dict) and isinstance(applied, dict) and not _is_atomic_map(schema):
        merged = {name: copy_json(item) for name, item in live.items() if name not in applied}
        ordered: JsonObject = {}
        for name in [*live, *(name for name in applied if name not in live)]:
            inner = child_schema(schema, name)
            ordered[name] = merge(live.get(name), applied[name], inner) if name in applied else merged[name]
        return ordered
    if isinstance(live, list) and isinstance(applied, list) and list_type(schema) in ("map", "set"):
        return _merge_lists(live, applied, schema)
    return copy_json(applied)


def remove(value: Any, schema: JsonObject | None, gone: FieldSet, path: Path = ()) -> Any:
    """`value` without the fields in `gone`; what becomes empty by it goes too. None when nothing is left."""
    if path in gone:
        return None
    if isinstance(value, dict) and value and not _is_atomic_map(schema):
        kept = {}
        for name, item in value.items():
            rest = remove(item, child_schema(schema, name), gone, (*path, f"f:{name}"))
            if rest is not None or item is None:
                kept[name] = rest
        return kept if kept or not path else None
    if isinstance(value, list) and value and list_type(schema) in ("map", "set"):
        items = [remove(item, item_schema(schema), gone, (*path, item_element(schema, item))) for item in value]
        return [item for item in items if item is not None] or None
    return copy_json(value)


def list_type(schema: JsonObject | None) -> str:
    """`map`, `set` or `atomic`."""
    return str((schema or {}).get(LIST_TYPE, "atomic"))


def item_element(schema: JsonObject | None, item: Any) -> str:
    """Path element of an item of a list-map or a set."""
    if list_type(schema) == "map" and isinstance(item, dict):
        below = item_schema(schema) or {}
        keys = {}
        for key in sorted((schema or {}).get(LIST_KEYS, [])):
            default = (child_schema(below, key) or {}).get("default")
            if key in item or default is not None:
                keys[key] = item.get(key, default)
        return "k:" + _compact(keys)
    return "v:" + _compact(item)


def to_fields_v1(paths: FieldSet) -> JsonObject:
    """The nested form that `metadata.managedFields[].fieldsV1` has."""
    root: JsonObject = {}
    for path in sorted(paths):
        node = root
        for depth, element in enumerate(path):
            node = node.setdefault(element, {})
            if path[: depth + 1] in paths and depth + 1 < len(path):
                node.setdefault(".", {})
    for path in paths:
        node = root
        for element in path:
            node = node[element]
        if node and "." not in node:
            node["."] = {}
    return root


def from_fields_v1(node: JsonObject, path: Path = ()) -> FieldSet:
    """Inverse of `to_fields_v1`."""
    found: set[Path] = set()
    for element, below in node.items():
        if element == ".":
            found.add(path)
        elif below:
            found |= from_fields_v1(below, (*path, element))
        else:
            found.add((*path, element))
    return frozenset(found)


def shown(path: Path) -> str:
    """A path as conflict messages have it: `.spec.containers[name="a"].image`."""
    text = ""
    for element in path:
        kind, _, rest = element.partition(":")
        if kind == "f":
            text += f".{rest}"
        elif kind == "k":
            text += "[" + ",".join(f"{key}={_compact(value)}" for key, value in json.loads(rest).items()) + "]"
        else:
            text += f"[={rest}]"
    return text


def _merge_lists(live: list[Any], applied: list[Any], schema: JsonObject | None) -> list[Any]:
    wanted = {item_element(schema, item): item for item in applied}
    merged = []
    for item in live:
        element = item_element(schema, item)
        merged.append(merge(item, wanted.pop(element), item_schema(schema)) if element in wanted else copy_json(item))
    return merged + [copy_json(item) for item in wanted.values()]


def _is_atomic_map(schema: JsonObject | None) -> bool:
    return (schema or {}).get(MAP_TYPE) == "atomic"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
