"""The objects, their revisions and the recent history: what etcd and the watch cache are to an API server.

One thread uses a Store. Objects that are in it are never changed in place; a write replaces them. `operations` writes,
`watch` subscribes, `snapshot` saves and loads.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from flexpert_operator.local.kubeapi.errors import Expired
from flexpert_operator.local.kubeapi.objects import JsonObject

EventType = Literal["ADDED", "MODIFIED", "DELETED"]


class Storage(NamedTuple):
    """Where objects of a resource are kept; all versions of a resource share one."""

    group: str
    plural: str


class Key(NamedTuple):
    """One object. `namespace` is empty for cluster-scoped objects."""

    storage: Storage
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Event:
    """One change. `previous` is None for an object that is new; `object` is the last state of one that is gone."""

    revision: int
    type: EventType
    key: Key
    object: JsonObject
    previous: JsonObject | None


class Store:
    """Objects by key, a revision that only grows, and the last `history` events of each storage."""

    def __init__(self, *, history: int = 2048, revision: int = 1, objects: Mapping[Key, JsonObject] | None = None):
        self._history = history
        self._revision = revision
        self._start = revision
        self._objects: dict[Storage, dict[Key, JsonObject]] = {}
        self._events: dict[Storage, deque[Event]] = {}
        self._floors: dict[Storage, int] = {}
        self._subscribers: list[Callable[[Event], None]] = []
        for key, obj in (objects or {}).items():
            self._objects.setdefault(key.storage, {})[key] = obj

    @property
    def revision(self) -> int:
        """Revision of the newest change."""
        return self._revision

    def get(self, key: Key) -> JsonObject | None:
        """The object, or None."""
        return self._objects.get(key.storage, {}).get(key)

    def items(self, storage: Storage) -> list[tuple[Key, JsonObject]]:
        """All objects of a storage, by namespace and name."""
        return sorted(self._objects.get(storage, {}).items())

    def all(self) -> Iterator[tuple[Key, JsonObject]]:
        """Every object of every storage."""
        for objects in list(self._objects.values()):
            yield from list(objects.items())

    def put(self, key: Key, obj: JsonObject) -> JsonObject:
        """Store `obj` under a new revision, which is written into its metadata; returns it."""
        previous = self.get(key)
        stored = self._at_new_revision(obj)
        self._objects.setdefault(key.storage, {})[key] = stored
        self._emit(Event(self._revision, "MODIFIED" if previous else "ADDED", key, stored, previous))
        return stored

    def remove(self, key: Key, last: JsonObject | None = None) -> JsonObject:
        """Take the object away; its last state, or `last` in its stead, is what watches see. Returns that state."""
        previous = self._objects[key.storage].pop(key)
        stored = self._at_new_revision(last or previous)
        self._emit(Event(self._revision, "DELETED", key, stored, previous))
        return stored

    def events_since(self, storage: Storage, revision: int) -> list[Event]:
        """Events after `revision`, oldest first.

        Raises:
            Expired: history does not reach back that far.
        """
        floor = self._floors.get(storage, self._start)
        if revision < floor:
            raise Expired(f"too old resource version: {revision} ({floor})")
        return [event for event in self._events.get(storage, ()) if event.revision > revision]

    def items_at(self, storage: Storage, revision: int) -> list[tuple[Key, JsonObject]]:
        """All objects as they were at `revision`, by namespace and name.

        Raises:
            Expired: history does not reach back that far.
        """
        objects = dict(self._objects.get(storage, {}))
        for event in reversed(self.events_since(storage, revision)):
            if event.previous is None:
                objects.pop(event.key, None)
            else:
                objects[event.key] = event.previous
        return sorted(objects.items())

    def subscribe(self, receive: Callable[[Event], None]) -> Callable[[], None]:
        """Call `receive` with every event from now on; returns what ends it."""
        self._subscribers.append(receive)
        return lambda: self._subscribers.remove(receive)

    def _at_new_revision(self, obj: JsonObject) -> JsonObject:
        self._revision += 1
        return obj | {"metadata": obj["metadata"] | {"resourceVersion": str(self._revision)}}

    def _emit(self, event: Event) -> None:
        events = self._events.setdefault(event.key.storage, deque())
        events.append(event)
        if len(events) > self._history:
            self._floors[event.key.storage] = events.popleft().revision
        for receive in list(self._subscribers):
            receive(event)
