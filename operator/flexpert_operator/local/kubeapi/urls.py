"""Where a request's URL points: group, version, namespace, resource, name, subresource.

`server` parses every resource path with it.
"""

from dataclasses import dataclass

from flexpert_operator.local.kubeapi.errors import NotFound


@dataclass(frozen=True, slots=True)
class Target:
    """What a path names. `name` and `subresource` are empty for a collection."""

    group: str
    version: str
    plural: str = ""
    namespace: str | None = None
    name: str = ""
    subresource: str = ""


def parse(path: str) -> Target:
    """The target of a path below `/api` or `/apis`.

    Raises:
        NotFound: there is nothing of that shape.
    """
    parts = [part for part in path.split("/") if part]
    if parts[:1] == ["api"] and len(parts) >= 2:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[:1] == ["apis"] and len(parts) >= 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        raise NotFound("the server could not find the requested resource")
    namespace = None
    is_namespace_itself = len(rest) == 3 and rest[2] in ("status", "finalize")
    if len(rest) >= 3 and rest[0] == "namespaces" and not is_namespace_itself:
        namespace, rest = rest[1], rest[2:]
    if len(rest) > 3:
        raise NotFound("the server could not find the requested resource")
    plural, name, subresource = (*rest, "", "", "")[:3]
    return Target(group, version, plural, namespace, name, subresource)
