"""Which engine may still have a prompt's beginning in its cache, judged by what it was sent. Used by `fleet.py`.

An engine keeps blocks of prompts that it has computed and finds them by their content, until it needs their room for
others. The ingress does not see that cache: it notes the beginnings it sent, as many as the cache holds. Where it is
wrong, because other ingresses send too, a request is computed from its start, as it would be elsewhere.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

CHUNK_TOKENS = 16
MAX_CHUNKS = 32_768
"""Chunks noted for an engine at most; those not used for longest are forgotten first."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as routing sees it.

    Attributes:
        chunks: For each whole chunk a number that stands for it and all before it.
    """

    num_tokens: int
    chunks: tuple[int, ...]


def prompt_of(ids: Sequence[int]) -> Prompt:
    """The prompt with these token ids."""
    chunks = []
    parent = 0
    for end in range(CHUNK_TOKENS, len(ids) + 1, CHUNK_TOKENS):
        parent = hash((parent, tuple(ids[end - CHUNK_TOKENS : end])))
        chunks.append(parent)
    return Prompt(len(ids), tuple(chunks))


class PrefixIndex:
    """The beginnings that one engine was sent."""

    def __init__(self) -> None:
        self._chunks: OrderedDict[int, None] = OrderedDict()

    def match_tokens(self, prompt: Prompt) -> int:
        """Tokens of the longest beginning that was sent before."""
        count = 0
        for chunk in prompt.chunks:
            if chunk not in self._chunks:
                break
            count += 1
        return count * CHUNK_TOKENS

    def note(self, prompt: Prompt, cache_tokens: int | None) -> None:
        """The engine, whose cache holds so many tokens, was sent this prompt."""
        most = MAX_CHUNKS if cache_tokens is None else min(MAX_CHUNKS, cache_tokens // CHUNK_TOKENS)
        for chunk in prompt.chunks:
            self._chunks[chunk] = None
            self._chunks.move_to_end(chunk)
        while len(self._chunks) > most:
            self._chunks.popitem(last=False)
