"""The state file: every object, written whole and atomically a moment after a change.

`server` saves and loads it, so that objects survive a restart. History does not: a watch from before a restart is told
to list again.
"""

import json
import os
from pathlib import Path

from flexpert_operator.local.kubeapi.objects import JsonObject
from flexpert_operator.local.kubeapi.store import Key, Storage, Store

# More revisions than are handed out between a change and its snapshot: none is handed out twice after a crash.
REVISION_GAP = 100_000


def encode(store: Store) -> str:
    """The state as text."""
    objects = [[key.storage.group, key.storage.plural, key.namespace, key.name, obj] for key, obj in store.all()]
    return json.dumps({"revision": store.revision, "objects": objects}, separators=(",", ":"))


def write(text: str, path: Path) -> None:
    """Write an encoded state to `path`; readers see the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path, *, history: int) -> Store | None:
    """The store as it was saved, or None where nothing has been.

    Raises:
        ValueError: the file is not a state file.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        state = json.loads(text)
        objects: dict[Key, JsonObject] = {
            Key(Storage(group, plural), namespace, name): obj
            for group, plural, namespace, name, obj in state["objects"]
        }
        return Store(history=history, revision=state["revision"] + REVISION_GAP, objects=objects)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a state file of this server: {error}; move it away to start afresh") from error
