"""Field ownership: `metadata.managedFields`, and server-side apply with its conflicts.

`operations` calls `apply_configuration` for an apply patch and `track_update` for every other write. Semantics as in
the Kubernetes documentation, "Server-Side Apply".
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from flexpert_operator.local.kubeapi import fieldsets
from flexpert_operator.local.kubeapi.errors import BadRequest, Conflict
from flexpert_operator.local.kubeapi.fieldsets import FieldSet, Path
from flexpert_operator.local.kubeapi.objects import JsonObject, copy_json, metadata

_UNOWNED_METADATA = frozenset(
    {
        "f:name",
        "f:generateName",
        "f:namespace",
        "f:uid",
        "f:creationTimestamp",
        "f:deletionTimestamp",
        "f:deletionGracePeriodSeconds",
        "f:resourceVersion",
        "f:generation",
        "f:selfLink",
        "f:managedFields",
    }
)


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes: a manager, through an endpoint, in an API version, at a time.

    Attributes:
        subresource: empty for the object itself.
        time: RFC 3339.
    """

    manager: str
    api_version: str
    subresource: str
    time: str


@dataclass(frozen=True, slots=True)
class Owned:
    """One entry of `managedFields`."""

    manager: str
    operation: str
    api_version: str
    subresource: str
    time: str
    fields: FieldSet

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What makes two entries the same one."""
        return (self.manager, self.operation, self.api_version, self.subresource)


def track_update(
    old: JsonObject | None, new: JsonObject, schema: JsonObject | None, writer: Writer
) -> list[JsonObject]:
    """`managedFields` after an update: what changed is `writer`'s, and nobody else's any more."""
    entries = _entries(new)
    written, gone = fieldsets.changed(_owned_part(old or {}), _owned_part(new), schema)
    written, gone = _within(written, writer.subresource), _within(gone, writer.subresource)
    identity = (writer.manager, "Update", writer.api_version, writer.subresource)
    mine = next((item.fields for item in entries if item.identity == identity), frozenset())
    others = [replace(item, fields=item.fields - written - gone) for item in entries if item.identity != identity]
    mine = (mine | written) - gone
    kept = [item for item in others if item.fields]
    if mine:
        changed = bool(written or gone)
        time = writer.time if changed else next(item.time for item in entries if item.identity == identity)
        kept.append(Owned(writer.manager, "Update", writer.api_version, writer.subresource, time, mine))
    return _encode(kept)


def apply_configuration(
    live: JsonObject | None, applied: JsonObject, schema: JsonObject | None, writer: Writer, *, force: bool
) -> JsonObject:
    """The object after `applied` has been laid over `live`, with its `managedFields`.

    Fields that the manager applied before and leaves out now are removed where nobody else owns them.

    Raises:
        BadRequest: `applied` carries managedFields.
        Conflict: a field belongs to another manager with another value, and `force` is not given.
    """
    if metadata(applied).get("managedFields"):
        raise BadRequest("metadata.managedFields must be nil")
    identity = (writer.manager, "Apply", writer.api_version, writer.subresource)
    entries = _entries(live or {})
    before = next((item for item in entries if item.identity == identity), None)
    others = [item for item in entries if item.identity != identity]
    merged: JsonObject = fieldsets.merge(live or {}, _without_managed(applied), schema)
    written, _ = fieldsets.changed(_owned_part(live or {}), _owned_part(merged), schema)
    others = _settle(others, written, force=force)
    mine = _within(fieldsets.fields(_owned_part(applied), schema), writer.subresource)
    merged = _drop_abandoned(merged, schema, before, mine, others)
    time = before.time if before and before.fields == mine and not written else writer.time
    entry = Owned(writer.manager, "Apply", writer.api_version, writer.subresource, time, mine)
    merged.setdefault("metadata", {})["managedFields"] = _encode([*others, entry])
    return merged


def _settle(others: Sequence[Owned], written: FieldSet, *, force: bool) -> list[Owned]:
    """Take `written` from the other managers, or raise where that needs force."""
    conflicts = [(item, path) for item in others for path in sorted(item.fields & written)]
    if conflicts and not force:
        raise _conflict(conflicts)
    kept = [replace(item, fields=item.fields - written) for item in others]
    return [item for item in kept if item.fields]


def _drop_abandoned(
    merged: JsonObject, schema: JsonObject | None, before: Owned | None, mine: FieldSet, others: Sequence[Owned]
) -> JsonObject:
    if before is None:
        return merged
    held = mine.union(*(item.fields for item in others))
    abandoned = frozenset(path for path in before.fields - held if not _has_below(path, held))
    result: JsonObject = fieldsets.remove(merged, schema, abandoned)
    return result


def _has_below(path: Path, held: FieldSet) -> bool:
    """Whether someone holds a field inside the item at `path`, which therefore stays."""
    return any(other[: len(path)] == path for other in held)


def _owned_part(obj: JsonObject) -> JsonObject:
    """What of an object can be owned at all."""
    part = {name: value for name, value in obj.items() if name not in ("apiVersion", "kind", "metadata")}
    owned = {name: value for name, value in metadata(obj).items() if f"f:{name}" not in _UNOWNED_METADATA}
    return part | ({"metadata": owned} if owned else {})


def _without_managed(obj: JsonObject) -> JsonObject:
    clean: JsonObject = copy_json(obj)
    metadata(clean).pop("managedFields", None)
    return clean


def _within(paths: FieldSet, subresource: str) -> FieldSet:
    """The fields that a write through this endpoint can own."""
    if subresource == "status":
        return frozenset(path for path in paths if path[0] == "f:status")
    return paths


def _entries(obj: JsonObject) -> list[Owned]:
    entries = []
    for item in metadata(obj).get("managedFields") or []:
        entries.append(
            Owned(
                manager=item.get("manager", ""),
                operation=item.get("operation", "Update"),
                api_version=item.get("apiVersion", ""),
                subresource=item.get("subresource", ""),
                time=item.get("time", ""),
                fields=fieldsets.from_fields_v1(item.get("fieldsV1") or {}),
            )
        )
    return [item for item in entries if item.fields]


def _encode(entries: Sequence[Owned]) -> list[JsonObject]:
    encoded = []
    for item in sorted(entries, key=lambda entry: (entry.operation, entry.time, entry.identity)):
        shown: dict[str, Any] = {
            "manager": item.manager,
            "operation": item.operation,
            "apiVersion": item.api_version,
            "time": item.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": fieldsets.to_fields_v1(item.fields),
        }
        encoded.append(shown | ({"subresource": item.subresource} if item.subresource else {}))
    return encoded


def _conflict(conflicts: Sequence[tuple[Owned, Path]]) -> Conflict:
    by_owner: dict[str, list[str]] = {}
    causes = []
    for owner, path in conflicts:
        through = f' with subresource "{owner.subresource}"' if owner.subresource else ""
        name = f'"{owner.manager}"{through} using {owner.api_version}'
        by_owner.setdefault(name, []).append(fieldsets.shown(path))
        message = f"conflict with {name}"
        causes.append({"reason": "FieldManagerConflict", "message": message, "field": fieldsets.shown(path)})
    if len(conflicts) == 1:
        ((name, (path_text,)),) = by_owner.items()
        return Conflict(f"Apply failed with 1 conflict: conflict with {name}: {path_text}", {"causes": causes})
    parts = ["conflicts with " + name + ":\n- " + "\n- ".join(paths) for name, paths in by_owner.items()]
    return Conflict(f"Apply failed with {len(conflicts)} conflicts: " + "\n".join(parts), {"causes": causes})
