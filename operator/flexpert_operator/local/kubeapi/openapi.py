"""OpenAPI documents: v3 of each group and version, for `kubectl explain`, `apply` and `diff`; an empty v2.

`server` answers `/openapi/…` with it. kubectl finds a kind's schema by `x-kubernetes-group-version-kind` and learns
from a path's parameters that the server validates fields itself.
"""

import hashlib
import json
from typing import Any

from flexpert_operator.local.kubeapi import builtin_models
from flexpert_operator.local.kubeapi.errors import NotFound
from flexpert_operator.local.kubeapi.objects import JsonObject
from flexpert_operator.local.kubeapi.resources import Registry, ResourceType

_GVK = "x-kubernetes-group-version-kind"
_INFO = {"title": "Kubernetes", "version": "v1.32.0"}
_PREFIX = "#/components/schemas/"
_OBJECT_META = "V1ObjectMeta"
_WRITE_PARAMETERS = ("dryRun", "fieldManager", "fieldValidation")


def v2() -> JsonObject:
    """Answer of `/openapi/v2`: everything is in v3."""
    return {"swagger": "2.0", "info": _INFO, "paths": {}, "definitions": {}}


def index(registry: Registry) -> JsonObject:
    """Answer of `/openapi/v3`; a document's URL changes with its contents."""
    paths = {}
    for group, versions in registry.groups().items():
        for version in versions:
            name = f"apis/{group}/{version}" if group else f"api/{version}"
            digest = _digest(registry.in_group_version(group, version))
            paths[name] = {"serverRelativeURL": f"/openapi/v3/{name}?hash={digest}"}
    return {"paths": paths}


def document(registry: Registry, name: str) -> JsonObject:
    """Answer of `/openapi/v3/NAME`, NAME such as `api/v1` or `apis/apps/v1`.

    Raises:
        NotFound: there is no such group and version.
    """
    parts = name.strip("/").split("/")
    group, version = ("", parts[1]) if parts[0] == "api" and len(parts) == 2 else ("/".join(parts[1:-1]), parts[-1])
    types = registry.in_group_version(group, version)
    if not types:
        raise NotFound("the server could not find the requested resource")
    schemas: dict[str, JsonObject] = {}
    paths: JsonObject = {}
    for item in types:
        component = _add_schema(schemas, item)
        paths |= _paths(item, component)
    return {"openapi": "3.0.0", "info": _INFO, "paths": paths, "components": {"schemas": schemas}}


def _add_schema(schemas: dict[str, JsonObject], item: ResourceType) -> str:
    """Add the type's schema and all it refers to; returns its name."""
    gvk = {"group": item.group, "version": item.version, "kind": item.kind}
    if item.definition:
        _add_models(schemas, item.definition)
        name = item.definition
        schema = schemas[name]
    else:
        _add_models(schemas, _OBJECT_META)
        name = ".".join([*reversed(item.group.split(".")), item.version, item.kind])
        schema = dict(item.schema)
        text = {"type": "string"}
        own = {"apiVersion": text, "kind": text, "metadata": {"$ref": _PREFIX + _OBJECT_META}}
        schema["properties"] = {**(schema.get("properties") or {}), **own}
    schemas[name] = {**schema, _GVK: [gvk]}
    return name


def _add_models(schemas: dict[str, JsonObject], model: str) -> None:
    if model in schemas:
        return
    wanted: list[str] = []

    def reference(below: type[Any]) -> JsonObject:
        wanted.append(below.__name__)
        return {"$ref": _PREFIX + below.__name__}

    schemas[model] = builtin_models.component(model, reference)
    for name in wanted:
        _add_models(schemas, name)


def _paths(item: ResourceType, component: str) -> JsonObject:
    base = f"/apis/{item.group}/{item.version}" if item.group else f"/api/{item.version}"
    base += "/namespaces/{namespace}" if item.namespaced else ""
    gvk = {"group": item.group, "version": item.version, "kind": item.kind}
    response = {"200": {"content": {"application/json": {"schema": {"$ref": _PREFIX + component}}}}}
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in _WRITE_PARAMETERS]

    def operation(action: str, *, writes: bool) -> JsonObject:
        shared = {"x-kubernetes-action": action, _GVK: gvk, "responses": response}
        return shared | ({"parameters": parameters} if writes else {})

    one = {
        "get": operation("get", writes=False),
        "put": operation("put", writes=True),
        "patch": operation("patch", writes=True),
        "delete": operation("delete", writes=False),
    }
    many = {"get": operation("list", writes=False), "post": operation("post", writes=True)}
    return {f"{base}/{item.plural}": many, f"{base}/{item.plural}/{{name}}": one}


def _digest(types: list[ResourceType]) -> str:
    described = [[item.plural, item.definition or item.schema] for item in types]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32].upper()
