"""Printer columns of built-in kinds, as `kubectl get` shows them.

`builtin_kinds` names the columns of each kind. A cell is computed from the object and the present time.
"""

from collections.abc import Callable
from typing import Any

from flexpert_operator.local.kubeapi.objects import JsonObject, dig, metadata, parse_time, split_path
from flexpert_operator.local.kubeapi.resources import Column

Cell = Callable[[JsonObject, float], Any]
_NONE = "<none>"


def human_duration(seconds: float) -> str:
    """A duration as kubectl writes ages: `45s`, `3m5s`, `12m`, `5h2m`, `3d4h`, `40d`, `2y10d`."""
    seconds = int(max(seconds, 0))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return _two(minutes, "m", seconds % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _two(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    return _two(days // 365, "y", days % 365, "d") if days < 8 * 365 else f"{days // 365}y"


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large}{large_unit}" + (f"{small}{small_unit}" if small else "")


def age(text: Any, now: float) -> str:
    """The age of a timestamp at `now` (seconds since the epoch)."""
    try:
        return human_duration(now - parse_time(str(text)).timestamp())
    except ValueError:
        return "<invalid>" if text else "<unknown>"


def path_cell(path: str, default: Any = _NONE) -> Cell:
    """The value at a simple path."""
    parts = split_path(path)

    def cell(obj: JsonObject, _now: float) -> Any:
        value = dig(obj, parts)
        return default if value in (None, "") else value

    return cell


def age_cell(path: str = ".metadata.creationTimestamp") -> Cell:
    """The age of the timestamp at a simple path."""
    parts = split_path(path)
    return lambda obj, now: age(dig(obj, parts), now)


def count_cell(path: str) -> Cell:
    """The number of members of what is at a simple path."""
    parts = split_path(path)
    return lambda obj, _now: len(dig(obj, parts) or ())


def column(name: str, cell: Cell | str, *, kind: str = "string", wide: bool = False) -> Column:
    """A column from a simple path or a cell; `wide` ones are shown with `-o wide`."""
    return Column(name, kind, path_cell(cell) if isinstance(cell, str) else cell, priority=int(wide))


def _ready_containers(obj: JsonObject, _now: float) -> str:
    statuses = dig(obj, ("status", "containerStatuses")) or []
    total = len(dig(obj, ("spec", "containers")) or [])
    return f"{sum(bool(item.get('ready')) for item in statuses)}/{total}"


def _pod_status(obj: JsonObject, _now: float) -> str:
    status = obj.get("status") or {}
    if metadata(obj).get("deletionTimestamp"):
        return "Terminating"
    for container in status.get("containerStatuses") or []:
        state = container.get("state") or {}
        found = (state.get("waiting") or {}).get("reason") or (state.get("terminated") or {}).get("reason")
        if found:
            return str(found)
    return str(status.get("reason") or status.get("phase") or "Unknown")


def _restarts(obj: JsonObject, _now: float) -> str:
    statuses = dig(obj, ("status", "containerStatuses")) or []
    return str(sum(item.get("restartCount", 0) for item in statuses))


def _deployment_ready(obj: JsonObject, _now: float) -> str:
    return f"{dig(obj, ('status', 'readyReplicas')) or 0}/{dig(obj, ('spec', 'replicas')) or 0}"


def _labels(path: str) -> Cell:
    parts = split_path(path)
    return lambda obj, _now: ",".join(f"{k}={v}" for k, v in sorted((dig(obj, parts) or {}).items())) or _NONE


def _join_containers(field: str) -> Cell:
    def cell(obj: JsonObject, _now: float) -> str:
        containers = dig(obj, ("spec", "template", "spec", "containers")) or []
        return ",".join(str(item.get(field, "")) for item in containers)

    return cell


def _service_ports(obj: JsonObject, _now: float) -> str:
    ports = dig(obj, ("spec", "ports")) or []
    return ",".join(f"{port.get('port')}/{port.get('protocol', 'TCP')}" for port in ports) or _NONE


def _node_status(obj: JsonObject, _now: float) -> str:
    conditions = {item.get("type"): item.get("status") for item in dig(obj, ("status", "conditions")) or []}
    ready = {"True": "Ready", "False": "NotReady"}.get(str(conditions.get("Ready")), "Unknown")
    return ready + (",SchedulingDisabled" if dig(obj, ("spec", "unschedulable")) else "")


def _event_object(obj: JsonObject, _now: float) -> str:
    involved = obj.get("involvedObject") or {}
    return f"{str(involved.get('kind', '')).lower()}/{involved.get('name', '')}"


def _event_last_seen(obj: JsonObject, now: float) -> str:
    seen = obj.get("lastTimestamp") or obj.get("eventTime") or metadata(obj).get("creationTimestamp")
    return age(seen, now)


def _event_source(obj: JsonObject, _now: float) -> str:
    return str(dig(obj, ("source", "component")) or obj.get("reportingComponent") or "")


def _endpoints(obj: JsonObject, _now: float) -> str:
    pairs = [
        f"{address.get('ip')}:{port.get('port')}"
        for subset in obj.get("subsets") or []
        for address in subset.get("addresses") or []
        for port in subset.get("ports") or [{}]
    ]
    return ",".join(pairs[:3]) + (f" + {len(pairs) - 3} more..." if len(pairs) > 3 else "") or _NONE


def _slice_endpoints(obj: JsonObject, _now: float) -> str:
    return (
        ",".join(address for item in obj.get("endpoints") or [] for address in item.get("addresses", [])) or "<unset>"
    )


AGE = column("Age", age_cell())

POD = (
    column("Ready", _ready_containers),
    column("Status", _pod_status),
    column("Restarts", _restarts),
    AGE,
    column("IP", ".status.podIP", wide=True),
    column("Node", ".spec.nodeName", wide=True),
    column("Nominated Node", ".status.nominatedNodeName", wide=True),
    column("Readiness Gates", ".spec.readinessGateNames", wide=True),
)
DEPLOYMENT = (
    column("Ready", _deployment_ready),
    column("Up-to-date", path_cell(".status.updatedReplicas", 0), kind="integer"),
    column("Available", path_cell(".status.availableReplicas", 0), kind="integer"),
    AGE,
    column("Containers", _join_containers("name"), wide=True),
    column("Images", _join_containers("image"), wide=True),
    column("Selector", _labels(".spec.selector.matchLabels"), wide=True),
)
REPLICA_SET = (
    column("Desired", path_cell(".spec.replicas", 0), kind="integer"),
    column("Current", path_cell(".status.replicas", 0), kind="integer"),
    column("Ready", path_cell(".status.readyReplicas", 0), kind="integer"),
    AGE,
)
SERVICE = (
    column("Type", ".spec.type"),
    column("Cluster-IP", ".spec.clusterIP"),
    column("External-IP", ".spec.externalName"),
    column("Port(s)", _service_ports),
    AGE,
    column("Selector", _labels(".spec.selector"), wide=True),
)
EVENT = (
    column("Last Seen", _event_last_seen),
    column("Type", ".type"),
    column("Reason", ".reason"),
    column("Object", _event_object),
    column("Subobject", ".involvedObject.fieldPath", wide=True),
    column("Source", _event_source, wide=True),
    column("Message", ".message"),
    column("First Seen", age_cell(".firstTimestamp"), wide=True),
    column("Count", path_cell(".count", 1), wide=True),
)
NAMESPACE = (column("Status", ".status.phase"), AGE)
NODE = (
    column("Status", _node_status),
    column("Roles", lambda _obj, _now: _NONE),
    AGE,
    column("Version", path_cell(".status.nodeInfo.kubeletVersion", "")),
)
CONFIG_MAP = (column("Data", count_cell(".data")), AGE)
SECRET = (column("Type", ".type"), column("Data", count_cell(".data")), AGE)
SERVICE_ACCOUNT = (column("Secrets", count_cell(".secrets")), AGE)
ENDPOINTS = (column("Endpoints", _endpoints), AGE)
ENDPOINT_SLICE = (column("AddressType", ".addressType"), column("Endpoints", _slice_endpoints), AGE)
CLAIM = (
    column("Status", ".status.phase"),
    column("Volume", path_cell(".spec.volumeName", "")),
    column("StorageClass", path_cell(".spec.storageClassName", "")),
    AGE,
)
LEASE = (column("Holder", path_cell(".spec.holderIdentity", "")), AGE)
BUDGET = (
    column("Min Available", path_cell(".spec.minAvailable", "N/A")),
    column("Max Unavailable", path_cell(".spec.maxUnavailable", "N/A")),
    column("Allowed Disruptions", path_cell(".status.disruptionsAllowed", 0), kind="integer"),
    AGE,
)
AUTOSCALER = (
    column("MinPods", path_cell(".spec.minReplicas", "<unset>")),
    column("MaxPods", ".spec.maxReplicas"),
    column("Replicas", path_cell(".status.currentReplicas", 0), kind="integer"),
    AGE,
)
DEFINITION = (column("Created At", path_cell(".metadata.creationTimestamp")),)
CREATED = DEFINITION
