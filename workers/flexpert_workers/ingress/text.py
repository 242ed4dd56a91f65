"""From token ids to text, piece by piece: whole characters only, and never past a stop string.

What has been said after n tokens depends on those n tokens alone, not on how they were batched: so a stream that is
resumed elsewhere goes on at the very character where the first one stopped.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Decodes one token at a time.

    A token's text depends on those before it (a space may be dropped at the start, a character may span tokens), so
    the ids since the last complete piece are decoded together with that piece, and what is new is the text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._context_text = ""
        self._pending: list[int] = []

    def add(self, token: int) -> str:
        """The text that `token` completes; "" while a character is incomplete."""
        self._pending.append(token)
        text = self._decode(self._context + self._pending)
        if text.endswith(REPLACEMENT) or len(text) <= len(self._context_text):
            return ""
        return self._accept(text)

    def flush(self) -> str:
        """What is left when no more tokens come; incomplete characters become replacement characters."""
        return self._accept(self._decode(self._context + self._pending)) if self._pending else ""

    def _accept(self, text: str) -> str:
        new = text[len(self._context_text) :]
        is_first = not self._context
        self._context, self._pending = self._pending, []
        self._context_text = text if is_first else self._decode(self._context)
        return new

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


class StopMatcher:
    """Passes text through, but for what may begin a stop string, until one is complete."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def feed(self, text: str) -> str:
        """What can be said after `text` came; sets `matched` when a stop string is complete, and ends before it."""
        text = self._held + text
        found = [start for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.matched = True
            self._held = ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
