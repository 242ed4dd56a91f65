"""Rules of built-in kinds that no schema says, and what of them an update may not change.

`strategy` checks them, so that a manifest that a cluster would refuse is refused on a laptop too. The messages are the
API server's; the rules are those that manifests break in practice, not all there are.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from typing import Any

from flexpert_operator.local.kubeapi.errors import (
    FieldError,
    duplicate,
    forbidden_field,
    invalid_value,
    required,
    unsupported,
)
from flexpert_operator.local.kubeapi.objects import JsonObject, copy_json, dig, labels_of, parse_quantity
from flexpert_operator.local.kubeapi.selectors import parse_label_selector_object

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_TYPED = {"kubernetes.io/tls": ("tls.crt", "tls.key"), "kubernetes.io/dockerconfigjson": (".dockerconfigjson",)}
"""Keys that a Secret of this type must have."""
_WORKLOADS = frozenset({"Deployment", "ReplicaSet", "StatefulSet", "DaemonSet"})
_POD_UPDATE = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


def errors(kind: str, obj: JsonObject, old: JsonObject | None) -> list[FieldError]:
    """What is wrong with a built-in object, or with changing `old` into it."""
    found = list(_by_itself(kind, obj))
    return found + (list(_as_update(kind, obj, old)) if old else [])


def _by_itself(kind: str, obj: JsonObject) -> Iterator[FieldError]:
    spec = obj.get("spec") or {}
    if kind == "Pod":
        yield from _pod_spec(spec, "spec")
    elif kind in _WORKLOADS:
        yield from _selector(spec)
        yield from _pod_spec(dig(spec, ("template", "spec")) or {}, "spec.template.spec")
    elif kind == "Service":
        yield from _service_ports(spec.get("ports") or [])
    elif kind == "Secret":
        yield from _base64(obj, "data")
        yield from (required(f"data[{key}]") for key in _TYPED.get(obj.get("type", ""), ()) if key not in _data(obj))
    elif kind == "ConfigMap":
        yield from _base64(obj, "binaryData")
    replicas = spec.get("replicas")
    if kind in _WORKLOADS and isinstance(replicas, int) and replicas < 0:
        yield invalid_value("spec.replicas", replicas, "must be greater than or equal to 0")


def _data(obj: JsonObject) -> JsonObject:
    return obj.get("data") or {}


def _base64(obj: JsonObject, field: str) -> Iterator[FieldError]:
    """Values that are not base64; none is shown, since they are secret."""
    for key, text in (obj.get(field) or {}).items():
        try:
            base64.b64decode(text or "", validate=True)
        except binascii.Error:
            yield invalid_value(f"{field}[{key}]", "", "illegal base64 data")


def _as_update(kind: str, obj: JsonObject, old: JsonObject) -> Iterator[FieldError]:
    if kind in _WORKLOADS and dig(obj, ("spec", "selector")) != dig(old, ("spec", "selector")):
        yield invalid_value("spec.selector", dig(obj, ("spec", "selector")), "field is immutable")
    if kind == "Pod" and _fixed_pod_spec(obj) != _fixed_pod_spec(old):
        yield forbidden_field("spec", _POD_UPDATE)
    if kind == "Secret" and obj.get("type") != old.get("type"):
        yield invalid_value("type", obj.get("type"), "field is immutable")
    if kind in ("Secret", "ConfigMap") and old.get("immutable"):
        for name in ("data", "binaryData", "immutable"):
            if obj.get(name) != old.get(name):
                yield forbidden_field(name, "field is immutable when `immutable` is set")


def _fixed_pod_spec(obj: JsonObject) -> JsonObject:
    spec: JsonObject = copy_json(obj.get("spec") or {})
    for name in ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"):
        spec.pop(name, None)
    for container in [*spec.get("containers", []), *spec.get("initContainers", [])]:
        container.pop("image", None)
    return spec


def _selector(spec: JsonObject) -> Iterator[FieldError]:
    selector, labels = spec.get("selector"), labels_of(spec.get("template") or {})
    if selector is None:
        return
    wanted = parse_label_selector_object(selector)
    if not wanted:
        yield invalid_value("spec.selector", selector, "empty selector is invalid for deployment")
    if not all(item.accepts(labels.get(item.key)) for item in wanted):
        yield invalid_value("spec.template.metadata.labels", labels, "`selector` does not match template `labels`")


def _pod_spec(spec: JsonObject, path: str) -> Iterator[FieldError]:
    if not spec.get("containers"):
        yield required(f"{path}.containers")
    if spec.get("restartPolicy") not in (None, "Always", "OnFailure", "Never"):
        yield unsupported(f"{path}.restartPolicy", spec["restartPolicy"], ["Always", "OnFailure", "Never"])
    volumes = {volume.get("name") for volume in spec.get("volumes") or []}
    for group in ("containers", "initContainers"):
        for index, container in enumerate(spec.get(group) or []):
            yield from _container(container, volumes, f"{path}.{group}[{index}]")


def _container(container: JsonObject, volumes: set[Any], path: str) -> Iterator[FieldError]:
    name = container.get("name", "")
    if name and not _LABEL.fullmatch(name):
        detail = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-'"
        yield invalid_value(f"{path}.name", name, detail)
    if not container.get("image"):
        yield required(f"{path}.image")
    for index, mount in enumerate(container.get("volumeMounts") or []):
        if mount.get("name") not in volumes:
            body = f'Not found: "{mount.get("name")}"'
            yield FieldError(f"{path}.volumeMounts[{index}].name", "FieldValueNotFound", body)
    seen: set[str] = set()
    for index, port in enumerate(container.get("ports") or []):
        yield from _port(port, "containerPort", f"{path}.ports[{index}]", seen)
    yield from _resources(container.get("resources") or {}, f"{path}.resources")


def _port(port: JsonObject, number: str, path: str, seen: set[str]) -> Iterator[FieldError]:
    value, name = port.get(number), port.get("name")
    if isinstance(value, int) and not 1 <= value <= 65535:
        yield invalid_value(f"{path}.{number}", value, "must be between 1 and 65535, inclusive")
    if name is None:
        return
    if len(name) > 15:
        yield invalid_value(f"{path}.name", name, "must be no more than 15 characters")
    elif not _PORT_NAME.fullmatch(name):
        yield invalid_value(f"{path}.name", name, "must contain at least one letter (a-z) and only a-z, 0-9 and '-'")
    if name in seen:
        yield duplicate(f"{path}.name", name)
    seen.add(name)


def _service_ports(ports: list[JsonObject]) -> Iterator[FieldError]:
    seen: set[str] = set()
    for index, port in enumerate(ports):
        if len(ports) > 1 and not port.get("name"):
            yield required(f"spec.ports[{index}].name")
        yield from _port(port, "port", f"spec.ports[{index}]", seen)


def _resources(resources: JsonObject, path: str) -> Iterator[FieldError]:
    amounts: dict[tuple[str, str], Any] = {}
    for group in ("limits", "requests"):
        for name, text in (resources.get(group) or {}).items():
            try:
                amounts[group, name] = parse_quantity(text)
            except ValueError:
                detail = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
                yield invalid_value(f"{path}.{group}[{name}]", text, detail)
    for (group, name), amount in amounts.items():
        if group == "requests" and amount > amounts.get(("limits", name), amount):
            shown = resources["requests"][name]
            yield invalid_value(f"{path}.requests", shown, f"must be less than or equal to {name} limit")
