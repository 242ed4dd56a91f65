"""Where on this node a checkpoint lies. Asks no network; whoever opens checkpoints calls it.

A pool's processes are given pinned sources; what is not here yet is being fetched by the node's one fetch.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from flexpert_proto import names
from flexpert_workers.errors import CheckpointNotFound
from flexpert_workers.sources.cache import Cache, node_name
from flexpert_workers.sources.location import parse_remote

_POLL_S = 1.0
_SERVED_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken")


def checkpoint_folder(source: str, cache: Cache | None = None) -> Path:
    """The folder of a checkpoint; of a remote one, its whole copy in the cache.

    Raises:
        CheckpointNotFound: The source names nothing that is here.
        CorruptCheckpoint: The cache's note of it is damaged.
    """
    remote = parse_remote(source)
    if remote is None:
        return _named_folder(source)
    cache = cache or Cache.of()
    if not remote.pinned:
        raise CheckpointNotFound(
            f"{source} is not resolved to a revision yet: `python -m flexpert_workers.sources.fetch {source}` fetches "
            f"it and prints what to open"
        )
    entry = cache.entry(remote)
    if not entry.is_whole():
        raise CheckpointNotFound(f"{source} is not whole in the cache of node {node_name()}, {entry.folder}")
    return entry.folder


def wait_until_here(
    source: str,
    timeout_s: float,
    cache: Cache | None = None,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Return once a remote checkpoint is whole on this node; at once for one in a folder.

    Raises:
        CheckpointNotFound: It was not in time.
    """
    if parse_remote(source) is None:
        return
    deadline = clock() + timeout_s
    while True:
        try:
            checkpoint_folder(source, cache)
        except CheckpointNotFound:
            if clock() > deadline:
                raise
        else:
            return
        pause(_POLL_S)


def folder_state(folder: Path) -> str:
    """A digest of names, sizes and times of the files of a checkpoint's folder: another one when any was written.

    Raises:
        CheckpointNotFound: There is no such folder.
    """
    try:
        found = sorted(
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for path in folder.iterdir()
            if path.name.endswith(_SERVED_SUFFIXES)
        )
    except OSError as error:
        raise CheckpointNotFound(f"{folder} cannot be looked at: {error.strerror}") from error
    return hashlib.sha256(repr(found).encode()).hexdigest()[:40]


def _named_folder(source: str) -> Path:
    try:
        return names.model_path(source)
    except names.ModelSourceError as error:
        raise CheckpointNotFound(str(error)) from error
