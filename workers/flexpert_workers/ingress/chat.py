"""Chat messages as the model's own template writes them. Used by `openai/asks.py`; `model.py` loads the template.

A template is Jinja that came with the checkpoint; it runs in Jinja's immutable sandbox, with what transformers gives
it: `messages`, `add_generation_prompt`, the special tokens, `raise_exception`, `strftime_now` and the filter `tojson`.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from msgspec import Struct

from flexpert_workers.errors import CorruptCheckpoint, InvalidRequest

if TYPE_CHECKING:
    from flexpert_workers.ingress.model import ServedModel

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Message(Struct, frozen=True):
    """What one party said."""

    role: str
    content: str
    name: str | None = None


class ChatTemplate:
    """A checkpoint's template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile.

        Raises:
            CorruptCheckpoint: The template is not valid Jinja.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise CorruptCheckpoint(f"the chat template is not valid at line {error.lineno}: {error}") from error

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt that asks for the assistant's next message.

        Raises:
            InvalidRequest: The template refuses the messages, or breaks over them.
        """
        shown = [_shown(message) for message in messages]
        try:
            return self._template.render(messages=shown, add_generation_prompt=True, **self._special_tokens)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise InvalidRequest("messages", f"the model's chat template refuses them: {error}") from error


def load_template(folder: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
    """The template of a checkpoint: `chat_template.jinja`, else the one in `tokenizer_config.json`, else None.

    Raises:
        CorruptCheckpoint: It is not valid.
    """
    path = folder / "chat_template.jinja"
    source = path.read_text() if path.is_file() else _configured(config.get("chat_template"))
    if source is None:
        return None
    tokens = {name: _written(config[name]) for name in SPECIAL_TOKENS if config.get(name)}
    return ChatTemplate(source, tokens)


def prompt_ids(model: "ServedModel", messages: Sequence[Message]) -> list[int]:
    """Token ids of the prompt that messages make; the template writes the special tokens itself.

    Raises:
        InvalidRequest: There are no messages, no template, or they are longer than any context.
    """
    if model.chat_template is None:
        raise InvalidRequest("messages", "this model has no chat template; use /v1/completions")
    if not messages:
        raise InvalidRequest("messages", "is empty; give at least one")
    text = model.chat_template.render(messages)
    longest = model.longest_token * model.context_length
    if len(text) > longest:
        raise InvalidRequest("messages", f"make {len(text)} characters; the model's context holds {longest} at most")
    return list(model.tokenizer.encode(text, add_special_tokens=False).ids)


def _shown(message: Message) -> dict[str, str]:
    shown = {"role": message.role, "content": message.content}
    return shown if message.name is None else {**shown, "name": message.name}


def _configured(value: Any) -> str | None:
    """A configuration has one template, or a list of named ones."""
    if isinstance(value, list):
        value = next((one.get("template") for one in value if one.get("name") == "default"), None)
    return value if isinstance(value, str) else None


def _written(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> Never:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now(datetime.UTC).strftime(pattern)
