"""What Secrets and ConfigMaps hold; `environment` makes variables of it, and `volumes` files. Pure."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flexpert_operator.local.runtime.objects import key_of
from flexpert_operator.local.runtime.values import Object

SECRET = "secret"
CONFIG_MAP = "configmap"
"""Kinds, as the kubelet's messages write them."""


class NotThere(Exception):
    """An object or a key of it that a pod needs does not exist yet; the message names it as the kubelet does."""


@dataclass(frozen=True)
class Entries:
    """Entries of the objects there are, by kind, namespace and name."""

    _objects: Mapping[tuple[str, str, str], Mapping[str, bytes]] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(secrets: Iterable[Object], config_maps: Iterable[Object]) -> "Entries":
        """Those of the API's objects."""
        found = {(SECRET, *key_of(one)): _decoded(one.get("data")) for one in secrets}
        for one in config_maps:
            plain = {key: text.encode() for key, text in (one.get("data") or {}).items()}
            found[(CONFIG_MAP, *key_of(one))] = {**plain, **_decoded(one.get("binaryData"))}
        return Entries(found)

    def all_of(self, kind: str, namespace: str, name: str, optional: bool) -> Mapping[str, bytes]:
        """Entries of an object; none where it is optional and does not exist.

        Raises:
            NotThere: It does not exist.
        """
        found = self._objects.get((kind, namespace, name))
        if found is None and not optional:
            raise NotThere(f'{kind} "{name}" not found')
        return found or {}

    def one_of(self, kind: str, namespace: str, name: str, key: str, optional: bool) -> bytes | None:
        """An entry; None where it is optional and does not exist.

        Raises:
            NotThere: It, or its object, does not exist.
        """
        found = self.all_of(kind, namespace, name, optional).get(key)
        if found is None and not optional:
            raise NotThere(f'{kind} "{name}" has no key "{key}"')
        return found


NO_ENTRIES = Entries()


def _decoded(data: Mapping[str, str] | None) -> dict[str, bytes]:
    return {key: base64.b64decode(text) for key, text in (data or {}).items()}
