"""Checksums of pages and chunks: XXH3 with 64 bits, which runs at the speed of memory and catches what TCP's misses.

The page owner seals a page under `page_checksum`; the source and the target of a copy use both functions.
"""

from collections.abc import Callable

import xxhash

from flexpert_workers.transfer.contract import Buffer


def page_checksum(page: Buffer) -> int:
    """XXH3-64 of all bytes of a page."""
    return xxhash.xxh3_64_intdigest(page)


def chunk_checksum(chunk: Buffer, offset: int) -> int:
    """XXH3-64 of a chunk, seeded with its offset in the page, so that bytes at a wrong place are wrong bytes."""
    return xxhash.xxh3_64_intdigest(chunk, seed=offset)


class RunningChecksum:
    """`page_checksum` of a page that is still arriving: bytes are read while they are still in the cache."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_64()
        self._read = 0

    def advance(self, read: Callable[[int, int], memoryview], end: int) -> None:
        """Read on up to `end` with `read(start, end)`; everything before it has arrived."""
        if end > self._read:
            self._hash.update(read(self._read, end))
            self._read = end

    def value(self) -> int:
        """Checksum of what was read."""
        return self._hash.intdigest()
