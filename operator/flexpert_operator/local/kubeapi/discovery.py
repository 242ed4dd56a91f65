"""Discovery: which groups, versions and resources there are, in the classic and the aggregated form.

`server` answers `/api`, `/apis` and what is below them with it.
"""

from flexpert_operator.local.kubeapi.errors import NotFound
from flexpert_operator.local.kubeapi.objects import JsonObject
from flexpert_operator.local.kubeapi.resources import VERBS, Registry, ResourceType

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"

_SUBRESOURCE_VERBS = {"eviction": ["create"], "binding": ["create"], "finalize": ["update"]}
_SUBRESOURCE_KINDS = {
    "scale": ("autoscaling", "v1", "Scale"),
    "eviction": ("policy", "v1", "Eviction"),
    "binding": ("", "v1", "Binding"),
}


def api_versions() -> JsonObject:
    """Answer of `/api`."""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def group_list(registry: Registry) -> JsonObject:
    """Answer of `/apis`."""
    groups = [_group(name, versions) for name, versions in registry.groups().items() if name]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def group(registry: Registry, name: str) -> JsonObject:
    """Answer of `/apis/GROUP`.

    Raises:
        NotFound: there is no such group.
    """
    versions = registry.groups().get(name)
    if not versions or not name:
        raise NotFound("the server could not find the requested resource")
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, versions)}


def resource_list(registry: Registry, group_name: str, version: str) -> JsonObject:
    """Answer of `/api/v1` and `/apis/GROUP/VERSION`.

    Raises:
        NotFound: there is no such version.
    """
    types = registry.in_group_version(group_name, version)
    if not types:
        raise NotFound("the server could not find the requested resource")
    resources = [entry for item in types for entry in _entries(item)]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": types[0].api_version,
        "resources": resources,
    }


def aggregated(registry: Registry, *, core: bool) -> JsonObject:
    """Answer of `/api` (core) and `/apis` for clients that take aggregated discovery."""
    groups = {name: versions for name, versions in registry.groups().items() if (name == "") == core}
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": [
            {
                "metadata": {"name": name or None, "creationTimestamp": None},
                "versions": [_aggregated_version(registry, name, version) for version in versions],
            }
            for name, versions in groups.items()
        ],
    }


def _group(name: str, versions: list[str]) -> JsonObject:
    listed = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": listed, "preferredVersion": listed[0]}


def _entries(item: ResourceType) -> list[JsonObject]:
    main: JsonObject = {
        "name": item.plural,
        "singularName": item.singular,
        "namespaced": item.namespaced,
        "kind": item.kind,
        "verbs": list(VERBS),
    }
    if item.short_names:
        main["shortNames"] = list(item.short_names)
    if item.categories:
        main["categories"] = list(item.categories)
    return [main, *(_subresource_entry(item, name) for name in sorted(item.subresources))]


def _subresource_entry(item: ResourceType, name: str) -> JsonObject:
    entry: JsonObject = {
        "name": f"{item.plural}/{name}",
        "singularName": "",
        "namespaced": item.namespaced,
        "kind": item.kind,
        "verbs": _SUBRESOURCE_VERBS.get(name, ["get", "patch", "update"]),
    }
    if name in _SUBRESOURCE_KINDS:
        entry |= dict(zip(("group", "version", "kind"), _SUBRESOURCE_KINDS[name], strict=True))
    return entry


def _aggregated_version(registry: Registry, name: str, version: str) -> JsonObject:
    types = registry.in_group_version(name, version)
    return {"version": version, "freshness": "Current", "resources": [_aggregated_resource(item) for item in types]}


def _aggregated_resource(item: ResourceType) -> JsonObject:
    entry: JsonObject = {
        "resource": item.plural,
        "responseKind": _response_kind(item.group, item.version, item.kind),
        "scope": "Namespaced" if item.namespaced else "Cluster",
        "singularResource": item.singular,
        "verbs": list(VERBS),
    }
    if item.short_names:
        entry["shortNames"] = list(item.short_names)
    if item.categories:
        entry["categories"] = list(item.categories)
    subresources = []
    for name in sorted(item.subresources):
        kind = _SUBRESOURCE_KINDS.get(name, (item.group, item.version, item.kind))
        verbs = _SUBRESOURCE_VERBS.get(name, ["get", "patch", "update"])
        subresources.append({"subresource": name, "responseKind": _response_kind(*kind), "verbs": verbs})
    return entry | ({"subresources": subresources} if subresources else {})


def _response_kind(group_name: str, version: str, kind: str) -> JsonObject:
    return {"group": group_name, "version": version, "kind": kind}
