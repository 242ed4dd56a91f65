"""The one module that calls object stores, through `fsspec`: `s3://` needs s3fs and `gs://` gcsfs beside it.

Credentials, endpoints and regions are the clients' own business: the variables of AWS and Google, a pod's identity, or
fsspec's own (`FSSPEC_S3_…`).
"""

import errno
import hashlib
import sys
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import fsspec

from flexpert_workers.errors import (
    AccessDenied,
    CheckpointError,
    CheckpointNotFound,
    CorruptCheckpoint,
    SourceUnreachable,
)
from flexpert_workers.sources.listing import Listing, RemoteFile
from flexpert_workers.sources.location import Remote

_CHUNK_BYTES = 8 << 20
_VERSIONS = ("ETag", "etag", "generation", "version_id", "crc32c", "updated", "LastModified", "mtime", "created")
"""What stores call that which changes whenever a file does, the best first."""

_OWN_ERRORS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
)
"""Roots of what the clients below fsspec raise beside OSError, as (module, class)."""

_DENIED = (errno.EACCES, errno.EPERM)


class StoreFiles:
    """A folder of a bucket.

    Args:
        remote: The folder; a pinned one has to be as it was when it was pinned.
        files: The store; None for the one of the scheme.
    """

    def __init__(self, remote: Remote, files: fsspec.AbstractFileSystem | None = None) -> None:
        self._remote = remote
        self._files = files if files is not None else _file_system(remote.scheme)

    def listing(self) -> Listing:
        """The folder's files now; the revision is a digest of their names, sizes and versions."""
        with self._told():
            self._files.invalidate_cache()
            entries = [entry for entry in self._files.ls(self._remote.path, detail=True) if entry["type"] == "file"]
        files = sorted((_described(entry) for entry in entries), key=lambda file: file.name)
        digest = hashlib.sha256(repr([(file.name, file.size, file.checksum) for file in files]).encode())
        listing = Listing(digest.hexdigest()[:40], tuple(files))
        if self._remote.pinned and listing.revision != self._remote.revision:
            raise CorruptCheckpoint(
                f"{self._remote.unpinned} is not what it was when this pool began to serve it (files were written "
                f"since): put them back, or make another MoEDeployment for what is there now"
            )
        return listing

    def read(self, file: RemoteFile, start: int, num_bytes: int) -> bytes:
        """A range of a file."""
        with self._told(file):
            data = bytes(self._files.cat_file(f"{self._remote.path}/{file.name}", start=start, end=start + num_bytes))
        if len(data) != num_bytes:
            raise CorruptCheckpoint(
                f"{self._remote.unpinned}: {file.name} is truncated: {num_bytes} bytes were asked for at {start}, "
                f"{len(data)} came"
            )
        return data

    def append(self, file: RemoteFile, target: BinaryIO, done: int) -> None:
        """The rest of a file, chunk by chunk."""
        while done < file.size:
            data = self.read(file, done, min(_CHUNK_BYTES, file.size - done))
            target.write(data)
            done += len(data)

    def unchanged(self, listing: Listing) -> bool:
        """Whether no file was written since."""
        return self.listing() == listing

    @contextmanager
    def _told(self, file: RemoteFile | None = None) -> Iterator[None]:
        try:
            yield
        except _raised() as error:
            raise self._translated(error, file) from error

    def _translated(self, error: BaseException, file: RemoteFile | None) -> CheckpointError:
        what = f"{self._remote.unpinned}/{file.name}" if file else self._remote.unpinned
        code = getattr(error, "errno", None)
        if isinstance(error, FileNotFoundError):
            return CheckpointNotFound(f"{what} does not exist: check spec.model.source")
        if isinstance(error, PermissionError) or code in _DENIED or "Forbidden" in str(error) or _no_key(error):
            return AccessDenied(
                f"{what} may not be read ({error}): give the pods an identity that may, or keys in the Secret that "
                f"spec.model.credentialsSecretRef names"
            )
        return SourceUnreachable(f"{what} cannot be read: {type(error).__name__}: {error}; it is tried again")


def _file_system(scheme: str) -> fsspec.AbstractFileSystem:
    try:
        return fsspec.filesystem(scheme, skip_instance_cache=True)
    except ImportError as error:
        raise CheckpointError(
            f"{scheme}:// needs {error.name or scheme} in the image: install flexpert[stores]"
        ) from error


def _raised() -> tuple[type[BaseException], ...]:
    loaded = ((sys.modules.get(module), name) for module, name in _OWN_ERRORS)
    return (OSError, *(getattr(module, name) for module, name in loaded if hasattr(module, name)))


def _no_key(error: BaseException) -> bool:
    return type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")


def _described(entry: Mapping[str, Any]) -> RemoteFile:
    name = str(entry["name"]).rstrip("/").rpartition("/")[2]
    return RemoteFile(name, int(entry["size"] or 0), _checksum(entry))


def _checksum(entry: Mapping[str, Any]) -> str:
    if entry.get("md5Hash"):
        return f"md5:{b64decode(entry['md5Hash']).hex()}"
    version = next((entry[key] for key in _VERSIONS if entry.get(key)), "")
    return f"version:{str(version).strip(chr(34))}"
