"""A sketch of a checkpoint: its small files whole, of its weights only what an inspection reads.

The weights' files have their full sizes and are empty but for the headers and the samples that a fingerprint is made
of (`checkpoint.files.CheckpointFiles.fingerprint`), so that a model of hundreds of gigabytes is inspected, and has the
digest that it will have, before it is fetched. `bringing` makes them.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flexpert_workers.checkpoint.files import (
    INDEX_FILE,
    MAX_HEADER_BYTES,
    SAMPLE_BYTES,
    sample_offsets,
)
from flexpert_workers.errors import CorruptCheckpoint
from flexpert_workers.sources.cache import Entry, StoredFile, writing
from flexpert_workers.sources.filling import Filler
from flexpert_workers.sources.listing import Listing, RemoteFile, RemoteFiles, small_files, weight_files

_LENGTH_BYTES = 8
_AT_ONCE = 8


def draw(filler: Filler, source: RemoteFiles, entry: Entry, listing: Listing) -> None:
    """Have an entry hold the sketch of what is listed.

    Args:
        filler: Of the entry.
        source: Where the bytes come from.
        entry: Of the sketch.
        listing: Of the whole checkpoint.

    Raises:
        CheckpointError: It cannot be read, or is none.
    """
    name = str(filler.remote)
    stored = filler.fetch(small_files(listing))
    index = entry.folder / INDEX_FILE
    weights = weight_files(listing, index.read_bytes() if index.is_file() else None, name)
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sketch") as threads:
        sketched = tuple(threads.map(lambda file: _sketch(source, entry.folder, file, name), weights))
    filler.publish(stored + sketched)


def _sketch(source: RemoteFiles, folder: Path, file: RemoteFile, name: str) -> StoredFile:
    length = source.read(file, 0, min(_LENGTH_BYTES, file.size))
    data_start = _LENGTH_BYTES + int.from_bytes(length, "little")
    if len(length) < _LENGTH_BYTES or data_start > min(file.size, MAX_HEADER_BYTES):
        raise CorruptCheckpoint(f"{name}: {file.name} is no safetensors file: its header would end behind it")
    pieces = {0: length + source.read(file, _LENGTH_BYTES, data_start - _LENGTH_BYTES)}
    for start in sample_offsets(data_start, file.size):
        pieces[start] = source.read(file, start, min(SAMPLE_BYTES, file.size - start))
    path = folder / file.name
    with writing(path), path.open("wb") as target:
        target.truncate(file.size)
        for start, piece in pieces.items():
            target.seek(start)
            target.write(piece)
    return StoredFile(file.name, file.size, file.checksum, "")
