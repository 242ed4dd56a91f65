"""What one has to know of a checkpoint to serve its pages, as plain values, and a folder where that is kept.

Finding a description out needs transformers (`describe`) and takes seconds; every process of a host that opens the same
checkpoint after the first reads it from the folder. An entry is found under a key that covers all it follows from, and
read only when it is whole: one that is damaged, truncated or under another's name counts as absent.
"""

import contextlib
import hashlib
import logging
import secrets
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import msgspec

from flexpert_proto import names
from flexpert_workers.checkpoint import architectures
from flexpert_workers.checkpoint.form import ExpertsForm
from flexpert_workers.checkpoint.layout import ExpertLayout
from flexpert_workers.checkpoint.quantisation import Quantisation
from flexpert_workers.checkpoint.recipes import Recipe

_LIBRARIES = ("transformers", "torch")
_KEPT_ENTRIES = 64

_log = logging.getLogger(__name__)


class Description(msgspec.Struct, frozen=True):
    """See `Checkpoint` for what the attributes mean.

    Attributes:
        dtype: What weights are served in, e.g. "BFloat16".
        recipes: Per MoE layer, per segment of the layout.
        form: What the experts compute between their products; None when only their class can tell.
    """

    architecture: str
    dtype: str
    num_layers: int
    num_experts: int
    experts_per_token: int
    layout: ExpertLayout
    moe_layer_modules: tuple[str, ...]
    dense_bytes: int
    kv_bytes_per_token: int
    context_length: int
    quantisation: Quantisation | None
    recipes: tuple[tuple[Recipe, ...], ...]
    form: ExpertsForm | None


class _Entry(msgspec.Struct, frozen=True):
    key: str
    description: Description


class DescriptionCache:
    """Descriptions in a folder, a file each; any number of processes may use it at once.

    Args:
        folder: Where; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def load(self, key: str) -> Description | None:
        """What was stored under a key; None when nothing was, or when it is not whole."""
        if self._folder is None:
            return None
        try:
            digest, _, body = self._file(self._folder, key).read_bytes().partition(b"\n")
            if digest.decode() != hashlib.sha256(body).hexdigest():
                return None
            entry = msgspec.json.decode(body, type=_Entry)
        except (OSError, UnicodeDecodeError, msgspec.DecodeError):
            return None
        return entry.description if entry.key == key else None

    def store(self, key: str, description: Description) -> None:
        """Keep a description; a folder that cannot be written costs the next process its time, nothing else."""
        if self._folder is None:
            return
        body = msgspec.json.encode(_Entry(key, description))
        unfinished = self._folder / f".{key}.{secrets.token_hex(8)}"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            unfinished.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            unfinished.replace(self._file(self._folder, key))
            self._drop_oldest(self._folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            _log.warning("cannot keep the description of a checkpoint for the next process: %s", error)

    @staticmethod
    def _drop_oldest(folder: Path) -> None:
        """Keep the folder small; whoever misses an entry finds it out again."""
        for entry in sorted(folder.iterdir(), key=_modified_ns)[:-_KEPT_ENTRIES]:
            entry.unlink(missing_ok=True)

    @staticmethod
    def _file(folder: Path, key: str) -> Path:
        return folder / f"{key}.json"


def cache_folder(environment: Mapping[str, str]) -> Path | None:
    """Where descriptions are kept: in the folder of `names.ENV_CHECKPOINT_CACHE` (nowhere when it is set to nothing),
    else in the user's cache.
    """
    named = environment.get(names.ENV_CHECKPOINT_CACHE)
    if named is not None:
        return Path(named) if named else None
    if environment.get("XDG_CACHE_HOME"):
        return Path(environment["XDG_CACHE_HOME"]) / "flexpert" / "checkpoints"
    return Path(environment["HOME"]) / ".cache" / "flexpert" / "checkpoints" if environment.get("HOME") else None


def description_key(config: bytes, fingerprint: bytes, dtype: str, environment: Mapping[str, str]) -> str:
    """The name of all that a description follows from.

    Args:
        config: The configuration as canonical JSON.
        fingerprint: Of the files (`CheckpointFiles.fingerprint`).
        dtype: As asked for, "Auto" included.
        environment: Whether unlisted architectures are tried stands in it.
    """
    versions = [metadata.version(library) for library in _LIBRARIES]
    parts = [config, fingerprint, dtype, environment.get(architectures.ENV_UNLISTED, ""), *versions, _own_version()]
    return hashlib.sha256(msgspec.msgpack.encode(parts)).hexdigest()


def _modified_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _own_version() -> bytes:
    """A digest of this package's own files: another code might describe the same checkpoint otherwise."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.*")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.digest()
