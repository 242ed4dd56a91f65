"""What happens to an object between the request and the store: decoding, defaulting, validation, generation.

Pure: `operations` passes in the object, the one it replaces and the time, and stores what comes back.
"""

import uuid
from dataclasses import dataclass
from typing import Literal

from flexpert_operator.local.kubeapi import builtin_rules, crds
from flexpert_operator.local.kubeapi.builtin_kinds import CRDS
from flexpert_operator.local.kubeapi.builtin_models import structural
from flexpert_operator.local.kubeapi.cel import CelRules
from flexpert_operator.local.kubeapi.errors import (
    WRONG_TYPE,
    BadRequest,
    Conflict,
    FieldError,
    about,
    invalid_object,
    invalid_value,
)
from flexpert_operator.local.kubeapi.names import metadata_errors, update_errors
from flexpert_operator.local.kubeapi.objects import JsonObject, copy_json, drop_nulls, metadata, name_of
from flexpert_operator.local.kubeapi.resources import ResourceType
from flexpert_operator.local.kubeapi.structural import fill_defaults, prune, unknown_fields
from flexpert_operator.local.kubeapi.validation import validate

FieldValidation = Literal["Strict", "Warn", "Ignore"]

_SYSTEM_METADATA = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation")
_UNCHECKED = "some validation rules were not checked because the object was invalid; correct the existing errors to "
_GENERATE_SUFFIX = 5


@dataclass(frozen=True, slots=True)
class Decoded:
    """An object as the server understands it, and the fields it does not know."""

    object: JsonObject
    unknown: tuple[str, ...]


def decode(resource: ResourceType, body: JsonObject) -> Decoded:
    """The object in a body, pruned to what its schema knows.

    Raises:
        BadRequest: it is of another kind or version than the URL, or it, for a kind of one's own its metadata, has a
            value of another JSON type than it should.
    """
    if not isinstance(body, dict) or not isinstance(body.get("metadata", {}), dict | None):
        raise BadRequest(f"the object provided is not a {resource.kind}")
    kind, version = body.get("kind", resource.kind), body.get("apiVersion", resource.api_version)
    if kind != resource.kind or version != resource.api_version:
        raise BadRequest(
            f"the object provided ({version}, Kind={kind}) does not match the expected one "
            f"({resource.api_version}, Kind={resource.kind})"
        )
    obj: JsonObject = {"apiVersion": version, "kind": kind}
    obj |= copy_json(body) if resource.is_custom else drop_nulls(body)
    obj["metadata"] = clean_metadata(obj.get("metadata") or {})
    meta_schema = structural("V1ObjectMeta")
    unknown = [f"metadata.{name}" for name in unknown_fields(meta_schema, obj["metadata"])]
    obj["metadata"] = prune(meta_schema, obj["metadata"])
    errors = validate(meta_schema, obj["metadata"], "metadata")
    errors += [] if resource.is_custom else validate(resource.schema, obj)
    for error in errors:
        if error.reason == WRONG_TYPE:
            raise BadRequest(f"the object provided is not a {resource.kind}: {error.path}: {error.body}")
    rest = {name: value for name, value in obj.items() if name != "metadata"}
    unknown = unknown_fields(resource.schema, rest) + unknown
    return Decoded(prune(resource.schema, obj), tuple(unknown))


def for_create(resource: ResourceType, obj: JsonObject, namespace: str | None, now: str, rules: CelRules) -> JsonObject:
    """The object to store for a create.

    Raises:
        BadRequest: its namespace is not the URL's.
        Invalid: it breaks its schema or a rule.
    """
    created: JsonObject = copy_json(obj)
    meta = created["metadata"]
    if resource.namespaced:
        if meta.setdefault("namespace", namespace) != namespace:
            raise BadRequest("the namespace of the provided object does not match the namespace sent on the request")
    else:
        meta.pop("namespace", None)
    if not meta.get("name") and meta.get("generateName"):
        meta["name"] = meta["generateName"] + uuid.uuid4().hex[:_GENERATE_SUFFIX]
    for name in (*_SYSTEM_METADATA, "resourceVersion", "selfLink"):
        meta.pop(name, None)
    meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": now}
    if resource.has_generation:
        meta["generation"] = 1
    if "status" in resource.subresources:
        created.pop("status", None)
    return _admit(resource, created, None, rules)


