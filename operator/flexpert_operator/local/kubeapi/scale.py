"""The Scale subresource (`autoscaling/v1`): a view of an object's replicas, and writing through it.

`operations` calls it; source of the checks: the API server's scale endpoints of custom resources and Deployments.
"""

from flexpert_operator.local.kubeapi.errors import (
    BadRequest,
    Conflict,
    InternalError,
    about,
    invalid_object,
    invalid_value,
)
from flexpert_operator.local.kubeapi.objects import JsonObject, copy_json, dig, metadata, name_of, put
from flexpert_operator.local.kubeapi.resources import ResourceType, ScalePaths

_SHOWN = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")


def to_scale(resource: ResourceType, paths: ScalePaths, obj: JsonObject) -> JsonObject:
    """The object's Scale.

    Raises:
        InternalError: a custom resource without a value at its replicas path.
    """
    replicas = dig(obj, paths.spec_replicas)
    if replicas is None and resource.is_custom:
        raise InternalError(f'the spec replicas field ".{".".join(paths.spec_replicas)}" does not exist')
    status = {"replicas": dig(obj, paths.status_replicas) or 0}
    selector = _selector(paths, obj)
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {name: obj["metadata"][name] for name in _SHOWN if name in obj["metadata"]},
        "spec": {"replicas": replicas or 0} if replicas else {},
        "status": status | ({"selector": selector} if selector else {}),
    }


def from_scale(resource: ResourceType, paths: ScalePaths, obj: JsonObject, scale: JsonObject) -> JsonObject:
    """The object with the replicas of `scale`.

    Raises:
        BadRequest: it is not a Scale.
        Conflict: the Scale was read from an older object.
        Invalid: the replicas are negative or not an integer.
    """
    replicas = dig(scale, ("spec", "replicas")) or 0
    if scale.get("kind", "Scale") != "Scale" or isinstance(replicas, bool) or not isinstance(replicas, int):
        raise BadRequest(f"wrong object passed to Scale update: {scale.get('kind')} with replicas {replicas!r}")
    if replicas < 0:
        error = invalid_value("spec.replicas", replicas, "must be greater than or equal to 0")
        raise invalid_object("Scale", "autoscaling", name_of(obj), [error])
    for field in ("resourceVersion", "uid"):
        wanted = metadata(scale).get(field)
        if wanted and wanted != obj["metadata"][field]:
            raise Conflict(
                f'Operation cannot be fulfilled on {resource.qualified} "{name_of(obj)}": the object has been '
                "modified; please apply your changes to the latest version and try again",
                about(name_of(obj), resource.plural, resource.group),
            )
    updated: JsonObject = copy_json(obj)
    put(updated, paths.spec_replicas, replicas)
    return updated


def _selector(paths: ScalePaths, obj: JsonObject) -> str:
    if paths.selector:
        return str(dig(obj, paths.selector) or "")
    labels = dig(obj, ("spec", "selector", "matchLabels")) or {}
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
