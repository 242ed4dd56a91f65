"""A copy of the API's objects that is kept current by watches; the loop decides on it.

What the runtime writes itself goes into the copy at once, so that the next decision never repeats the last one.
"""

import asyncio
import logging
from collections.abc import Callable

from flexpert_operator.local.runtime.kube import Kind, Kube, KubeError
from flexpert_operator.local.runtime.objects import uid_of
from flexpert_operator.local.runtime.values import Object

_RETRY_S = 0.5
_log = logging.getLogger(__name__)


class Mirror:
    """The objects of one kind."""

    def __init__(self, kind: Kind, changed: Callable[[], None]) -> None:
        self.kind = kind
        self.synced = False
        self._objects: dict[str, Object] = {}
        self._deleted: set[str] = set()
        self._changed = changed

    def objects(self) -> tuple[Object, ...]:
        """All of them, in the order of their names."""
        return tuple(sorted(self._objects.values(), key=_order))

    def put(self, obj: Object) -> None:
        """Take in an object unless a newer version of it is here or it is known to be gone."""
        uid = uid_of(obj)
        known = self._objects.get(uid)
        if uid in self._deleted or (known is not None and _version(known) > _version(obj)):
            return
        self._objects[uid] = {"apiVersion": self.kind.api_version, "kind": self.kind.name, **obj}
        self._changed()

    def remove(self, uid: str) -> None:
        """Take out an object for good."""
        self._deleted.add(uid)
        self._objects.pop(uid, None)
        self._changed()

    async def keep(self, kube: Kube) -> None:
        """List and watch for ever; after a break, list again."""
        while True:
            try:
                await self._follow(kube)
            except (KubeError, TimeoutError) as error:
                _log.info("watch of %s: %s", self.kind.plural, error)
                await asyncio.sleep(_RETRY_S)

    async def _follow(self, kube: Kube) -> None:
        items, version = await kube.list(self.kind)
        self._replace(items)
        async for event, obj in kube.watch(self.kind, version):
            if event == "DELETED":
                self.remove(uid_of(obj))
            elif event in ("ADDED", "MODIFIED"):
                self.put(obj)

    def _replace(self, items: list[Object]) -> None:
        listed = {uid_of(item) for item in items}
        for uid in self._objects.keys() - listed:
            self.remove(uid)
        self._deleted.clear()
        for item in items:
            self.put(item)
        self.synced = True
        self._changed()


def _order(obj: Object) -> tuple[str, str]:
    return str(obj["metadata"].get("namespace", "")), str(obj["metadata"]["name"])


def _version(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])
