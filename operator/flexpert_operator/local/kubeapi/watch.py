"""Watches: from a resourceVersion to a stream of events, with selectors and bookmarks.

`server` opens a `Watch` for each watch request and writes what `next` gives to the response.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from flexpert_operator.local.kubeapi.errors import Expired, FieldError, Timeout, forbidden_field, invalid_object
from flexpert_operator.local.kubeapi.objects import JsonObject
from flexpert_operator.local.kubeapi.reads import parse_revision
from flexpert_operator.local.kubeapi.resources import ResourceType
from flexpert_operator.local.kubeapi.selectors import EVERYTHING, Selector
from flexpert_operator.local.kubeapi.store import Event, Store

INITIAL_EVENTS_END = "k8s.io/initial-events-end"


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What to watch, and from where. `send_initial` None is what an absent parameter means."""

    selector: Selector = EVERYTHING
    resource_version: str = ""
    version_match: str = ""
    send_initial: bool | None = None
    bookmarks: bool = False
    timeout_s: float = 1800.0


@dataclass(frozen=True, slots=True)
class Change:
    """One event of a watch, its object in the resource's version; type ERROR carries a Status."""

    type: str
    object: JsonObject


def check(options: WatchOptions) -> None:
    """Refuse combinations of parameters that an API server refuses.

    Raises:
        Invalid: sendInitialEvents without resourceVersionMatch=NotOlderThan, or the reverse.
    """
    errors: list[FieldError] = []
    if options.send_initial is not None and options.version_match != "NotOlderThan":
        detail = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        errors.append(forbidden_field("resourceVersionMatch", detail))
    if options.send_initial is None and options.version_match:
        detail = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        errors.append(forbidden_field("resourceVersionMatch", detail))
    if errors:
        raise invalid_object("ListOptions", "meta.k8s.io", "", errors)


class Watch:
    """An open watch; `close` ends it. Used by the server's event loop only."""

    def __init__(self, store: Store, resource: ResourceType, options: WatchOptions) -> None:
        self._store = store
        self._resource = resource
        self._options = options
        self._queue: asyncio.Queue[Change | None] = asyncio.Queue()
        for change in self._initial():
            self._queue.put_nowait(change)
        self._unsubscribe = store.subscribe(self._receive)

    async def next(self, timeout_s: float) -> Change | None:
        """The next change, or None when there was none within `timeout_s`; then a bookmark skips nothing."""
        try:
            return await asyncio.wait_for(self._queue.get(), timeout_s)
        except TimeoutError:  # what came while the waiting was being called off is still there
            return None if self._queue.empty() else self._queue.get_nowait()

    def bookmark(self) -> Change:
        """A bookmark at the newest revision; everything before it has been sent when the queue is empty."""
        return self._bookmark({})

    def close(self) -> None:
        """Receive no more."""
        self._unsubscribe()

    def _initial(self) -> Iterable[Change]:
        options, where = self._options, self._resource.where
        given = options.resource_version not in ("", "0")
        if options.send_initial is False and not given:
            return
        if options.send_initial or not given:
            parse_revision(self._store, options.resource_version)
            for _, stored in self._store.items(where):
                obj = self._resource.served(stored)
                if options.selector.matches(obj):
                    yield Change("ADDED", obj)
            if options.send_initial and options.bookmarks:
                yield self._bookmark({INITIAL_EVENTS_END: "true"})
            return
        try:
            events = self._events_since(options.resource_version)
        except Expired as error:
            yield Change("ERROR", error.status())
            return
        for event in events:
            yield from self._seen(event)

    def _events_since(self, version: str) -> list[Event]:
        """Events after a revision; one from the future is of a server that lost its state, so list again."""
        try:
            return self._store.events_since(self._resource.where, parse_revision(self._store, version))
        except Timeout as error:
            raise Expired(error.message) from error

    def _receive(self, event: Event) -> None:
        if event.key.storage == self._resource.where:
            for change in self._seen(event):
                self._queue.put_nowait(change)

    def _seen(self, event: Event) -> Iterable[Change]:
        """The event as this watch's selector makes it appear."""
        selects = self._options.selector.matches
        new = self._resource.served(event.object)
        old = self._resource.served(event.previous) if event.previous else None
        now, before = event.type != "DELETED" and selects(new), old is not None and selects(old)
        if now:
            yield Change("MODIFIED" if before else "ADDED", new)
        elif before:
            last = new if event.type == "DELETED" else old or new
            version = {"resourceVersion": str(event.revision)}
            yield Change("DELETED", {**last, "metadata": {**last["metadata"], **version}})

    def _bookmark(self, annotations: dict[str, str]) -> Change:
        meta: JsonObject = {"resourceVersion": str(self._store.revision), "creationTimestamp": None}
        if annotations:
            meta["annotations"] = annotations
        resource = self._resource
        return Change("BOOKMARK", {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": meta})
