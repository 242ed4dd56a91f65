"""The verbs that write: create, update, patch, apply, delete, scale, evict.

`server` calls them for requests and `gc` for its own deletions. Each decides with the pure modules (`strategy`,
`patch`, `apply`, `deletion`, `scale`) and writes to the store once.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from flexpert_operator.local.kubeapi import apply, crds, deletion, patch, scale, strategy
from flexpert_operator.local.kubeapi.builtin_kinds import BUDGETS, CRDS, NAMESPACES
from flexpert_operator.local.kubeapi.cel import CelRules
from flexpert_operator.local.kubeapi.deletion import DeleteOptions
from flexpert_operator.local.kubeapi.errors import (
    AlreadyExists,
    BadRequest,
    Conflict,
    Forbidden,
    NotFound,
    TooManyRequests,
    UnsupportedMediaType,
    about,
    invalid_object,
    invalid_value,
    required,
)
from flexpert_operator.local.kubeapi.objects import (
    Clock,
    JsonObject,
    copy_json,
    dig,
    is_terminating,
    labels_of,
    metadata,
    name_of,
    put,
    timestamp,
)
from flexpert_operator.local.kubeapi.resources import Registry, ResourceType
from flexpert_operator.local.kubeapi.selectors import parse_label_selector_object
from flexpert_operator.local.kubeapi.store import Key, Store

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How to write. `duplicates` are the fields that stood twice in the body."""

    manager: str
    dry_run: bool = False
    field_validation: strategy.FieldValidation = "Warn"
    force: bool = False
    duplicates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """The object after a write, in the version of the request, and what to warn of."""

    object: JsonObject
    created: bool = False
    warnings: tuple[str, ...] = ()


