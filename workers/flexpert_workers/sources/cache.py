"""The folder in which a node (or a claim shared by many) keeps remote checkpoints: what lies where, and what is whole.

```
ROOT/hf/org--name-<hash>/refs/main              the commit that `main` named last, for when there is no network
                         <commit>/              the checkpoint, once its manifest is there
                         <commit>.sketch/       configuration, headers and samples only: what an inspection reads
                         <commit>.small/        configuration and tokenizer only: what an ingress reads
                         <commit>.lock          held by the process that fills <commit>
```

A folder counts when it has a manifest, which is written last, and every file of it has the size noted there. Nothing
but `filling` writes into one.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import msgspec

from flexpert_proto import names
from flexpert_workers.errors import CacheUnusable, CorruptCheckpoint
from flexpert_workers.sources.location import Remote

MANIFEST = ".flexpert-manifest.json"
PARTIAL = ".partial"
WHOLE, SKETCH, SMALL = "", ".sketch", ".small"
"""Kinds of entries: the suffixes of their folders."""

_OFFLINE = ("1", "ON", "YES", "TRUE")


class StoredFile(msgspec.Struct, frozen=True):
    """A file of a manifest.

    Attributes:
        size: In bytes.
        checksum: As the source gave it (see `listing.RemoteFile`).
        sha256: Of the bytes that were stored, in hexadecimal.
    """

    name: str
    size: int
    checksum: str
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What an entry holds, and how to find out whether it still does."""

    source: str
    revision: str
    files: tuple[StoredFile, ...]


@dataclass(frozen=True)
class Entry:
    """A folder of the cache, whether or not it exists."""

    folder: Path

    @property
    def partial(self) -> Path:
        """Where files are until they are whole and verified."""
        return self.folder / PARTIAL

    def manifest(self) -> Manifest | None:
        """What the entry says it holds; None when it was never whole.

        Raises:
            CorruptCheckpoint: The manifest is damaged.
        """
        path = self.folder / MANIFEST
        try:
            return msgspec.json.decode(path.read_bytes(), type=Manifest)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise CorruptCheckpoint(
                f"{path} is damaged: {error}; remove the folder, and it is fetched again"
            ) from error

    def missing(self, manifest: Manifest) -> tuple[StoredFile, ...]:
        """Files that are gone, or have another size than the manifest says."""
        return tuple(file for file in manifest.files if size_of(self.folder / file.name) != file.size)

    def is_whole(self) -> bool:
        """Whether everything is there, as far as sizes tell."""
        manifest = self.manifest()
        return manifest is not None and not self.missing(manifest)

    def publish(self, manifest: Manifest) -> None:
        """Make the entry count."""
        write_atomically(self.folder / MANIFEST, msgspec.json.encode(manifest))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process on all nodes that fills this entry; waits for the one that does.

        The kernel gives the lock up when its holder dies, whichever way.

        Raises:
            CacheUnusable: The cache cannot be written.
        """
        with writing(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder.with_name(f"{self.folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


class Cache:
    """A node's cache.

    Args:
        root: Its folder.
        offline: Whether nothing but the cache may be asked.
    """

    def __init__(self, root: Path, offline: bool = False) -> None:
        self.root = root
        self.offline = offline

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "Cache":
        """The one that the environment names, else in the user's cache; offline as `HF_HUB_OFFLINE` says."""
        named, xdg = environment.get(names.ENV_MODEL_CACHE), environment.get("XDG_CACHE_HOME")
        user = Path(xdg) if xdg else Path(environment.get("HOME") or "/tmp") / ".cache"
        offline = environment.get("HF_HUB_OFFLINE", "").upper() in _OFFLINE
        return cls(Path(named) if named else user / "flexpert" / "models", offline)

    def entry(self, remote: Remote, kind: str = WHOLE) -> Entry:
        """Where a pinned checkpoint is, or would be."""
        assert remote.pinned, "only what never changes is kept"
        return Entry(self._home(remote) / f"{remote.revision}{kind}")

    def remember(self, remote: Remote, revision: str) -> None:
        """Note what the revision asked for was resolved to."""
        reference = self._reference(remote)
        with writing(reference):
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(reference, revision.encode())

    def pinned(self, remote: Remote) -> Remote:
        """The remote pinned to what its revision was resolved to last; for when nothing else may be asked.

        Raises:
            CacheUnusable: It never was.
        """
        if remote.pinned or re.fullmatch("[0-9a-f]{40}", remote.revision):
            return remote.pin(remote.revision)
        try:
            return remote.pin(self._reference(remote).read_text().strip())
        except OSError as error:
            raise CacheUnusable(
                f"{remote} at revision {remote.revision!r} is not in the cache {self.root} of node {node_name()}, and "
                f"this pool is offline: fetch it there once with "
                f"`python -m flexpert_workers.sources.fetch {remote.unpinned} --revision {remote.revision}`, or set "
                f"spec.model.offline to false"
            ) from error

    def _reference(self, remote: Remote) -> Path:
        return self._home(remote) / "refs" / quote(remote.revision or "main", safe="")

    def _home(self, remote: Remote) -> Path:
        readable = re.sub(r"[^A-Za-z0-9._-]", "-", remote.path.replace("/", "--"))[:80]
        digest = hashlib.sha256(remote.path.encode()).hexdigest()[:12]
        return self.root / remote.scheme / f"{readable}-{digest}"


def size_of(path: Path) -> int:
    """Size of a file; -1 when there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def node_name() -> str:
    """Of the node that this process runs on, for messages."""
    return os.environ.get(names.ENV_NODE) or os.uname().nodename


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in our words why the cache cannot be written.

    Raises:
        CacheUnusable: It is full, read-only or not ours.
    """
    try:
        yield
    except OSError as error:
        raise CacheUnusable(
            f"cannot write {path} on node {node_name()}: {error.strerror or error}: make room there or make it "
            f"writable for user {os.getuid()}, or name another place in spec.model.cache"
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file at once, and have it outlive a power cut."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
