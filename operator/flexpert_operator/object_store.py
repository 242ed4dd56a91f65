"""Objects of one resource as they were last seen, packed small. `informers` and `handlers` fill it, `cached` reads it.

A thousand RayClusters as dictionaries are some 100 MiB; packed they are two. An object is unpacked when it is looked
at, which happens when something changes. Versions are compared as numbers, which Kubernetes guarantees to be possible
for objects of one resource.
"""

import json
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flexpert_operator.api import names

Object = dict[str, Any]
Key = tuple[str, str]
"""Namespace and name."""

TOMBSTONES = 2048
"""Deleted objects that are remembered, so that the late answer to a write does not bring one back."""


@dataclass(frozen=True, slots=True)
class Packed:
    """An object without its version, compressed."""

    uid: str
    version: int
    owner: str
    data: bytes


def owner_of(body: Mapping[str, Any]) -> str:
    """Name of the MoEDeployment that an object belongs to, by its label; empty where it has none."""
    return str((body["metadata"].get("labels") or {}).get(names.DEPLOYMENT_LABEL, ""))


def own_name(body: Mapping[str, Any]) -> str:
    """Name of an object that is the owner."""
    return str(body["metadata"]["name"])


def target_of(body: Mapping[str, Any]) -> str:
    """Name of the MoEDeployment that an object scales."""
    return str(((body.get("spec") or {}).get("targetRef") or {}).get("name", ""))


def without_managers(body: Mapping[str, Any]) -> Object:
    """An object without the record of who manages which field."""
    metadata = {key: value for key, value in body["metadata"].items() if key != "managedFields"}
    return {**body, "metadata": metadata}


def pod_seen(body: Mapping[str, Any]) -> Object:
    """What is looked at of a pod: of its spec only the node."""
    node = (body.get("spec") or {}).get("nodeName")
    return {**without_managers(body), "spec": {"nodeName": node} if node else {}}


class ObjectStore:
    """The last seen objects of one resource. Safe to use from several threads.

    Args:
        strip: What is kept of an object.
        owner: Name of the MoEDeployment that an object belongs to.

    Attributes:
        owner: The same.
    """

    def __init__(
        self,
        strip: Callable[[Mapping[str, Any]], Object] = without_managers,
        owner: Callable[[Mapping[str, Any]], str] = owner_of,
    ) -> None:
        self._strip = strip
        self.owner = owner
        self._lock = threading.Lock()
        self._objects: dict[Key, Packed] = {}
        self._owned: dict[Key, set[str]] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._objects)

    def put(self, body: Mapping[str, Any]) -> bool:
        """Take in an object that a watch or a list has shown; whether that is news."""
        packed = self._pack(body)
        with self._lock:
            self._gone.pop(packed.uid, None)
            return self._put(key_of(body), packed)

    def put_written(self, body: Mapping[str, Any]) -> None:
        """Take in the answer to a write, unless the object was deleted since."""
        packed = self._pack(body)
        with self._lock:
            if packed.uid not in self._gone:
                self._put(key_of(body), packed)

    def drop(self, body: Mapping[str, Any]) -> bool:
        """An object is gone; whether that is news."""
        with self._lock:
            return self._drop(key_of(body), body["metadata"]["uid"])

    def keep_only(self, listed: Iterable[Key], version: int, namespace: str | None) -> list[tuple[Key, str]]:
        """Forget what a list of a namespace (None: of all) no longer had at `version`; returns it, with the owners."""
        with self._lock:
            there = set(listed)
            mine = ((key, packed) for key, packed in self._objects.items() if namespace in (None, key[0]))
            missing = [key for key, packed in mine if key not in there and packed.version <= version]
            found = [(key, self._objects[key].owner) for key in missing]
            for key in missing:
                self._drop(key, self._objects[key].uid)
            return found

    def get(self, namespace: str, name: str) -> Object | None:
        """An object, or None."""
        packed = self._objects.get((namespace, name))
        return unpack(packed) if packed is not None else None

    def uid(self, namespace: str, name: str) -> str | None:
        """The uid of an object, or None where there is none."""
        packed = self._objects.get((namespace, name))
        return packed.uid if packed is not None else None

    def select(self, namespace: str, labels: Mapping[str, str]) -> list[Object]:
        """The objects of a namespace that carry `labels`, among them that of their MoEDeployment."""
        with self._lock:
            own = self._owned.get((namespace, labels[names.DEPLOYMENT_LABEL]), set())
            packed = [self._objects[namespace, name] for name in sorted(own)]
        found = [unpack(one) for one in packed]
        return [body for body in found if labels.items() <= (body["metadata"].get("labels") or {}).items()]

    def owned(self, namespace: str, owner: str) -> list[Object]:
        """All that belongs to a MoEDeployment."""
        with self._lock:
            packed = [self._objects[namespace, name] for name in sorted(self._owned.get((namespace, owner), ()))]
        return [unpack(one) for one in packed]

    def owned_names(self, namespace: str, owner: str) -> list[str]:
        """Names of all that belongs to a MoEDeployment."""
        with self._lock:
            return sorted(self._owned.get((namespace, owner), ()))

    def names(self) -> list[Key]:
        """Namespace and name of all."""
        with self._lock:
            return list(self._objects)

    def _pack(self, body: Mapping[str, Any]) -> Packed:
        kept = self._strip(body)
        metadata = dict(kept["metadata"])
        version = int(metadata.pop("resourceVersion"))
        text = json.dumps({**kept, "metadata": metadata}, separators=(",", ":"))
        return Packed(metadata["uid"], version, self.owner(body), zlib.compress(text.encode(), 1))

    def _put(self, key: Key, packed: Packed) -> bool:
        before = self._objects.get(key)
        if before is not None and before.version >= packed.version:
            return False
        if before is not None and before.owner != packed.owner:
            self._disown(key, before.owner)
        self._objects[key] = packed
        self._owned.setdefault((key[0], packed.owner), set()).add(key[1])
        return before is None or before.data != packed.data

    def _drop(self, key: Key, uid: str) -> bool:
        before = self._objects.get(key)
        self._gone[uid] = None
        if len(self._gone) > TOMBSTONES:
            self._gone.popitem(last=False)
        if before is None or before.uid != uid:
            return False
        del self._objects[key]
        self._disown(key, before.owner)
        return True

    def _disown(self, key: Key, owner: str) -> None:
        own = self._owned[key[0], owner]
        own.discard(key[1])
        if not own:
            del self._owned[key[0], owner]


def key_of(body: Mapping[str, Any]) -> Key:
    """Namespace and name of an object."""
    return str(body["metadata"]["namespace"]), str(body["metadata"]["name"])


def unpack(packed: Packed) -> Object:
    """The object, with its version."""
    body: Object = json.loads(zlib.decompress(packed.data))
    body["metadata"]["resourceVersion"] = str(packed.version)
    return body