class Operations:
    """Writes to one store; one thread uses it."""

    def __init__(self, store: Store, registry: Registry, clock: Clock) -> None:
        self._store = store
        self._registry = registry
        self._clock = clock
        self._rules = CelRules()

    # --- create, update, patch ---------------------------------------------------------------------------------

    def create(self, resource: ResourceType, namespace: str | None, body: JsonObject, options: WriteOptions) -> Written:
        """Store a new object.

        Raises:
            AlreadyExists: there is one of that name.
            ApiError: its namespace is missing or going, or the object is invalid.
        """
        decoded, warnings = self._decode(resource, body, options)
        self._check_namespace(resource, namespace, name_of(decoded))
        return self._insert(resource, namespace, decoded, options, warnings)

    def update(
        self, resource: ResourceType, key: Key, body: JsonObject, subresource: str, options: WriteOptions
    ) -> Written:
        """Replace an object, or its status or scale."""
        live = self.live(resource, key)
        if subresource == "scale":
            return self._write_scale(resource, key, body, options)
        decoded, warnings = self._decode(resource, body, options)
        if resource.is_custom and not metadata(decoded).get("resourceVersion"):
            error = invalid_value("metadata.resourceVersion", 0, "must be specified for an update")
            raise invalid_object(resource.kind, resource.group, key.name, [error])
        return self._replace(resource, key, live, decoded, subresource, options, warnings)

    def patch(
        self, resource: ResourceType, key: Key, content_type: str, body: Any, subresource: str, options: WriteOptions
    ) -> Written:
        """Change an object, or its status or scale, by a patch of that content type."""
        if content_type == APPLY_PATCH:
            return self._apply(resource, key, body, subresource, options)
        live = self.live(resource, key)
        view = self.scale_of(resource, key) if subresource == "scale" else live
        patched = self._patched(resource, view, content_type, body)
        if subresource == "scale":
            return self._write_scale(resource, key, patched, options)
        decoded, warnings = self._decode(resource, patched, options, is_patch=True)
        return self._replace(resource, key, live, decoded, subresource, options, warnings)

    def live(self, resource: ResourceType, key: Key) -> JsonObject:
        """The object in the resource's version.

        Raises:
            NotFound: there is none.
        """
        stored = self._store.get(key)
        if stored is None:
            raise resource.not_found(key.name)
        return resource.served(stored)

    def scale_of(self, resource: ResourceType, key: Key) -> JsonObject:
        """The object's Scale."""
        if resource.scale is None:
            raise NotFound("the server could not find the requested resource")
        return scale.to_scale(resource, resource.scale, self.live(resource, key))

    def _patched(self, resource: ResourceType, view: JsonObject, content_type: str, body: Any) -> JsonObject:
        if content_type == JSON_PATCH:
            return patch.json_patch(view, body)
        if not isinstance(body, dict):
            raise BadRequest(f"error decoding patch: an object is needed, not {type(body).__name__}")
        if content_type == MERGE_PATCH:
            patched: JsonObject = patch.merge_patch(view, body)
            return patched
        if content_type == STRATEGIC_PATCH and not resource.is_custom:
            patched = patch.strategic_merge_patch(view, body, resource.schema)
            return patched  # noqa: RET504
        taken = [JSON_PATCH, MERGE_PATCH, APPLY_PATCH] + ([] if resource.is_custom else [STRATEGIC_PATCH])
        raise UnsupportedMediaType(
            "the body of the request was in an unknown format - accepted media types include: " + ", ".join(taken)
        )

    def _apply(self, resource: ResourceType, key: Key, body: Any, subresource: str, options: WriteOptions) -> Written:
        self._check_apply(resource, key, body, subresource, options)
        applied, warnings = self._decode(resource, body, options)
        if resource.namespaced:
            applied["metadata"].setdefault("namespace", key.namespace)
        writer = self._writer(resource, options, subresource)
        stored = self._store.get(key)
        if stored is None:
            if subresource:
                raise resource.not_found(key.name)
            self._check_namespace(resource, key.namespace or None, key.name)
            obj = apply.apply_configuration(None, applied, resource.schema, writer, force=options.force)
            return self._insert(resource, key.namespace or None, obj, options, warnings, by_apply=True)
        live = resource.served(stored)
        version = metadata(applied).pop("resourceVersion", None)
        merged = apply.apply_configuration(live, applied, resource.schema, writer, force=options.force)
        if version:
            merged["metadata"]["resourceVersion"] = version
        return self._replace(resource, key, live, merged, subresource, options, warnings, by_apply=True)

    def _check_apply(
        self, resource: ResourceType, key: Key, body: Any, subresource: str, options: WriteOptions
    ) -> None:
        if subresource == "scale":
            raise UnsupportedMediaType("server-side apply of a Scale is not served: apply the object itself")
        if not isinstance(body, dict) or not body.get("kind") or not body.get("apiVersion"):
            raise BadRequest("an apply configuration needs apiVersion and kind")
        if not options.manager:
            error = required("fieldManager", "is required for apply patch")
            raise invalid_object("PatchOptions", "meta.k8s.io", "", [error])
        if metadata(body).get("name", key.name) != key.name:
            raise BadRequest(
                f"the name of the object ({name_of(body)}) does not match the name on the URL ({key.name})"
            )

    def _insert(
        self,
        resource: ResourceType,
        namespace: str | None,
        decoded: JsonObject,
        options: WriteOptions,
        warnings: tuple[str, ...],
        *,
        by_apply: bool = False,
    ) -> Written:
        obj = strategy.for_create(resource, decoded, namespace, self._now(), self._rules)
        key = resource.key(namespace, name_of(obj))
        if self._store.get(key) is not None:
            message = f'{resource.qualified} "{key.name}" already exists'
            raise AlreadyExists(message, about(key.name, resource.plural, resource.group))
        if not by_apply:
            obj["metadata"].pop("managedFields", None)
            self._own(resource, None, obj, options, "")
        if not options.dry_run:
            obj = resource.served(self._put(resource, key, obj))
        return Written(obj, created=True, warnings=warnings)

    def _replace(
        self,
        resource: ResourceType,
        key: Key,
        live: JsonObject,
        decoded: JsonObject,
        subresource: str,
        options: WriteOptions,
        warnings: tuple[str, ...],
        *,
        by_apply: bool = False,
    ) -> Written:
        new = strategy.for_update(resource, decoded, live, subresource, self._rules)
        if not by_apply:
            self._own(resource, live, new, options, subresource)
        if options.dry_run:
            return Written(new, warnings=warnings)
        if deletion.is_finished(resource, new):
            return Written(resource.served(self._remove(resource, key, new)), warnings=warnings)
        if strategy.same_but_bookkeeping(new, live):
            return Written(live, warnings=warnings)
        return Written(resource.served(self._put(resource, key, new)), warnings=warnings)

    def _write_scale(self, resource: ResourceType, key: Key, body: JsonObject, options: WriteOptions) -> Written:
        if resource.scale is None:
            raise NotFound("the server could not find the requested resource")
        live = self.live(resource, key)
        scaled = scale.from_scale(resource, resource.scale, live, body)
        written = self._replace(resource, key, live, scaled, "scale", options, ())
        return replace(written, object=scale.to_scale(resource, resource.scale, written.object))

    # --- delete ------------------------------------------------------------------------------------------------

    def delete(self, resource: ResourceType, key: Key, options: DeleteOptions) -> tuple[JsonObject, bool]:
        """Delete an object, or mark it where something must happen first.

        Returns:
            Its last state, and whether it is gone.

        Raises:
            NotFound: there is none.
            Conflict: a precondition fails.
        """
        live = self.live(resource, key)
        deletion.check_preconditions(resource, live, options)
        waiting = deletion.marked(resource, live, options, self._clock())
        if options.dry_run:
            return waiting or live, waiting is None
        if waiting is None:
            return resource.served(self._remove(resource, key, live)), True
        if strategy.same_but_bookkeeping(waiting, live):
            return live, False
        return resource.served(self._put(resource, key, waiting)), False

    def evict(self, resource: ResourceType, key: Key, options: DeleteOptions) -> JsonObject:
        """Delete a pod, unless a PodDisruptionBudget forbids it.

        Raises:
            TooManyRequests: the budget allows no disruption now.
        """
        labels = labels_of(self.live(resource, key))
        for budget_key, budget in self._store.items(BUDGETS):
            wanted = parse_label_selector_object(dig(budget, ("spec", "selector")))
            allowed = dig(budget, ("status", "disruptionsAllowed"))
            covers = budget_key.namespace == key.namespace and all(r.accepts(labels.get(r.key)) for r in wanted)
            if covers and allowed == 0:
                cause = {"reason": "DisruptionBudget", "message": f"The disruption budget {budget_key.name} forbids it"}
                message = "Cannot evict pod as it would violate the pod's disruption budget."
                raise TooManyRequests(message, {"causes": [cause]})
        self.delete(resource, key, options)
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}

    def bind(self, resource: ResourceType, key: Key, node: str) -> JsonObject:
        """Assign a pod to a node, as a scheduler does.

        Raises:
            BadRequest: the binding names no node.
            Conflict: the pod is assigned already.
        """
        if not node:
            raise BadRequest("target.name: Required value")
        if dig(self.live(resource, key), ("spec", "nodeName")):
            message = f'Operation cannot be fulfilled on pods/binding "{key.name}": pod {key.name} is already assigned'
            raise Conflict(message, about(key.name, resource.plural, resource.group))
        self.rewrite(resource, key, lambda obj: put(obj, ("spec", "nodeName"), node))
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}

    def rewrite(self, resource: ResourceType, key: Key, change: Callable[[JsonObject], None]) -> None:
        """Change an object outside of any request, as controllers of the control plane do."""
        obj: JsonObject = copy_json(self.live(resource, key))
        change(obj)
        obj["metadata"] = strategy.clean_metadata(obj["metadata"])
        if deletion.is_finished(resource, obj):
            self._remove(resource, key, obj)
        else:
            self._put(resource, key, obj)

    def remove(self, resource: ResourceType, key: Key) -> None:
        """Take away an object that has nothing left to wait for."""
        self._remove(resource, key, self.live(resource, key))

    # --- what all of them need ---------------------------------------------------------------------------------

    def _decode(
        self, resource: ResourceType, body: JsonObject, options: WriteOptions, *, is_patch: bool = False
    ) -> tuple[JsonObject, tuple[str, ...]]:
        decoded = strategy.decode(resource, body)
        problems = tuple(
            [f'duplicate field "{name}"' for name in options.duplicates]
            + [f'unknown field "{name}"' for name in decoded.unknown]
        )
        if not problems or options.field_validation == "Ignore":
            return decoded.object, ()
        if options.field_validation == "Warn":
            return decoded.object, problems
        text = f"strict decoding error: {', '.join(problems)}"
        if is_patch:
            error = invalid_value("patch", "object", text)
            raise invalid_object(resource.kind, resource.group, name_of(body), [error])
        kind = resource.kind
        raise BadRequest(f'{kind} in version "{resource.version}" cannot be handled as a {kind}: {text}')

    def _check_namespace(self, resource: ResourceType, namespace: str | None, name: str) -> None:
        if not resource.namespaced:
            return
        if not namespace:
            raise BadRequest("an empty namespace may not be set during creation")
        found = self._store.get(Key(NAMESPACES, "", namespace))
        if found is None:
            raise NotFound(f'namespaces "{namespace}" not found', about(namespace, "namespaces", ""))
        if is_terminating(found):
            reason = f"unable to create new content in namespace {namespace} because it is being terminated"
            cause = {"reason": "NamespaceTerminating", "message": f"namespace {namespace} is being terminated"}
            details = about(name, resource.plural, resource.group) | {"causes": [cause]}
            raise Forbidden(f'{resource.qualified} "{name}" is forbidden: {reason}', details)

    def _own(
        self, resource: ResourceType, old: JsonObject | None, new: JsonObject, options: WriteOptions, subresource: str
    ) -> None:
        entries = metadata(new).get("managedFields")
        if entries == [{}]:
            new["metadata"]["managedFields"] = []
        elif not entries and old is not None:
            new["metadata"]["managedFields"] = metadata(old).get("managedFields") or []
        writer = self._writer(resource, options, subresource)
        entries = apply.track_update(old, new, resource.schema, writer)
        new["metadata"] = strategy.clean_metadata(new["metadata"] | {"managedFields": entries})

    def _writer(self, resource: ResourceType, options: WriteOptions, subresource: str) -> apply.Writer:
        return apply.Writer(options.manager, resource.api_version, subresource, self._now())

    def _put(self, resource: ResourceType, key: Key, obj: JsonObject) -> JsonObject:
        if resource.where == CRDS:
            obj = obj | {"status": crds.established(obj, self._now())}
            self._check_names_are_free(obj)
            self._registry.replace_storage(crds.storage_of(obj), crds.resource_types(obj))
        return self._store.put(key, resource.stored(obj))

    def _check_names_are_free(self, crd: JsonObject) -> None:
        for existing in self._registry:
            if existing.where == crds.storage_of(crd) and not existing.is_custom:
                raise Conflict(f"{existing.qualified} is served by the API itself")

    def _remove(self, resource: ResourceType, key: Key, last: JsonObject) -> JsonObject:
        removed = self._store.remove(key, resource.stored(last))
        if resource.where == CRDS:
            self._registry.replace_storage(crds.storage_of(last), [])
        return removed

    def _now(self) -> str:
        return timestamp(self._clock())