def for_update(
    resource: ResourceType, obj: JsonObject, old: JsonObject, subresource: str, rules: CelRules
) -> JsonObject:
    """The object to store for an update of `old`, through the object itself or its status.

    Raises:
        BadRequest: the name is not the URL's.
        Conflict: it was read at another resourceVersion, or is another object of the same name.
        Invalid: it breaks its schema or a rule, or changes what cannot change.
    """
    _check_identity(resource, obj, old)
    updated: JsonObject = _status_of(obj, old) if subresource == "status" else _all_but_status(resource, obj, old)
    meta = updated["metadata"]
    meta |= {name: old["metadata"][name] for name in ("name", "namespace") if name in old["metadata"]}
    for name in _SYSTEM_METADATA:
        meta.pop(name, None)
        if name in old["metadata"]:
            meta[name] = old["metadata"][name]
    meta["resourceVersion"] = old["metadata"]["resourceVersion"]
    updated = _admit(resource, updated, old, rules)
    if resource.has_generation and _spec(resource, updated) != _spec(resource, old):
        updated["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
    return updated


def same_but_bookkeeping(new: JsonObject, old: JsonObject) -> bool:
    """Whether an update changes nothing that a client could see; managedFields' times do not count."""
    return _without_times(new) == _without_times(old)


def _admit(resource: ResourceType, obj: JsonObject, old: JsonObject | None, rules: CelRules) -> JsonObject:
    if resource.is_custom:
        fill_defaults(resource.schema, obj)
    resource.defaults(obj)
    if resource.where == CRDS:
        crds.fill_names(obj)
    errors = metadata_errors(obj, resource.name_rule) + (update_errors(obj, old) if old else [])
    errors += _schema_errors(resource, obj, old, rules)
    if resource.where == CRDS and not errors:
        errors = crds.definition_errors(obj, rules)
    if errors:
        raise invalid_object(resource.kind, resource.group, name_of(obj), errors)
    return obj


def _schema_errors(
    resource: ResourceType, obj: JsonObject, old: JsonObject | None, rules: CelRules
) -> list[FieldError]:
    checked = obj if resource.is_custom else {name: value for name, value in obj.items() if name != "status"}
    errors = validate(resource.schema, checked)
    if not resource.is_custom and not errors:
        return builtin_rules.errors(resource.kind, obj, old)
    if not resource.has_rules:
        return errors
    if any(error.blocking for error in errors):
        return [*errors, invalid_value("<nil>", "null", _UNCHECKED + "complete validation")]
    seen = {**obj, "metadata": _visible_metadata(obj)}
    before = {**old, "metadata": _visible_metadata(old)} if old else None
    return errors + rules.check(resource.schema, seen, before)


def clean_metadata(meta: JsonObject) -> JsonObject:
    """Metadata without what is null or empty, which the API server's types leave out."""
    return {name: value for name, value in drop_nulls(meta).items() if value not in ({}, [])}


def _visible_metadata(obj: JsonObject) -> JsonObject:
    """What rules see of metadata."""
    return {name: value for name, value in metadata(obj).items() if name in ("name", "generateName")}


def _check_identity(resource: ResourceType, obj: JsonObject, old: JsonObject) -> None:
    name, meta = name_of(old), metadata(obj)
    if meta.get("name", name) != name:
        raise BadRequest(f"the name of the object ({meta['name']}) does not match the name on the URL ({name})")
    if meta.get("namespace", old["metadata"].get("namespace")) != old["metadata"].get("namespace"):
        raise BadRequest("the namespace of the provided object does not match the namespace sent on the request")
    details = about(name, resource.plural, resource.group)
    prefix = f'Operation cannot be fulfilled on {resource.qualified} "{name}": '
    if meta.get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
        raise Conflict(
            f"{prefix}Precondition failed: UID in precondition: {meta['uid']}, "
            f"UID in object meta: {old['metadata']['uid']}",
            details,
        )
    if meta.get("resourceVersion") not in (None, "", "0", old["metadata"]["resourceVersion"]):
        raise Conflict(
            f"{prefix}the object has been modified; please apply your changes to the latest version and try again",
            details,
        )


def _status_of(obj: JsonObject, old: JsonObject) -> JsonObject:
    updated: JsonObject = copy_json(old)
    updated.pop("status", None)
    if "status" in obj:
        updated["status"] = copy_json(obj["status"])
    if "managedFields" in metadata(obj):
        updated["metadata"]["managedFields"] = copy_json(obj["metadata"]["managedFields"])
    return updated


def _all_but_status(resource: ResourceType, obj: JsonObject, old: JsonObject) -> JsonObject:
    updated: JsonObject = copy_json(obj)
    if "status" in resource.subresources:
        updated.pop("status", None)
        if "status" in old:
            updated["status"] = copy_json(old["status"])
    return updated


def _spec(resource: ResourceType, obj: JsonObject) -> JsonObject:
    """What the generation counts: all but metadata, and status where that is a subresource."""
    apart = {"metadata", "apiVersion"} | ({"status"} if "status" in resource.subresources else set())
    return {name: value for name, value in obj.items() if name not in apart}


def _without_times(obj: JsonObject) -> JsonObject:
    meta = dict(obj["metadata"])
    meta.pop("resourceVersion", None)
    managed = [{**entry, "time": ""} for entry in meta.pop("managedFields", None) or []]
    managed.sort(key=lambda entry: (entry.get("operation", ""), entry.get("manager", ""), entry.get("subresource", "")))
    return {**obj, "metadata": meta, "managed": managed}
