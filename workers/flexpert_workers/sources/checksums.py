"""Whether a file's bytes are those that the source, or a manifest, names. Used by `filling`."""

import hashlib
from pathlib import Path
from typing import Any

from flexpert_workers.errors import CorruptCheckpoint

_CHUNK_BYTES = 4 << 20


def verified_sha256(path: Path, checksum: str, what: str) -> str:
    """The SHA-256 of a file, which also has the checksum that its source gave.

    Args:
        path: The file.
        checksum: "sha256:…", "git-sha1:…", "md5:…"; another kind cannot be verified.
        what: The file, in a message.

    Raises:
        CorruptCheckpoint: It has another.
    """
    kind, _, expected = checksum.partition(":")
    sha256, other = hashlib.sha256(), _hash(kind, path)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha256.update(chunk)
            if other is not None:
                other.update(chunk)
    found = sha256.hexdigest() if kind == "sha256" else other.hexdigest() if other is not None else expected
    if found != expected:
        raise CorruptCheckpoint(f"{what} is damaged: its {kind} is {found}, not {expected}")
    return sha256.hexdigest()


def _hash(kind: str, path: Path) -> Any:
    match kind:
        case "md5":
            return hashlib.md5(usedforsecurity=False)
        case "git-sha1":
            return hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    return None
