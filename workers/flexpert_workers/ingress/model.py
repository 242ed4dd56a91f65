"""What the ingress knows of the served model: its tokenizer, context length and end-of-text tokens. No torch.

`server.py` loads it when the pool controller names a model; `validate.py` and `text.py` work with it.
"""

import asyncio
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from flexpert_proto import names
from flexpert_workers.errors import CheckpointNotFound, CorruptCheckpoint, FlexpertError

log = logging.getLogger(__name__)


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
    """

    names: frozenset[str]
    source: str
    tokenizer: Tokenizer
    context_length: int
    vocabulary: int
    end_ids: tuple[int, ...]
    longest_token: int

    def token_text(self, token: int) -> str:
        """The text of one token alone; special tokens show as they are written."""
        return str(self.tokenizer.decode([token], skip_special_tokens=False))


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

    async def follow(self, source: str, called: frozenset[str], context_length: int) -> None:
        """Serve the model of `source` from now on; on a problem the one before goes on, and the problem is logged."""
        current = self._model
        if current and (current.source, current.names) == (source, called | {""}):
            return
        try:
            self._model = await asyncio.to_thread(load_model, source, called, context_length)
        except (FlexpertError, names.ModelSourceError) as error:
            self._problem = str(error)
            log.warning("model %s: %s", source, error)
        else:
            self._known.set()

    async def get(self, wait_s: float) -> ServedModel:
        """The model, once there is one.

        Raises:
            NoModel: None came within `wait_s` seconds; the message says why.
        """
        try:
            async with asyncio.timeout(wait_s):
                await self._known.wait()
        except TimeoutError:
            raise NoModel(self._problem) from None
        assert self._model is not None, "known is set once there is a model"
        return self._model


def load_model(source: str, called: frozenset[str], context_length: int) -> ServedModel:
    """Read tokenizer and configuration from the checkpoint's folder.

    Args:
        source: "file:///…" or "pvc://…".
        called: Names that requests may use; the empty one is always allowed.
        context_length: As the pool controller reports it; 0 to take the configuration's.

    Raises:
        CheckpointNotFound: The folder or a file is missing.
        CorruptCheckpoint: A file cannot be parsed.
        names.ModelSourceError: The source is of no known form.
    """
    folder = names.model_path(source)
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
    )


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
