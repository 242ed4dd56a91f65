"""From what a client sent to a request that an engine can run, or an error that names the field. Pure.

`intake.py` calls it for each request before anything else happens to it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from flexpert_proto import generation_pb2 as pb
from flexpert_workers.errors import FlexpertError, InvalidRequest
from flexpert_workers.ingress.model import ServedModel
from flexpert_workers.messages.generation import Sampling

DEFAULT_MAX_TOKENS = 16
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_LOGPROBS = 20


class UnknownModel(FlexpertError):
    """The request names a model that is not served here."""


@dataclass(frozen=True)
class CheckedRequest:
    """A request that can be run.

    Attributes:
        prompt_ids: At least one, and fewer than the context holds.
        resume_ids: Tokens that an earlier stream delivered.
        sampling: `max_tokens` counts the resumed ones too and keeps within the context.
        stops: Strings that the text ends before.
    """

    model: ServedModel
    prompt_ids: tuple[int, ...]
    resume_ids: tuple[int, ...]
    sampling: Sampling
    stops: tuple[str, ...]


def check_request(request: pb.GenerateRequest, model: ServedModel, draw_seed: Callable[[], int]) -> CheckedRequest:
    """Check every field and fill in the defaults.

    Args:
        request: As it came from the wire.
        model: What is served.
        draw_seed: Called when the client gave no seed.

    Raises:
        UnknownModel: The request names another model.
        InvalidRequest: A field is out of its range; the message says which and what the range is.
    """
    check_name(request.model, model)
    stops = _check_stops(request.parameters)
    prompt_ids = _check_prompt(request, model)
    sampling = _check_sampling(request.parameters, model, model.context_length - len(prompt_ids), draw_seed)
    resume_ids = _check_ids("resume_token_ids", tuple(request.resume_token_ids), model)
    if len(resume_ids) > sampling.max_tokens:
        raise InvalidRequest("resume_token_ids", f"{len(resume_ids)} tokens; max_tokens is {sampling.max_tokens}")
    return CheckedRequest(model, prompt_ids, resume_ids, sampling, stops)


def check_name(name: str, model: ServedModel) -> None:
    """Raise `UnknownModel` unless the model is called so."""
    if name not in model.names:
        served = ", ".join(sorted(name for name in model.names if name)) or "one without a name"
        raise UnknownModel(f"model {name!r} is not served here; what is: {served}")


def _check_prompt(request: pb.GenerateRequest, model: ServedModel) -> tuple[int, ...]:
    kind = request.WhichOneof("prompt")
    if kind == "token_ids":
        field, ids = "token_ids", _check_ids("token_ids", tuple(request.token_ids.ids), model)
    else:
        field, ids = "text", encode(request.text, model)
    if not ids:
        raise InvalidRequest(field, "the prompt is empty; give at least one token")
    if len(ids) >= model.context_length:
        raise InvalidRequest(
            field,
            f"the prompt has {len(ids)} tokens; the model's context is {model.context_length}, one less for a prompt",
        )
    return ids


def encode(text: str, model: ServedModel) -> tuple[int, ...]:
    """Token ids of `text`.

    Raises:
        InvalidRequest: The text is longer than any that the context could hold; it is not even tokenised.
    """
    longest = model.longest_token * model.context_length
    if len(text) > longest:
        raise InvalidRequest(
            "text",
            f"the prompt has {len(text)} characters; the model's context of {model.context_length} tokens holds "
            f"{longest} at most",
        )
    return tuple(model.tokenizer.encode(text).ids)


def _check_ids(field: str, ids: tuple[int, ...], model: ServedModel) -> tuple[int, ...]:
    for position, token in enumerate(ids):
        if token >= model.vocabulary:
            raise InvalidRequest(f"{field}[{position}]", f"{token} is not below the vocabulary's {model.vocabulary}")
    return ids


def _check_sampling(
    parameters: pb.SamplingParameters, model: ServedModel, room: int, draw_seed: Callable[[], int]
) -> Sampling:
    temperature = parameters.temperature if parameters.HasField("temperature") else 1.0
    if not (math.isfinite(temperature) and temperature >= 0):
        raise InvalidRequest("parameters.temperature", f"{temperature:g} is not a finite number of at least 0")
    top_p = parameters.top_p if parameters.HasField("top_p") else 1.0
    if not 0 < top_p <= 1:
        raise InvalidRequest("parameters.top_p", f"{top_p:g} is not in (0, 1]")
    logprobs = parameters.logprobs if parameters.HasField("logprobs") else None
    if logprobs is not None and logprobs > MAX_LOGPROBS:
        raise InvalidRequest("parameters.logprobs", f"{logprobs} is more than {MAX_LOGPROBS}")
    if parameters.max_tokens >= model.context_length:
        raise InvalidRequest(
            "parameters.max_tokens",
            f"{parameters.max_tokens} does not fit into the model's context of {model.context_length} with a prompt",
        )
    return Sampling(
        max_tokens=min(parameters.max_tokens or DEFAULT_MAX_TOKENS, room),
        temperature=temperature,
        top_p=top_p,
        top_k=min(parameters.top_k, model.vocabulary),
        seed=parameters.seed if parameters.HasField("seed") else draw_seed(),
        logprobs=logprobs,
        stop_token_ids=() if parameters.ignore_eos else model.end_ids,
    )


def _check_stops(parameters: pb.SamplingParameters) -> tuple[str, ...]:
    if len(parameters.stop) > MAX_STOPS:
        raise InvalidRequest("parameters.stop", f"{len(parameters.stop)} strings are more than {MAX_STOPS}")
    for position, stop in enumerate(parameters.stop):
        if not 0 < len(stop) <= MAX_STOP_CHARACTERS:
            raise InvalidRequest(f"parameters.stop[{position}]", f"must have 1 to {MAX_STOP_CHARACTERS} characters")
    return tuple(parameters.stop)
