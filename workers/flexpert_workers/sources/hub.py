"""The one module that calls a Hugging Face hub (or a mirror, `HF_ENDPOINT`), through `huggingface_hub`.

Retries, back-off, redirects and resuming are that library's own (`http_get`). Its download into a folder is not used:
it begins a file anew in every process, so that what a killed one had fetched would be lost.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import BinaryIO

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # exported there without saying so
    build_hf_headers,
    disable_progress_bars,
)

from flexpert_workers.errors import (
    AccessDenied,
    CheckpointError,
    CheckpointNotFound,
    CorruptCheckpoint,
    SourceUnreachable,
)
from flexpert_workers.sources.listing import Listing, RemoteFile
from flexpert_workers.sources.location import Remote

_LISTING_TIMEOUT_S = 60.0
_TOKEN_HINT = "a token that may read it belongs into the Secret that spec.model.tokenSecretRef names"


class HubFiles:
    """A repository of models. The token is the environment's `HF_TOKEN`.

    Args:
        remote: The repository, at the revision wanted.
        endpoint: URL of the hub; empty for the public one.
    """

    def __init__(self, remote: Remote, endpoint: str = "") -> None:
        self._remote = remote
        self._endpoint = endpoint.rstrip("/") or constants.ENDPOINT
        self._api = HfApi(endpoint=self._endpoint)
        disable_progress_bars()

    def listing(self) -> Listing:
        """The repository's files at the commit that the revision names now."""
        with self._told():
            info = self._api.model_info(
                self._remote.path, revision=self._remote.revision, files_metadata=True, timeout=_LISTING_TIMEOUT_S
            )
        files = [
            RemoteFile(one.rfilename, one.size or 0, _checksum(one.lfs.sha256 if one.lfs else "", one.blob_id or ""))
            for one in info.siblings or ()
        ]
        if not info.sha:
            raise CorruptCheckpoint(f"{self._remote.unpinned}: {self._endpoint} does not tell the commit")
        return Listing(info.sha, tuple(files))

    def read(self, file: RemoteFile, start: int, num_bytes: int) -> bytes:
        """A range of a file."""
        buffer = BytesIO()
        with self._told(file):
            wanted = {"Range": f"bytes={start}-{start + num_bytes - 1}"}
            http_get(self._url(file), buffer, headers=self._headers() | wanted, expected_size=num_bytes)
        return buffer.getvalue()

    def append(self, file: RemoteFile, target: BinaryIO, done: int) -> None:
        """The rest of a file."""
        with self._told(file):
            http_get(self._url(file), target, resume_size=done, headers=self._headers(), expected_size=file.size)

    def unchanged(self, listing: Listing) -> bool:
        """A commit never changes."""
        return True

    def _url(self, file: RemoteFile) -> str:
        return hf_hub_url(self._remote.path, file.name, revision=self._remote.revision, endpoint=self._endpoint)

    def _headers(self) -> dict[str, str]:
        return {**build_hf_headers(), "Accept-Encoding": "identity"}

    @contextmanager
    def _told(self, file: RemoteFile | None = None) -> Iterator[None]:
        """Say in our words what the library raises."""
        try:
            yield
        except (httpx2.HTTPError, EntryNotFoundError, OfflineModeIsEnabled) as error:
            raise self._translated(error, file) from error
        except ValueError as error:
            raise CheckpointError(f"{self._remote.unpinned}: {error}") from error
        except OSError as error:
            if error.errno is not None:  # of this machine's files, not of the hub
                raise
            raise CorruptCheckpoint(f"{self._remote.unpinned}: {file.name if file else ''}: {error}") from error

    def _translated(self, error: Exception, file: RemoteFile | None) -> CheckpointError:
        source, revision = self._remote.unpinned, self._remote.revision
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        match error:
            case GatedRepoError():
                return AccessDenied(f"{source} is gated: accept its terms on {self._endpoint}; {_TOKEN_HINT}")
            case RevisionNotFoundError():
                return CheckpointNotFound(
                    f"{source} has no revision {revision!r}: set spec.model.revision to a branch, tag or commit of it"
                )
            case RepositoryNotFoundError() if status != 401:
                return CheckpointNotFound(
                    f"{source} does not exist on {self._endpoint} or is private: check spec.model.source; {_TOKEN_HINT}"
                )
            case EntryNotFoundError():
                return CheckpointNotFound(f"{source} has no file {file.name if file else ''} at revision {revision}")
        if status in (401, 403):
            return AccessDenied(f"{self._endpoint} does not let us read {source} (status {status}): {_TOKEN_HINT}")
        why = f"status {status}" if status else str(error) or type(error).__name__
        return SourceUnreachable(f"{self._endpoint} cannot be read for {source}: {why}; it is tried again")


def hub_files(remote: Remote) -> HubFiles:
    """The repository on the hub that the environment names."""
    return HubFiles(remote, os.environ.get("HF_ENDPOINT", ""))


def _checksum(sha256: str, blob: str) -> str:
    return f"sha256:{sha256}" if sha256 else f"git-sha1:{blob}"
