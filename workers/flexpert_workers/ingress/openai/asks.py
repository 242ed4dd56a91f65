"""From the body of a request to what is asked of the engines, or the parameter that is wrong. Pure; no I/O.

What OpenAI's interface has and this server does not do is refused by name, unless its value asks for nothing. Unknown
names are refused too: a parameter that was meant to change the text is never ignored.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec

from flexpert_proto import generation_pb2 as pb
from flexpert_workers.errors import InvalidRequest
from flexpert_workers.ingress.chat import Message, prompt_ids
from flexpert_workers.ingress.model import ServedModel
from flexpert_workers.messages import UNREADABLE

MAX_CHOICES = 128
"""Choices of one request: prompts times `n`."""
MAX_LOGPROBS = 20

Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Choices = Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)]
Logprobs = Annotated[int, msgspec.Meta(ge=0, le=MAX_LOGPROBS)]
Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
TopK = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Name = Annotated[str, msgspec.Meta(max_length=512)]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to stream."""

    include_usage: bool | None = None


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both interfaces have; `top_k` and `ignore_eos` are ours."""

    model: str = ""
    n: Choices | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    stop: str | list[str] | None = None
    seed: Seed | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Name | None = None


class CompletionBody(_Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`/v1/completions`."""

    prompt: Any
    logprobs: Logprobs | None = None


