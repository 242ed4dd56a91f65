"""The environment of a container's process: the manifest's, with what a laptop needs differently laid over it. Pure."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from flexpert_operator.local.runtime.entries import CONFIG_MAP, NO_ENTRIES, SECRET, Entries
from flexpert_operator.local.runtime.objects import key_of
from flexpert_operator.local.runtime.values import GCS_PORT_NAME, HOST, LocalPod, Object
from flexpert_proto import names

RAY_DRAIN_S = 2
"""Long enough for Serve to move what still runs, short enough for a laptop's patience."""

_RAY_MINIMAL = Path(__file__).parents[1] / "ray_minimal"
_KEPT_OUT = re.compile(r"^(RAY_|FLEXPERT_|KUBE|OMP_|VIRTUAL_ENV$)")
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_NAME = re.compile(r"[A-Za-z_.-][A-Za-z0-9_.-]*")
_WHOLE = {"secretRef": SECRET, "configMapRef": CONFIG_MAP}
_SINGLE = {"secretKeyRef": SECRET, "configMapKeyRef": CONFIG_MAP}
_MAPPED_FIELD = re.compile(r"^metadata\.(?P<map>labels|annotations)\['(?P<key>.+)'\]$")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS")


class UnservedVariable(ValueError):
    """A variable of the manifest that cannot be had on a laptop; the message names it."""


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """What a container's process keeps of the runtime's own environment: the way to Python and its packages."""
    return {name: value for name, value in environment.items() if not _KEPT_OUT.match(name)}


def declared(spec: Object, pod: Object, entries: Entries = NO_ENTRIES) -> dict[str, str]:
    """The manifest's `envFrom` and `env` of a container, with what they refer to filled in.

    Raises:
        UnservedVariable: A source that is neither a value, a field of the pod, nor in a Secret or ConfigMap.
        NotThere: A Secret or ConfigMap that is not optional, or a key of it, does not exist.
    """
    values = _taken_over(spec, key_of(pod)[0], entries)
    for entry in spec.get("env") or []:
        value = _value(entry, pod, values, entries)
        if value is not None:
            values[entry["name"]] = value
    return values


def _taken_over(spec: Object, namespace: str, entries: Entries) -> dict[str, str]:
    """Variables of `envFrom`; keys that cannot be names of variables are left out."""
    values: dict[str, bytes] = {}
    for source in spec.get("envFrom") or []:
        for field, kind in _WHOLE.items():
            if field in source:
                optional = bool(source[field].get("optional"))
                found = entries.all_of(kind, namespace, source[field]["name"], optional)
                values |= {source.get("prefix", "") + key: data for key, data in found.items()}
    return {name: _text(name, data) for name, data in values.items() if _NAME.fullmatch(name)}


def _value(entry: Object, pod: Object, values: Mapping[str, str], entries: Entries) -> str | None:
    """The value of a variable, given those before it; None where it is optional and not there."""
    source = entry.get("valueFrom")
    if not source:
        return _REFERENCE.sub(lambda match: _referred(match, values), str(entry.get("value", "")))
    if "fieldRef" in source:
        return _field(pod, source["fieldRef"]["fieldPath"], entry["name"])
    for field, kind in _SINGLE.items():
        if field in source:
            named = source[field]
            optional = bool(named.get("optional"))
            data = entries.one_of(kind, key_of(pod)[0], named["name"], named["key"], optional)
            return _text(entry["name"], data) if data is not None else None
    raise UnservedVariable(f"variable {entry['name']} comes from {', '.join(source)}, which the laptop does not serve")


def _text(name: str, data: bytes) -> str:
    """Bytes as a process is given them."""
    if b"\0" in data:
        raise UnservedVariable(f"variable {name} would hold a zero byte")
    return os.fsdecode(data)


def _field(pod: Object, path: str, name: str) -> str:
    if path in ("status.podIP", "status.hostIP", "status.podIPs"):
        return HOST
    mapped = _MAPPED_FIELD.match(path)
    parts = ["metadata", mapped["map"], mapped["key"]] if mapped else path.split(".")
    value: object = pod
    for part in parts:
        value = value.get(part) if isinstance(value, dict) else None
    if not isinstance(value, str):
        raise UnservedVariable(f"variable {name} comes from the field {path}, which the pod does not have")
    return value


def _referred(match: re.Match[str], values: Mapping[str, str]) -> str:
    if match.group() == "$$":
        return "$"
    return values.get(match.group(1), match.group())


def laptop(local: LocalPod, spec: Object, services: str, volumes: str, num_cores: int) -> dict[str, str]:
    """What every container gets, whatever its manifest says.

    Args:
        local: The pod, with its folder and the numbers of its ports.
        spec: The container's part of the manifest.
        services: Path of the table of Services.
        volumes: Folder that holds claims.
        num_cores: Cores of this host: no process gets more threads than that.
    """
    ports = {names.port_variable(port): str(number) for port, number in local.ports.items()}
    wanted = next((entry["value"] for entry in spec.get("env") or [] if entry["name"] == names.ENV_THREADS), "1")
    threads = str(max(1, min(int(wanted), num_cores)))
    return {
        **ports,
        names.ENV_BIND_HOST: HOST,
        names.ENV_SOCKET_DIR: f"{local.folder}/s",
        names.ENV_POLL_US: "0",  # the cores are everybody's: a process that polls keeps another from running
        names.ENV_SERVICES: services,
        names.ENV_VOLUMES_ROOT: volumes,
        names.ENV_THREADS: threads,
        **dict.fromkeys(_THREADS, threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TMPDIR": f"{local.folder}/t",
        "PYTHONUNBUFFERED": "1",
    }


def ray(local: LocalPod, token_path: str, gcs_address: str, loopback: bool, module_path: str) -> dict[str, str]:
    """What every container of a RayCluster's pod gets besides.

    Args:
        local: The pod.
        token_path: File with the token that Ray's processes authenticate each other with.
        gcs_address: Where the head's GCS listens, as this host dials it.
        loopback: Whether the node keeps to the loopback interface; see `local.ray_start_hook`.
        module_path: `PYTHONPATH` of the container so far, or empty.
    """
    hook = {"RAY_START_HOOK": "flexpert_operator.local.ray_start_hook.keep_to_loopback"} if loopback else {}
    return {
        **hook,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(_RAY_MINIMAL), module_path))),
        "RAY_ADDRESS": gcs_address,
        "RAY_TMPDIR": f"{local.folder}/r",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": token_path,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(RAY_DRAIN_S),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",  # another program's memory is no reason to end a worker
        "RAY_enable_metrics_collection": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    }


def ray_head(storage: str) -> dict[str, str]:
    """What the head's Ray container gets besides: tables that outlive the process, in the folder `storage`."""
    return {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": storage}


def pod_identity(pod: Object) -> dict[str, str]:
    """Names by which KubeRay tells a Ray node what it is."""
    labels = pod["metadata"].get("labels") or {}
    return {"RAY_CLUSTER_NAME": labels.get("ray.io/cluster", ""), "RAY_CLOUD_INSTANCE_ID": key_of(pod)[1]}


def gcs_port(local: LocalPod) -> int:
    """Where a head's GCS listens."""
    return local.ports[GCS_PORT_NAME]
