"""Events in their two groups: `v1` and `events.k8s.io/v1` show the same objects with other field names.

`builtin_kinds` names these for the events.k8s.io type; Events are stored as `v1`.
"""

from flexpert_operator.local.kubeapi.objects import JsonObject

_RENAMED = {
    "regarding": "involvedObject",
    "note": "message",
    "reportingController": "reportingComponent",
    "deprecatedSource": "source",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedCount": "count",
}


def to_core(event: JsonObject) -> JsonObject:
    """An events.k8s.io Event as `v1`."""
    return {_RENAMED.get(name, name): value for name, value in event.items()} | {"apiVersion": "v1"}


def from_core(event: JsonObject) -> JsonObject:
    """A `v1` Event as events.k8s.io."""
    back = {core: name for name, core in _RENAMED.items()}
    return {back.get(name, name): value for name, value in event.items()} | {"apiVersion": "events.k8s.io/v1"}
