"""Request bodies: JSON, YAML or protobuf, and the fields that stand twice in them.

`server` parses every body with it.
"""

import json
from dataclasses import dataclass
from typing import Any

import yaml

from flexpert_operator.local.kubeapi import protobuf
from flexpert_operator.local.kubeapi.errors import BadRequest, UnsupportedMediaType

_JSON = frozenset({"", "application/json", "application/octet-stream", "text/plain", "*/*"})


class _Loader(yaml.CSafeLoader):
    """YAML as Kubernetes reads it: timestamps stay strings."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


class _Repeating(dict[str, Any]):
    """An object in which some names stood more than once."""

    repeated: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Body:
    """A parsed body, and the paths of the fields that stand twice in it."""

    value: Any
    duplicates: tuple[str, ...] = ()


def parse(raw: bytes, content_type: str) -> Body:
    """The body's value; an empty body is an empty object.

    Raises:
        BadRequest: it is not JSON, or not YAML.
        UnsupportedMediaType: it is of another media type.
    """
    if not raw.strip():
        return Body({})
    media = content_type.partition(";")[0].strip()
    if media == protobuf.MEDIA_TYPE:
        return Body(protobuf.decode(raw))
    if "yaml" in media:
        return _parse_yaml(raw)
    if media in _JSON or media.endswith("+json"):
        return _parse_json(raw)
    raise UnsupportedMediaType(
        "the body of the request was in an unknown format - accepted media types include: application/json, "
        "application/yaml"
    )


def _parse_json(raw: bytes) -> Body:
    try:
        value = json.loads(raw, object_pairs_hook=_pairs)
    except ValueError as error:
        raise BadRequest(f"couldn't get version/kind; json parse error: {error}") from error
    return Body(value, tuple(_duplicates(value, "")))


def _parse_yaml(raw: bytes) -> Body:
    if raw.lstrip().startswith(b"{"):
        return _parse_json(raw)
    try:
        return Body(yaml.load(raw, _Loader))
    except yaml.YAMLError as error:
        raise BadRequest(f"error converting YAML to JSON: {error}") from error


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    repeating = _Repeating(found)
    repeating.repeated = tuple(name for name in found if names.count(name) > 1)
    return repeating


def _duplicates(value: Any, path: str) -> list[str]:
    found: list[str] = []
    if isinstance(value, list):
        for index, item in enumerate(value):
            found += _duplicates(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        prefix = f"{path}." if path else ""
        if isinstance(value, _Repeating):
            found += [prefix + name for name in value.repeated]
        for name, item in value.items():
            found += _duplicates(item, prefix + name)
    return found
