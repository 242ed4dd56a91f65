"""One API: its store, its types, its operations, its garbage collector and its state file.

`server` answers requests with it; `embedded` makes it, runs its background work and closes it.
"""

import asyncio
from pathlib import Path

from flexpert_operator.local.kubeapi import crds, gc, snapshot
from flexpert_operator.local.kubeapi.builtin_kinds import CRDS, NAMESPACES, builtin_types
from flexpert_operator.local.kubeapi.objects import Clock, utc_now
from flexpert_operator.local.kubeapi.operations import Operations, WriteOptions
from flexpert_operator.local.kubeapi.resources import Registry
from flexpert_operator.local.kubeapi.store import Event, Key, Store

_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
_SAVE_DELAY_S = 0.5
_EXPIRY_INTERVAL_S = 60.0
_REST = 9.0
"""The collector rests for so many times as long as it has worked."""


class Api:
    """The state of a server. One thread uses it, the one whose event loop runs `background`."""

    def __init__(self, *, state_file: Path | None = None, history: int = 2048, clock: Clock = utc_now) -> None:
        self.clock = clock
        self._state_file = state_file
        loaded = snapshot.load(state_file, history=history) if state_file else None
        self.store = loaded or Store(history=history)
        self.registry = Registry(builtin_types())
        self.operations = Operations(self.store, self.registry, clock)
        for _, crd in self.store.items(CRDS):
            self.registry.replace_storage(crds.storage_of(crd), crds.resource_types(crd))
        self._create_namespaces()
        self._has_garbage = asyncio.Event()
        self._is_unsaved = asyncio.Event()
        self._has_garbage.set()
        if loaded is None:
            self._is_unsaved.set()
        self.store.subscribe(self._notice)

    async def background(self) -> None:
        """Collect garbage, expire Events and save the state until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._collect_forever())
            tasks.create_task(self._expire_forever())
            if self._state_file:
                tasks.create_task(self._save_forever(self._state_file))

    def close(self) -> None:
        """Save what is not saved yet."""
        if self._state_file and self._is_unsaved.is_set():
            snapshot.write(snapshot.encode(self.store), self._state_file)

    def _create_namespaces(self) -> None:
        resource = self.registry.find("", "v1", "namespaces")
        for name in _NAMESPACES:
            if self.store.get(Key(NAMESPACES, "", name)) is None:
                options = WriteOptions(manager="kube-apiserver")
                self.operations.create(resource, None, {"metadata": {"name": name}}, options)

    def _notice(self, event: Event) -> None:
        self._is_unsaved.set()
        if gc.concerns(event):
            self._has_garbage.set()

    async def _collect_forever(self) -> None:
        """Look at all objects after a change that may leave garbage, and rest for longer than that took."""
        clock = asyncio.get_running_loop().time
        while True:
            await self._has_garbage.wait()
            self._has_garbage.clear()
            began = clock()
            gc.collect(self.store, self.registry, self.operations)
            await asyncio.sleep(_REST * (clock() - began))

    async def _expire_forever(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRY_INTERVAL_S)
            gc.expire_events(self.store, self.clock())

    async def _save_forever(self, path: Path) -> None:
        while True:
            await self._is_unsaved.wait()
            await asyncio.sleep(_SAVE_DELAY_S)
            self._is_unsaved.clear()
            await asyncio.to_thread(snapshot.write, snapshot.encode(self.store), path)
