"""Fills an entry of the cache from its source: whole files, resumed where an earlier process stopped, each verified.

`fetch` calls it under the entry's lock. A file is in `.partial` until its checksum was found right, then it is moved
into place; the manifest comes last.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from flexpert_workers.checkpoint.files import INDEX_FILE
from flexpert_workers.errors import CacheUnusable, CorruptCheckpoint, SourceUnreachable
from flexpert_workers.sources.cache import Entry, Manifest, StoredFile, node_name, size_of, writing
from flexpert_workers.sources.checksums import verified_sha256
from flexpert_workers.sources.listing import Listing, RemoteFile, RemoteFiles, small_files, weight_files
from flexpert_workers.sources.location import Remote

AT_ONCE = 4
"""Files fetched at a time."""


class FetchPhase(StrEnum):
    """How far a fetch is."""

    RESOLVING = "Resolving"
    WAITING = "Waiting"
    DOWNLOADING = "Downloading"
    VERIFYING = "Verifying"
    READY = "Ready"
    FAILED = "Failed"


@dataclass
class Progress:
    """What a fetch is doing, for whoever reports it; written by `filling`, read from other threads.

    Attributes:
        entry: What is filled; None until that is known.
        files: What belongs in it, as far as that is known.
    """

    phase: FetchPhase = FetchPhase.RESOLVING
    entry: Entry | None = None
    files: tuple[RemoteFile, ...] = ()

    @property
    def bytes_total(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def bytes_done(self) -> int:
        """Bytes of them that are on the disk, whoever fetched them."""
        entry = self.entry
        if entry is None:
            return 0
        return sum(min(file.size, _bytes_of(entry, file.name)) for file in self.files)


def free_bytes(path: Path) -> int:
    """Bytes that an ordinary user may still write to the file system of a folder."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


class Filler:
    """Fills one entry.

    Args:
        remote: What it is of, pinned.
        source: Where its bytes come from.
        entry: Where they go.
        progress: Is kept up to date.
        free: Tells the bytes that fit into a folder.
    """

    def __init__(
        self,
        remote: Remote,
        source: RemoteFiles,
        entry: Entry,
        progress: Progress,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self.remote = remote
        self._source = source
        self._entry = entry
        self._progress = progress
        self._free = free

    def fill(self, listing: Listing) -> None:
        """Fetch what is not there yet of a whole checkpoint, and make it count.

        Raises:
            CheckpointError: See `listing.RemoteFiles`; `CacheUnusable` when it does not fit.
        """
        small = small_files(listing)
        self._progress.entry, self._progress.files = self._entry, small
        stored = self.fetch(small)
        weights = weight_files(listing, self._index(), str(self.remote))
        self._progress.files = (*small, *weights)
        self._check_room()
        stored += self.fetch(weights)
        if not self._source.unchanged(listing):
            raise SourceUnreachable(f"{self.remote.unpinned} was written while it was fetched; it is fetched again")
        self.publish(stored)

    def fetch(self, files: Sequence[RemoteFile]) -> tuple[StoredFile, ...]:
        """Have files in their places, a few at a time."""
        with writing(self._entry.partial):
            self._entry.partial.mkdir(parents=True, exist_ok=True)
        self._progress.phase = FetchPhase.DOWNLOADING
        known = self._known()
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch") as threads:
            fetches = [threads.submit(self._have, file, known.get(file.name)) for file in files]
            try:
                return tuple(fetch.result() for fetch in fetches)
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def publish(self, stored: tuple[StoredFile, ...]) -> None:
        """Make the entry count."""
        with writing(self._entry.folder):
            self._entry.publish(Manifest(self.remote.unpinned, self.remote.revision, stored))
        shutil.rmtree(self._entry.partial, ignore_errors=True)
        self._progress.phase = FetchPhase.READY

    def _have(self, file: RemoteFile, known: StoredFile | None) -> StoredFile:
        """Fetch a file that is not there; one that was damaged on its way is fetched once more, from its start."""
        final = self._entry.folder / file.name
        if known is not None and size_of(final) == file.size:
            return known
        partial = self._entry.partial / file.name
        if size_of(final) == file.size:
            with writing(partial):
                final.replace(partial)  # of a fetch that was killed before its manifest
        for again in (True, False):
            with writing(partial):
                self._append(file, partial)
            try:
                sha256 = verified_sha256(partial, file.checksum, f"{self.remote}: {file.name}")
            except CorruptCheckpoint:
                with writing(partial):
                    partial.unlink()
                if not again:
                    raise
            else:
                break
        with writing(final):
            partial.replace(final)
        return StoredFile(file.name, file.size, file.checksum, sha256)

    def _append(self, file: RemoteFile, partial: Path) -> None:
        if size_of(partial) > file.size:
            partial.unlink()
        with partial.open("ab") as target:
            self._source.append(file, target, target.tell())
            target.flush()
            os.fsync(target.fileno())
        found = size_of(partial)
        if found != file.size:
            raise CorruptCheckpoint(f"{self.remote}: {file.name} is truncated: {found} of {file.size} bytes came")

    def _known(self) -> dict[str, StoredFile]:
        manifest = self._entry.manifest()
        return {file.name: file for file in manifest.files} if manifest is not None else {}

    def _index(self) -> bytes | None:
        path = self._entry.folder / INDEX_FILE
        return path.read_bytes() if path.is_file() else None

    def _check_room(self) -> None:
        missing = self._progress.bytes_total - self._progress.bytes_done
        free = self._free(self._entry.folder)
        if missing > free:
            raise CacheUnusable(
                f"{self.remote} does not fit into the cache on node {node_name()}: {_gib(missing)} are still to come, "
                f"{_gib(free)} are free in {self._entry.folder}: make room there, or name a larger place in "
                f"spec.model.cache"
            )


def verify(entry: Entry, manifest: Manifest, progress: Progress) -> tuple[str, ...]:
    """Names of the files of an entry whose bytes are not those that were stored; reads all of it."""
    progress.phase = FetchPhase.VERIFYING
    damaged = []
    for file in manifest.files:
        try:
            verified_sha256(entry.folder / file.name, f"sha256:{file.sha256}", file.name)
        except (CorruptCheckpoint, OSError):
            damaged.append(file.name)
    return tuple(damaged)


def _bytes_of(entry: Entry, name: str) -> int:
    return max(size_of(entry.folder / name), size_of(entry.partial / name), 0)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
