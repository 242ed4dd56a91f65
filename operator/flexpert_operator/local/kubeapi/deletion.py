"""What a delete request means: remove at once, or mark the object and wait for finalizers or a kubelet.

Pure; `operations` carries the decision out and `gc` follows up on it.
"""

import datetime as dt
from dataclasses import dataclass
from typing import Any, Literal

from flexpert_operator.local.kubeapi import crds
from flexpert_operator.local.kubeapi.builtin_kinds import CRDS, NAMESPACES, PODS
from flexpert_operator.local.kubeapi.errors import Conflict, about, invalid_object, unsupported
from flexpert_operator.local.kubeapi.objects import JsonObject, copy_json, finalizers_of, metadata, name_of, timestamp
from flexpert_operator.local.kubeapi.resources import ResourceType

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"

Propagation = Literal["Background", "Foreground", "Orphan"]


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """How to delete.

    Attributes:
        grace_period_s: for pods; None is the pod's own.
        uid: delete only the object of this uid; `resource_version` likewise.
    """

    propagation: Propagation = "Background"
    grace_period_s: int | None = None
    uid: str | None = None
    resource_version: str | None = None
    dry_run: bool = False


def parse_options(body: JsonObject, query: dict[str, str]) -> DeleteOptions:
    """The options in a DELETE's body, or in its query where the body has none.

    Raises:
        Invalid: the propagation policy is unknown.
    """
    conditions = body.get("preconditions") or {}
    grace: Any = body.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
    return DeleteOptions(
        propagation=_propagation(body, query),
        grace_period_s=None if grace is None else int(grace),
        uid=conditions.get("uid"),
        resource_version=conditions.get("resourceVersion"),
        dry_run="All" in (body.get("dryRun") or []) or query.get("dryRun") == "All",
    )


def check_preconditions(resource: ResourceType, obj: JsonObject, options: DeleteOptions) -> None:
    """Refuse to delete another object than the client means.

    Raises:
        Conflict: uid or resourceVersion differ.
    """
    meta = metadata(obj)
    for label, wanted, actual in (
        ("UID", options.uid, meta["uid"]),
        ("ResourceVersion", options.resource_version, meta["resourceVersion"]),
    ):
        if wanted is not None and wanted != actual:
            raise Conflict(
                f'Operation cannot be fulfilled on {resource.qualified} "{name_of(obj)}": the {label} in the '
                f"precondition ({wanted}) does not match the {label} in record ({actual}). "
                "The object might have been deleted and then recreated",
                about(name_of(obj), resource.plural, resource.group),
            )


def marked(resource: ResourceType, obj: JsonObject, options: DeleteOptions, now: dt.datetime) -> JsonObject | None:
    """The object as it waits for its end, or None when it goes at once."""
    waiting: JsonObject = copy_json(obj)
    meta = waiting["metadata"]
    first = "deletionTimestamp" not in meta
    grace = _grace(resource, obj, options)
    _set_finalizers(resource, meta, options.propagation, first=first)
    if not meta.get("finalizers") and grace == 0 and resource.where != NAMESPACES:
        return None
    if first or grace < meta.get("deletionGracePeriodSeconds", 0):
        meta["deletionTimestamp"] = timestamp(now + dt.timedelta(seconds=grace))
        meta["deletionGracePeriodSeconds"] = grace
    if first and "generation" in meta:
        meta["generation"] += 1
    resource.defaults(waiting)
    return waiting


def _propagation(body: JsonObject, query: dict[str, str]) -> Propagation:
    match body.get("propagationPolicy") or query.get("propagationPolicy"):
        case "Background" | "Foreground" | "Orphan" as policy:
            return policy
        case None:
            return "Orphan" if body.get("orphanDependents") is True else "Background"
        case other:
            error = unsupported("propagationPolicy", other, ["Foreground", "Background", "Orphan", "nil"])
            raise invalid_object("DeleteOptions", "meta.k8s.io", "", [error])


def _grace(resource: ResourceType, obj: JsonObject, options: DeleteOptions) -> int:
    """Seconds that a kubelet has to end the pod; 0 for what no kubelet runs."""
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    if resource.where != PODS or not spec.get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
        return 0
    if options.grace_period_s is not None:
        return max(options.grace_period_s, 0)
    return int(spec.get("terminationGracePeriodSeconds", 30))


def _set_finalizers(resource: ResourceType, meta: JsonObject, propagation: Propagation, *, first: bool) -> None:
    finalizers = list(meta.get("finalizers") or [])
    if first:
        finalizers = [name for name in finalizers if name not in (FOREGROUND, ORPHAN)]
        if propagation != "Background":
            finalizers.append(FOREGROUND if propagation == "Foreground" else ORPHAN)
        if resource.where == CRDS and crds.CLEANUP not in finalizers:
            finalizers.append(crds.CLEANUP)
    if finalizers:
        meta["finalizers"] = finalizers
    else:
        meta.pop("finalizers", None)


def is_finished(resource: ResourceType, obj: JsonObject) -> bool:
    """Whether an object that is being deleted has nothing left to wait for."""
    meta = metadata(obj)
    if not meta.get("deletionTimestamp") or finalizers_of(obj):
        return False
    return not meta.get("deletionGracePeriodSeconds") and resource.where != NAMESPACES
