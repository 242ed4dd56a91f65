"""Who holds which block of the KV cache: reference counts, reuse by content, least recently used eviction.

The scheduler asks, `cache.PagedCache` holds the tensors. Block 0 is never lent: it stays zero and pads tables.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]

ROOT = b""
"""Digest before the first block of a sequence."""


def block_digest(parent: bytes, tokens: Tokens) -> bytes:
    """Digest of a full block and all before it: equal digests mean equal keys and values (128 bits of BLAKE2b)."""
    return hashlib.blake2b(parent + tokens.tobytes(), digest_size=16).digest()


class BlockPool:
    """Blocks 1 … `num_blocks` - 1 of `block_tokens` tokens each; block 0 is the padding.

    A block that nobody holds keeps its content, and can be found by its digest, until it is the longest unused.
    """

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.num_blocks = num_blocks - 1
        self._references = [0] * num_blocks
        self._digest_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that at least one request holds."""
        return self.num_blocks - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens take."""
        return -(-num_tokens // self.block_tokens)

    def match(self, tokens: Tokens) -> tuple[list[int], list[bytes]]:
        """Blocks and digests of the longest cached prefix of `tokens`, in whole blocks; nothing is taken."""
        blocks: list[int] = []
        digests: list[bytes] = []
        parent = ROOT
        for start in range(0, len(tokens) - self.block_tokens + 1, self.block_tokens):
            parent = block_digest(parent, tokens[start : start + self.block_tokens])
            block = self._block_of.get(parent)
            if block is None:
                break
            blocks.append(block)
            digests.append(parent)
        return blocks, digests

    def num_free_of(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` nobody holds: taking them makes the pool that much smaller."""
        return sum(not self._references[block] for block in blocks)

    def take(self, blocks: Iterable[int]) -> None:
        """Hold blocks that `match` found."""
        for block in blocks:
            if not self._references[block]:
                del self._free[block]
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Hold `count` blocks of no content, those unused for longest. The caller has checked `num_free`."""
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
            self._forget(block)
        return blocks

    def release(self, blocks: list[int]) -> None:
        """Let go of a request's blocks; of those that become free the last is reused first, being shared least."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if not self._references[block]:
                self._free[block] = None

    def publish(self, block: int, digest: bytes) -> None:
        """Let a full block be found by its content, unless another one with the same content already can."""
        if digest not in self._block_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def withdraw(self, blocks: Iterable[int]) -> None:
        """Let blocks no longer be found by their content."""
        for block in blocks:
            self._forget(block)

    def _forget(self, block: int) -> None:
        digest = self._digest_of[block]
        if digest is not None:
            del self._block_of[digest]
            self._digest_of[block] = None
