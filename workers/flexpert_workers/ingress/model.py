"""What the ingress knows of the served model: its tokenizer, context length and end-of-text tokens. No torch.

`server.py` loads it when the pool controller names a model; `validate.py` and `text.py` work with it.
"""

import asyncio
import json
import logging
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from flexpert_workers import allocator
from flexpert_workers.errors import CheckpointNotFound, CorruptCheckpoint, FlexpertError
from flexpert_workers.ingress.chat import ChatTemplate, load_template
from flexpert_workers.sources import Cache
from flexpert_workers.sources.bringing import Bringer

log = logging.getLogger(__name__)

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = sorted(set(range(256)) - set(_PRINTABLE))
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + n): byte for n, byte in enumerate(_OTHERS)}
"""How byte-level BPE writes bytes as characters: printable ones as themselves, the others from U+0100 on (GPT-2)."""
_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")
"""How byte-fallback tokenizers write a byte (SentencePiece)."""


class NoModel(FlexpertError):
    """No model is known yet."""


@dataclass(frozen=True)
class ServedModel:
    """A model as requests see it.

    Attributes:
        names: What a request may call it.
        source: Where its files are.
        context_length: Tokens of prompt and output together.
        vocabulary: Number of token ids.
        end_ids: Token ids that end a text.
        longest_token: Characters of the longest token: no text of n tokens is longer than n times that.
        chat_template: How chat messages become a prompt, if the checkpoint says so.
        fingerprint: Changes when another checkpoint is served.
        loaded_at: Seconds since the Unix epoch.
    """

    names: frozenset[str]
    source: str
    tokenizer: Tokenizer
    context_length: int
    vocabulary: int
    end_ids: tuple[int, ...]
    longest_token: int
    chat_template: ChatTemplate | None = None
    fingerprint: str = ""
    loaded_at: int = 0
    _texts: dict[int, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def own_name(self) -> str:
        """What to call the model where a request did not."""
        return max(self.names)

    def token_text(self, token: int) -> str:
        """The text of one token alone; special tokens show as they are written."""
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = str(self.tokenizer.decode([token], skip_special_tokens=False))
        return text

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for, also where they are no whole characters."""
        text = self.token_text(token)
        if REPLACEMENT not in text:
            return text.encode()
        piece = self.tokenizer.id_to_token(token) or ""
        if all(character in _BYTE_OF for character in piece):
            return bytes(_BYTE_OF[character] for character in piece)
        return bytes([int(piece[3:5], 16)]) if _BYTE_PIECE.fullmatch(piece) else text.encode()


class ModelHolder:
    """The model that is served now; requests wait for the first one a bounded time."""

    def __init__(self) -> None:
        self._model: ServedModel | None = None
        self._problem = "the pool controller has not named a model yet"
        self._known = asyncio.Event()

    @property
    def known(self) -> bool:
        """Whether there is a model."""
        return self._model is not None

    async def follow(self, source: str, called: frozenset[str], context_length: int, digest: str = "") -> bool:
        """Serve the model of `source` from now on; on a problem the one before goes on, and the problem is logged.

        Returns:
            Whether it is served.
        """
        current = self._model
        if current and (current.source, current.names) == (source, called | {""}):
            return True
        try:
            self._model = await asyncio.to_thread(load_model, source, called, context_length, digest)
            allocator.freeze_heap()
        except FlexpertError as error:
            self._problem = str(error)
            log.warning("model %s: %s", source, error)
            return False
        self._known.set()
        return True

    async def get(self, wait_s: float) -> ServedModel:
        """The model, once there is one.

        Raises:
            NoModel: None came within `wait_s` seconds; the message says why.
        """
        if self._model is None:
            try:
                async with asyncio.timeout(wait_s):
                    await self._known.wait()
            except TimeoutError:
                raise NoModel(self._problem) from None
        assert self._model is not None, "known is set once there is a model"
        return self._model


def load_model(source: str, called: frozenset[str], context_length: int, digest: str = "") -> ServedModel:
    """Read tokenizer and configuration from the checkpoint's folder.

    Args:
        source: As the pool controller names it; of a remote one configuration and tokenizer are fetched.
        called: Names that requests may use; the empty one is always allowed.
        context_length: As the pool controller reports it; 0 to take the configuration's.
        digest: The checkpoint's, likewise.

    Raises:
        CheckpointError: A file is missing, cannot be parsed, or cannot be fetched.
    """
    folder = Bringer(Cache.of()).small(source)
    config = _read_json(folder / "config.json")
    tokenizer = _read_tokenizer(folder / "tokenizer.json")
    text_config = config.get("text_config", config)
    tokens = tokenizer.get_vocab(with_added_tokens=True)
    return ServedModel(
        names=called | {""},
        source=source,
        tokenizer=tokenizer,
        context_length=context_length or int(text_config["max_position_embeddings"]),
        vocabulary=int(text_config.get("vocab_size", len(tokens))),
        end_ids=_end_ids(folder, text_config),
        longest_token=max(map(len, tokens), default=1),
        chat_template=_chat_template(folder),
        fingerprint=f"fp_{digest[:12]}" if digest else "",
        loaded_at=int(time.time()),
    )


def _chat_template(folder: Path) -> ChatTemplate | None:
    """The checkpoint's template; one that is broken is logged, and chat is not served."""
    path = folder / "tokenizer_config.json"
    try:
        return load_template(folder, _read_json(path) if path.is_file() else {})
    except CorruptCheckpoint as error:
        log.warning("model %s: %s", folder, error)
        return None


def _end_ids(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """The generation configuration's end-of-text ids, else the model's."""
    path = folder / "generation_config.json"
    end = _read_json(path).get("eos_token_id") if path.is_file() else None
    end = config.get("eos_token_id") if end is None else end
    if end is None:
        return ()
    return tuple(end) if isinstance(end, list) else (int(end),)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointNotFound(f"{path} does not exist") from error
    except ValueError as error:
        raise CorruptCheckpoint(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptCheckpoint(f"{path} holds no JSON object")
    return value


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise CheckpointNotFound(f"{path} does not exist")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        raise CorruptCheckpoint(f"{path} is not a tokenizer: {error}") from error
