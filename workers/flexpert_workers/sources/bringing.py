"""Brings what is elsewhere into the cache: a whole checkpoint, a sketch of it, or its small files alone.

`fetch` brings whole ones, a pool controller's inspection a sketch, an ingress the small files.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flexpert_workers.errors import CacheUnusable
from flexpert_workers.sources.cache import SKETCH, SMALL, WHOLE, Cache, Entry, node_name
from flexpert_workers.sources.filling import FetchPhase, Filler, Progress, verify
from flexpert_workers.sources.listing import Listing, RemoteFile, RemoteFiles, small_files
from flexpert_workers.sources.local import checkpoint_folder, folder_state
from flexpert_workers.sources.location import HUB_SCHEME, Remote, parse_remote
from flexpert_workers.sources.sketch import draw

Opener = Callable[[Remote], RemoteFiles]


@dataclass(frozen=True)
class Located:
    """A checkpoint that can be inspected.

    Attributes:
        folder: Where; of a remote one it may be a sketch.
        source: What a pool's processes open: the source as it was given, pinned if it is remote.
        revision: Names the state of its files.
        num_bytes: To fetch on every node; 0 for a folder.
    """

    folder: Path
    source: str
    revision: str
    num_bytes: int


def open_remote(remote: Remote) -> RemoteFiles:
    """The client for a remote checkpoint; imports its library.

    Raises:
        CheckpointError: That library is not installed.
    """
    if remote.scheme == HUB_SCHEME:
        from flexpert_workers.sources.hub import hub_files

        return hub_files(remote)
    from flexpert_workers.sources.stores import StoreFiles

    return StoreFiles(remote)


class Bringer:
    """Brings remote checkpoints into a cache. Any number of processes may do so at once.

    Args:
        cache: Where to.
        opener: Makes clients.
    """

    def __init__(self, cache: Cache, opener: Opener = open_remote) -> None:
        self._cache = cache
        self._open = opener

    def resolve(self, remote: Remote) -> Remote:
        """The remote pinned to what its revision names now; offline, to what it named last.

        Raises:
            CheckpointError: It cannot be told.
        """
        if remote.pinned:
            return remote
        if self._cache.offline:
            return self._cache.pinned(remote)
        pinned = remote.pin(self._open(remote).listing().revision)
        self._cache.remember(remote, pinned.revision)
        return pinned

    def whole(self, remote: Remote, progress: Progress, verified: bool = False) -> tuple[Remote, Path]:
        """Have the whole checkpoint here; returns it pinned, and its folder.

        Args:
            remote: What to fetch.
            progress: Is kept up to date.
            verified: Also read every byte of what was here, and fetch anew what is damaged.

        Raises:
            CheckpointError: See `listing.RemoteFiles`; `CacheUnusable`, when offline, for what is not here.
        """
        pinned = self.resolve(remote)
        entry = progress.entry = self._cache.entry(pinned)
        if verified or not entry.is_whole():
            progress.phase = FetchPhase.WAITING
            with self._locked(entry, pinned, verified):
                self._fill(pinned, entry, progress, verified)
        manifest = entry.manifest()
        if manifest is not None:
            progress.files = tuple(RemoteFile(file.name, file.size, file.checksum) for file in manifest.files)
        progress.phase = FetchPhase.READY
        return pinned, entry.folder

    def located(self, source: str, revision: str) -> Located:
        """Have what an inspection of a checkpoint reads here.

        Raises:
            CheckpointError: It cannot be had.
        """
        remote = parse_remote(source, revision)
        if remote is None:
            folder = checkpoint_folder(source)
            return Located(folder, source, folder_state(folder), 0)
        pinned = self.resolve(remote)
        entry = self._some(pinned, SKETCH, draw)
        manifest = entry.manifest()
        num_bytes = sum(file.size for file in manifest.files) if manifest is not None else 0
        return Located(entry.folder, str(pinned), pinned.revision, num_bytes)

    def small(self, source: str) -> Path:
        """Have configuration and tokenizer here; returns their folder. A folder that is named is returned as it is.

        Raises:
            CheckpointError: They cannot be had.
        """
        remote = parse_remote(source)
        return checkpoint_folder(source) if remote is None else self._some(self.resolve(remote), SMALL, _small).folder

    def _some(self, pinned: Remote, kind: str, bring: Callable[[Filler, RemoteFiles, Entry, Listing], None]) -> Entry:
        """The whole checkpoint if it is here, else the part of that kind, brought here if it is not."""
        whole, part = self._cache.entry(pinned, WHOLE), self._cache.entry(pinned, kind)
        if whole.is_whole() or part.is_whole():
            return whole if whole.is_whole() else part
        with self._locked(part, pinned):
            if not part.is_whole():
                files = self._open(pinned)
                bring(Filler(pinned, files, part, Progress()), files, part, files.listing())
        return part

    def _fill(self, pinned: Remote, entry: Entry, progress: Progress, verified: bool) -> None:
        manifest = entry.manifest()
        damaged = verify(entry, manifest, progress) if verified and manifest is not None else ()
        if damaged and self._cache.offline:
            raise CacheUnusable(f"{pinned}: damaged in {entry.folder}: {', '.join(damaged)}; nothing else may be asked")
        for name in damaged:
            (entry.folder / name).unlink(missing_ok=True)
        if not entry.is_whole():
            self._check_online(entry, pinned)
            files = self._open(pinned)
            Filler(pinned, files, entry, progress).fill(files.listing())

    def _locked(self, entry: Entry, pinned: Remote, verified: bool = False) -> contextlib.AbstractContextManager[None]:
        if not verified:
            self._check_online(entry, pinned)
        return entry.locked()

    def _check_online(self, entry: Entry, pinned: Remote) -> None:
        if self._cache.offline:
            raise CacheUnusable(
                f"{pinned} is not in the cache of node {node_name()} ({entry.folder}), and this pool is offline: fetch "
                f"it there once with `python -m flexpert_workers.sources.fetch {pinned}`, or set spec.model.offline to "
                f"false"
            )


def _small(filler: Filler, files: RemoteFiles, entry: Entry, listing: Listing) -> None:
    filler.publish(filler.fetch(small_files(listing)))
