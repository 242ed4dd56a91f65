"""Protobuf bodies of the objects that kubectl's generators send: `kubectl create namespace|configmap|secret|…`.

kubectl writes these few kinds as protobuf whatever the server says; everything else of it, kopf and the Python client
speak JSON. Field numbers are those of Kubernetes' generated.proto files, which never change. A field that the tables
lack refuses the body, so that nothing is lost silently. `bodies` calls `decode`.
"""

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from flexpert_operator.local.kubeapi.errors import BadRequest, UnsupportedMediaType
from flexpert_operator.local.kubeapi.objects import JsonObject

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"

_MAGIC = b"k8s\x00"
_VARINT, _BYTES = 0, 2
_EMPTY_IS_ABSENT = frozenset({"string", "count", "flag"})

# Each field is its JSON name and its type; `[]` before a type repeats it, `{}` makes it a map from strings. Go writes
# what is not a pointer also when it is empty: an empty string, a `count` of 0 and a `flag` that is false are absent.
_Fields = Mapping[int, tuple[str, str]]
_MESSAGES: Mapping[str, _Fields] = {
    "ObjectMeta": {
        1: ("name", "string"),
        2: ("generateName", "string"),
        3: ("namespace", "string"),
        4: ("selfLink", "string"),
        5: ("uid", "string"),
        6: ("resourceVersion", "string"),
        7: ("generation", "count"),
        8: ("creationTimestamp", "Empty"),
        11: ("labels", "{}string"),
        12: ("annotations", "{}string"),
        14: ("finalizers", "[]string"),
    },
    "Empty": {},
    "Namespace": {1: ("metadata", "ObjectMeta"), 2: ("spec", "NamespaceSpec"), 3: ("status", "Status")},
    "NamespaceSpec": {1: ("finalizers", "[]string")},
    "Status": {1: ("phase", "string")},
    "ConfigMap": {
        1: ("metadata", "ObjectMeta"),
        2: ("data", "{}string"),
        3: ("binaryData", "{}bytes"),
        4: ("immutable", "bool"),
    },
    "Secret": {
        1: ("metadata", "ObjectMeta"),
        2: ("data", "{}bytes"),
        3: ("type", "string"),
        4: ("stringData", "{}string"),
        5: ("immutable", "bool"),
    },
    "ServiceAccount": {1: ("metadata", "ObjectMeta"), 4: ("automountServiceAccountToken", "bool")},
    "Deployment": {1: ("metadata", "ObjectMeta"), 2: ("spec", "DeploymentSpec"), 3: ("status", "Empty")},
    "DeploymentSpec": {
        1: ("replicas", "int"),
        2: ("selector", "LabelSelector"),
        3: ("template", "PodTemplateSpec"),
        4: ("strategy", "DeploymentStrategy"),
        5: ("minReadySeconds", "count"),
        7: ("paused", "flag"),
    },
    "DeploymentStrategy": {1: ("type", "string")},
    "LabelSelector": {1: ("matchLabels", "{}string")},
    "PodTemplateSpec": {1: ("metadata", "ObjectMeta"), 2: ("spec", "PodSpec")},
    "PodSpec": {
        2: ("containers", "[]Container"),
        3: ("restartPolicy", "string"),
        6: ("dnsPolicy", "string"),
        8: ("serviceAccountName", "string"),
        9: ("serviceAccount", "string"),
        10: ("nodeName", "string"),
        11: ("hostNetwork", "flag"),
        12: ("hostPID", "flag"),
        13: ("hostIPC", "flag"),
        16: ("hostname", "string"),
        17: ("subdomain", "string"),
        19: ("schedulerName", "string"),
        24: ("priorityClassName", "string"),
    },
    "Container": {
        1: ("name", "string"),
        2: ("image", "string"),
        3: ("command", "[]string"),
        4: ("args", "[]string"),
        5: ("workingDir", "string"),
        6: ("ports", "[]ContainerPort"),
        8: ("resources", "Empty"),
        13: ("terminationMessagePath", "string"),
        14: ("imagePullPolicy", "string"),
        16: ("stdin", "flag"),
        17: ("stdinOnce", "flag"),
        18: ("tty", "flag"),
        20: ("terminationMessagePolicy", "string"),
    },
    "ContainerPort": {
        1: ("name", "string"),
        2: ("hostPort", "count"),
        3: ("containerPort", "int"),
        4: ("protocol", "string"),
        5: ("hostIP", "string"),
    },
    "Eviction": {1: ("metadata", "ObjectMeta"), 2: ("deleteOptions", "DeleteOptions")},
    "DeleteOptions": {
        1: ("gracePeriodSeconds", "int"),
        2: ("preconditions", "Preconditions"),
        3: ("orphanDependents", "bool"),
        4: ("propagationPolicy", "string"),
        5: ("dryRun", "[]string"),
    },
    "Preconditions": {1: ("uid", "string"), 2: ("resourceVersion", "string")},
    "TypeMeta": {1: ("apiVersion", "string"), 2: ("kind", "string")},
    "Unknown": {
        1: ("typeMeta", "TypeMeta"),
        2: ("raw", "raw"),
        3: ("contentEncoding", "string"),
        4: ("contentType", "string"),
    },
}


def decode(raw: bytes) -> JsonObject:
    """The object in a protobuf body.

    Raises:
        BadRequest: the bytes are not what the media type says.
        UnsupportedMediaType: the kind, or a field of it, is not read from protobuf.
    """
    if not raw.startswith(_MAGIC):
        raise BadRequest("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
    try:
        envelope = _message("Unknown", raw[len(_MAGIC) :])
        kind = envelope["typeMeta"]["kind"]
        if kind not in _MESSAGES:
            raise UnsupportedMediaType(f"{kind} is not read from protobuf: send JSON, as `kubectl create -f` does")
        return {**envelope["typeMeta"], **_message(kind, envelope.get("raw", b""))}
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise BadRequest(f"the protobuf message cannot be read: {error}") from error


def _message(name: str, raw: bytes) -> JsonObject:
    obj: JsonObject = {}
    for number, wire in _fields(raw):
        if number not in _MESSAGES[name]:
            raise UnsupportedMediaType(f"field {number} of {name} is not read from protobuf: send JSON")
        field, kind = _MESSAGES[name][number]
        if kind.startswith("[]"):
            obj.setdefault(field, []).append(_value(kind[2:], wire))
        elif kind.startswith("{}"):
            entry = dict(_fields(wire if isinstance(wire, bytes) else b""))
            obj.setdefault(field, {})[_value("string", entry.get(1, b""))] = _value(kind[2:], entry.get(2, b""))
        elif kind != "Empty" and not (kind in _EMPTY_IS_ABSENT and not wire):
            obj[field] = _value(kind, wire)
    return obj


def _value(kind: str, wire: int | bytes) -> Any:
    if isinstance(wire, int):
        return bool(wire) if kind in ("bool", "flag") else wire - (1 << 64) if wire >= 1 << 63 else wire
    match kind:
        case "string":
            return wire.decode()
        case "bytes":
            return base64.b64encode(wire).decode()
        case "raw":
            return wire
        case _:
            return _message(kind, wire)


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and wire value of each field: an integer, or the bytes of what has a length."""
    position = 0
    while position < len(raw):
        tag, position = _varint(raw, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = _varint(raw, position)
            yield number, value
        elif wire_type == _BYTES:
            size, position = _varint(raw, position)
            if position + size > len(raw):
                raise IndexError("a field is longer than the message")
            yield number, raw[position : position + size]
            position += size
        else:
            raise BadRequest(f"wire type {wire_type} is not expected in a Kubernetes object")


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
