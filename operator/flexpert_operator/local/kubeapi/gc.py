"""Garbage collection: dependents whose owners are gone, and the contents of namespaces and definitions that are going.

`server` runs it after writes. `decide` looks at all objects and says what to do next; `collect` does it and asks again
until nothing is left to do. Semantics: Kubernetes documentation, "Garbage Collection".
"""

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from flexpert_operator.local.kubeapi import crds
from flexpert_operator.local.kubeapi.builtin_kinds import CRDS, EVENTS, NAMESPACES
from flexpert_operator.local.kubeapi.deletion import FOREGROUND, ORPHAN, DeleteOptions
from flexpert_operator.local.kubeapi.objects import JsonObject, finalizers_of, is_terminating, metadata, parse_time
from flexpert_operator.local.kubeapi.operations import Operations
from flexpert_operator.local.kubeapi.resources import Registry
from flexpert_operator.local.kubeapi.store import Event, Key, Store

_MAX_ROUNDS = 100
_EVENT_LIFETIME = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do to one object.

    Attributes:
        verb: `delete`; `remove` a namespace that is empty; `finalizer` or `owners`, which take `names` away.
        names: a finalizer, or the uids of owners.
    """

    verb: Literal["delete", "delete-foreground", "remove", "finalizer", "owners"]
    key: Key
    names: frozenset[str] = frozenset()


def concerns(event: Event) -> bool:
    """Whether an event can give the collector work."""
    if event.type == "DELETED" or is_terminating(event.object):
        return True
    before = metadata(event.previous or {}).get("ownerReferences")
    return bool(metadata(event.object).get("ownerReferences")) and metadata(event.object)["ownerReferences"] != before


def collect(store: Store, registry: Registry, operations: Operations) -> None:
    """Do everything that can be done now."""
    for _ in range(_MAX_ROUNDS):
        actions = decide(dict(store.all()), registry)
        for action in actions:
            _act(action, store, registry, operations)
        if not actions:
            return


def expire_events(store: Store, now: dt.datetime) -> None:
    """Remove the Events that have not been written for an hour, as an API server does."""
    for key, obj in store.items(EVENTS):
        written = obj.get("lastTimestamp") or obj.get("eventTime") or metadata(obj)["creationTimestamp"]
        if now - max(parse_time(written), parse_time(metadata(obj)["creationTimestamp"])) > _EVENT_LIFETIME:
            store.remove(key)


def decide(objects: Mapping[Key, JsonObject], registry: Registry) -> list[Action]:
    """What to do next; empty when the collector is done for now."""
    return [*_dependents(objects, registry), *_owners(objects), *_namespaces(objects), *_definitions(objects)]


def _dependents(objects: Mapping[Key, JsonObject], registry: Registry) -> Iterable[Action]:
    by_uid = {metadata(obj)["uid"]: (key, obj) for key, obj in objects.items()}
    parents = {owner["uid"] for obj in objects.values() for owner in metadata(obj).get("ownerReferences") or []}
    for key, obj in objects.items():
        solid: set[str] = set()
        loose: set[str] = set()
        waiting: set[str] = set()
        for owner in metadata(obj).get("ownerReferences") or []:
            found = by_uid.get(owner["uid"])
            if found is None or found[0].namespace not in ("", key.namespace):
                known = registry.of_kind(owner["apiVersion"], owner["kind"]) is not None
                (loose if known else solid).add(owner["uid"])
            elif ORPHAN in finalizers_of(found[1]) and is_terminating(found[1]):
                yield Action("owners", key, frozenset([owner["uid"]]))
                solid.add(owner["uid"])
            elif FOREGROUND in finalizers_of(found[1]) and is_terminating(found[1]):
                waiting.add(owner["uid"])
            else:
                solid.add(owner["uid"])
        if solid and (loose or waiting):
            yield Action("owners", key, frozenset(loose | waiting))
        elif (loose or waiting) and not is_terminating(obj):
            foreground = waiting and metadata(obj)["uid"] in parents
            yield Action("delete-foreground" if foreground else "delete", key)


def _owners(objects: Mapping[Key, JsonObject]) -> Iterable[Action]:
    going = {metadata(obj)["uid"]: (key, obj) for key, obj in objects.items() if is_terminating(obj)}
    owned: dict[str, bool] = {}
    for obj in objects.values():
        for owner in metadata(obj).get("ownerReferences") or []:
            owned[owner["uid"]] = owned.get(owner["uid"], False) or bool(owner.get("blockOwnerDeletion"))
    for uid, (key, obj) in going.items():
        if FOREGROUND in finalizers_of(obj) and not owned.get(uid, False):
            yield Action("finalizer", key, frozenset([FOREGROUND]))
        if ORPHAN in finalizers_of(obj) and uid not in owned:
            yield Action("finalizer", key, frozenset([ORPHAN]))


def _namespaces(objects: Mapping[Key, JsonObject]) -> Iterable[Action]:
    for key, obj in objects.items():
        if key.storage != NAMESPACES or not is_terminating(obj):
            continue
        contents = {other: item for other, item in objects.items() if other.namespace == key.name}
        if not contents and not finalizers_of(obj):
            yield Action("remove", key)
        yield from (Action("delete", other) for other, item in contents.items() if not is_terminating(item))


def _definitions(objects: Mapping[Key, JsonObject]) -> Iterable[Action]:
    for key, obj in objects.items():
        if key.storage != CRDS or not is_terminating(obj) or crds.CLEANUP not in finalizers_of(obj):
            continue
        instances = {other: item for other, item in objects.items() if other.storage == crds.storage_of(obj)}
        if not instances:
            yield Action("finalizer", key, frozenset([crds.CLEANUP]))
        yield from (Action("delete", other) for other, item in instances.items() if not is_terminating(item))


def _act(action: Action, store: Store, registry: Registry, operations: Operations) -> None:
    resource = registry.of_storage(action.key.storage)
    if resource is None or store.get(action.key) is None:
        return
    match action.verb:
        case "delete":
            operations.delete(resource, action.key, DeleteOptions())
        case "delete-foreground":
            operations.delete(resource, action.key, DeleteOptions(propagation="Foreground"))
        case "remove":
            operations.remove(resource, action.key)
        case "finalizer":
            operations.rewrite(resource, action.key, lambda obj: _drop_finalizers(obj, action.names))
        case "owners":
            operations.rewrite(resource, action.key, lambda obj: _drop_owners(obj, action.names))


def _drop_finalizers(obj: JsonObject, names: frozenset[str]) -> None:
    obj["metadata"]["finalizers"] = [name for name in finalizers_of(obj) if name not in names]


def _drop_owners(obj: JsonObject, uids: frozenset[str]) -> None:
    meta = obj["metadata"]
    meta["ownerReferences"] = [owner for owner in meta["ownerReferences"] if owner["uid"] not in uids]