class ChatBody(_Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`/v1/chat/completions`."""

    messages: list[dict[str, Any]]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = None


@dataclass(frozen=True)
class Ask:
    """What a request asks for.

    Attributes:
        requests: One for each prompt.
        copies: Choices of each.
        include_usage: Whether a stream ends with the usage.
        logprobs: Whether choices have log-probabilities.
        user: Whose share of the engines it uses, if the body says so.
    """

    requests: tuple[pb.GenerateRequest, ...]
    copies: int
    stream: bool
    include_usage: bool
    logprobs: bool
    user: str


NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "metadata": (None, {}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
}
"""Parameters that are not supported, and the values that ask for nothing."""
NEUTRAL_COMPLETION: Mapping[str, tuple[Any, ...]] = {
    **NEUTRAL,
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
}
NEUTRAL_CHAT: Mapping[str, tuple[Any, ...]] = {
    **NEUTRAL,
    "audio": (None,),
    "function_call": (None, "none"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "none"),
    "tools": (None, []),
    "verbosity": (None,),
    "web_search_options": (None,),
}

B = TypeVar("B", bound=_Body)


def completion(data: bytes, model: ServedModel) -> Ask:
    """Read the body of `/v1/completions`.

    Raises:
        InvalidRequest: A parameter is wrong or not supported.
    """
    body = _read(data, CompletionBody, NEUTRAL_COMPLETION)
    prompts = _prompts(body.prompt)
    parameters = _parameters(body, body.max_tokens, body.logprobs)
    requests = tuple(_request(body.model, prompt, parameters) for prompt in prompts)
    return _ask(body, requests, logprobs=body.logprobs is not None, user=body.user)


def chat(data: bytes, model: ServedModel) -> Ask:
    """Read the body of `/v1/chat/completions`, and write its messages as the model's template does.

    Raises:
        InvalidRequest: A parameter is wrong or not supported, or the model has no template.
    """
    body = _read(data, ChatBody, NEUTRAL_CHAT)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs", "is only allowed when 'logprobs' is enabled")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidRequest("max_tokens", "and 'max_completion_tokens' are the same; give one")
    # Without a limit an answer may take what the context leaves.
    most = body.max_completion_tokens or body.max_tokens or model.context_length - 1
    ids = prompt_ids(model, [_message(message, number) for number, message in enumerate(body.messages)])
    parameters = _parameters(body, most, (body.top_logprobs or 0) if body.logprobs else None)
    user = body.safety_identifier or body.user
    return _ask(body, (_request(body.model, ids, parameters),), logprobs=bool(body.logprobs), user=user)


def _read(data: bytes, kind: type[B], neutral: Mapping[str, tuple[Any, ...]]) -> B:
    try:
        body = msgspec.json.decode(data)
    except UNREADABLE as error:
        raise InvalidRequest("body", f"could not be parsed as JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidRequest("body", "has to be a JSON object")
    for name in neutral.keys() & body.keys():
        value = body.pop(name)
        if not any(
            value == allowed and isinstance(value, bool) == isinstance(allowed, bool) for allowed in neutral[name]
        ):
            raise InvalidRequest(name, "is not supported by this server")
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise _named(error) from error


def _named(error: msgspec.ValidationError) -> InvalidRequest:
    """The parameter that msgspec's message is about."""
    message, _, path = str(error).partition(" - at `$")
    if unknown := re.search(r"contains unknown field `(.*)`", message):
        parent = path.strip("`.")
        name = f"{parent}.{unknown[1]}" if parent else unknown[1]
        return InvalidRequest(name, "is not supported by this server")
    if missing := re.search(r"missing required field `(.*)`", message):
        return InvalidRequest(missing[1], "is missing")
    return InvalidRequest(path.strip("`.") or "body", message[:1].lower() + message[1:])


def _prompts(prompt: Any) -> list[str | list[int]]:
    """One or many prompts, each as text or token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if _is_ids(prompt):
        return [prompt]
    if isinstance(prompt, list) and all(isinstance(one, str) or _is_ids(one) for one in prompt) and prompt:
        return list(prompt)
    raise InvalidRequest("prompt", "has to be a string, a list of token ids, or a list of either, and not empty")


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


def _message(message: Mapping[str, Any], number: int) -> Message:
    field = f"messages[{number}]"
    unsupported = sorted(name for name, value in message.items() if name not in _MESSAGE and value is not None)
    if unsupported:
        raise InvalidRequest(f"{field}.{unsupported[0]}", "is not supported by this server")
    role = message.get("role")
    if role not in _ROLES:
        raise InvalidRequest(f"{field}.role", f"has to be one of {', '.join(_ROLES)}, not {role!r}")
    name = message.get("name")
    if not isinstance(name, str | None):
        raise InvalidRequest(f"{field}.name", "has to be a string")
    return Message(_ROLES[role], _content(message.get("content"), f"{field}.content"), name)


_MESSAGE = ("role", "content", "name")
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def _content(content: Any, field: str) -> str:
    """Text, or the texts of a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise InvalidRequest(field, "has to be a string or a list of parts of type 'text'")
    for number, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InvalidRequest(f"{field}[{number}]", "has to be a part of type 'text'; no other is supported")
    return "".join(part["text"] for part in content)


def _parameters(body: _Body, max_tokens: int | None, logprobs: int | None) -> pb.SamplingParameters:
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return pb.SamplingParameters(
        max_tokens=max_tokens or 0,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k or 0,
        stop=stops,
        seed=None if body.seed is None else body.seed % 2**64,
        logprobs=logprobs,
        ignore_eos=bool(body.ignore_eos),
    )


def _request(model: str, prompt: str | list[int], parameters: pb.SamplingParameters) -> pb.GenerateRequest:
    request = pb.GenerateRequest(model=model, parameters=parameters)
    if isinstance(prompt, str):
        request.text = prompt
        return request
    try:
        request.token_ids.ids.extend(prompt)
    except ValueError as error:
        raise InvalidRequest("prompt", f"holds what is no token id: {error}") from error
    return request


def _ask(body: _Body, requests: tuple[pb.GenerateRequest, ...], *, logprobs: bool, user: str | None) -> Ask:
    copies = body.n or 1
    if len(requests) * copies > MAX_CHOICES:
        raise InvalidRequest("n", f"{len(requests)} prompts times {copies} are more than {MAX_CHOICES} choices")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options", "is only allowed when 'stream' is enabled")
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return Ask(requests, copies, bool(body.stream), usage, logprobs, user or "")


Read = Callable[[bytes, ServedModel], Ask]
