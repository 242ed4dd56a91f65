"""What a model source names: a folder that is here, or a remote checkpoint, whose revision may be pinned to it.

The one place that reads and writes such a URL. `hf://org/name@COMMIT` is what a pool passes around once it knows the
commit; users write the revision in a field of its own.
"""

import re
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

from flexpert_workers.errors import CheckpointNotFound

HUB_SCHEME = "hf"
STORE_SCHEMES = ("s3", "gs")

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_PINNED = re.compile(r"(?P<path>.+)@(?P<revision>[0-9a-f]{40})")


@dataclass(frozen=True)
class Remote:
    """A checkpoint that has to be fetched.

    Attributes:
        scheme: "hf", "s3" or "gs".
        path: "org/name" on a hub, "bucket/folder" in a store.
        revision: What was asked for, or once it is pinned, a hub's commit or the digest of a store's listing.
        pinned: Whether `revision` names one state of the files for ever.
    """

    scheme: str
    path: str
    revision: str = ""
    pinned: bool = False

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}" + (f"@{self.revision}" if self.pinned else "")

    @property
    def unpinned(self) -> str:
        """As a user writes it."""
        return f"{self.scheme}://{self.path}"

    def pin(self, revision: str) -> "Remote":
        """The same checkpoint at one revision for ever."""
        return replace(self, revision=revision, pinned=True)


def parse_remote(source: str, revision: str = "") -> Remote | None:
    """The remote checkpoint that a source names; None when it names a folder, or nothing that is known.

    Args:
        source: `hf://org/name`, `s3://bucket/folder` or `gs://bucket/folder`; pinned ones end in `@` and 40 hex digits.
        revision: As the user asked for; of no account where the source is pinned.

    Raises:
        CheckpointNotFound: It is of a known scheme, but not of its form.
    """
    url = urlsplit(source)
    if url.scheme != HUB_SCHEME and url.scheme not in STORE_SCHEMES:
        return None
    if url.query or url.fragment:
        raise CheckpointNotFound(f"{source!r}: write it without '?' and '#'")
    path = unquote(f"{url.netloc}{url.path}").strip("/")
    pinned = _PINNED.fullmatch(path)
    remote = Remote(url.scheme, path, revision or "main")
    if pinned:
        remote = Remote(url.scheme, pinned["path"], pinned["revision"], pinned=True)
    _check_form(source, remote)
    return remote


def pinned_source(source: str, revision: str) -> str:
    """A source as it was resolved earlier; unchanged when it names a folder, or no such revision is known.

    Raises:
        CheckpointNotFound: See `parse_remote`.
    """
    remote = parse_remote(source) if revision else None
    return source if remote is None else str(remote.pin(revision))


def _check_form(source: str, remote: Remote) -> None:
    if remote.scheme == HUB_SCHEME and not _REPOSITORY.fullmatch(remote.path):
        raise CheckpointNotFound(
            f"{source!r}: write hf://organisation/name, and a branch, tag or commit in spec.model.revision"
        )
    if remote.scheme in STORE_SCHEMES and not all(part not in ("", ".", "..") for part in remote.path.split("/")):
        raise CheckpointNotFound(f"{source!r}: write {remote.scheme}://bucket/folder")
