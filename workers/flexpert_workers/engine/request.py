"""A request inside an engine, and the rules by which one is let in."""

import math
from typing import NamedTuple

import numpy as np

from flexpert_proto.tracing import Span
from flexpert_workers.errors import InvalidRequest
from flexpert_workers.messages.generation import Sampling, Submit

MAX_LOGPROBS = 20


class RequestKey(NamedTuple):
    """Who asked (the ingress's identity; empty for in-process callers), and the asker's own number for it."""

    source: bytes
    number: int


class Limits(NamedTuple):
    """What bounds a request and the queue.

    Attributes:
        cache_tokens: Tokens that the whole KV cache holds.
    """

    context_length: int
    cache_tokens: int
    vocab_size: int
    max_batch_tokens: int
    max_running: int
    max_waiting: int


class Request:
    """A request's tokens and what of them is in the cache.

    Attributes:
        tokens: [prompt + max_tokens] int64, of which `num_tokens` are known.
        num_computed: Tokens whose keys and values are in the cache.
        blocks: The request's block table.
        digests: Of its full blocks, as far as they were computed.
        suspect: It was in a pass that broke, and is tried alone next.
        num_cached: Prompt tokens that the prefix cache gave, the first time it was let in.
        request_id: What the client calls it.
        arrived_at: When it came, by the clock of `EngineMeter`.
        begun_at: When a step first computed for it.
        first_at: When it had its first token here, then having `first_output` of them.
        traceparent: Of the span that it is part of, where it is traced; its own is `span`.
    """

    __slots__ = (
        "arrived_at",
        "begun_at",
        "blocks",
        "digests",
        "first_at",
        "first_output",
        "key",
        "num_cached",
        "num_computed",
        "num_prompt",
        "num_tokens",
        "request_id",
        "sampling",
        "span",
        "stop_token_ids",
        "suspect",
        "tokens",
        "traceparent",
    )

    def __init__(self, key: RequestKey, submit: Submit) -> None:
        prompt, output = submit.prompt_ids, submit.output_ids
        self.key = key
        self.request_id = submit.request_id
        self.sampling = submit.sampling
        self.stop_token_ids = frozenset(submit.sampling.stop_token_ids)
        self.num_prompt = len(prompt)
        self.num_tokens = len(prompt) + len(output)
        self.tokens = np.zeros(self.num_prompt + submit.sampling.max_tokens, dtype=np.int64)
        self.tokens[: self.num_prompt] = prompt
        self.tokens[self.num_prompt : self.num_tokens] = output
        self.num_computed = 0
        self.num_cached: int | None = None
        self.blocks: list[int] = []
        self.digests: list[bytes] = []
        self.suspect = False
        self.arrived_at = 0.0
        self.begun_at: float | None = None
        self.first_at: float | None = None
        self.first_output = 0
        self.traceparent = submit.traceparent
        self.span: Span | None = None

    @property
    def num_output(self) -> int:
        """Tokens generated so far, those it came with included."""
        return self.num_tokens - self.num_prompt

    @property
    def num_remaining(self) -> int:
        """Known tokens that still have to go through the model: 1 while decoding, more while prefilling."""
        return self.num_tokens - self.num_computed

    def append(self, token: int) -> None:
        """Add a generated token."""
        self.tokens[self.num_tokens] = token
        self.num_tokens += 1


def check(submit: Submit, limits: Limits) -> None:
    """Let in only what cannot fail.

    Raises:
        InvalidRequest: It can never be served; `field` names what is wrong.
    """
    _check_tokens(submit, limits)
    _check_sampling(submit.sampling)
    total = len(submit.prompt_ids) + submit.sampling.max_tokens
    if total > limits.context_length:
        raise InvalidRequest(
            "max_tokens" if len(submit.prompt_ids) < limits.context_length else "prompt",
            f"{len(submit.prompt_ids)} prompt tokens and max_tokens={submit.sampling.max_tokens} exceed the model's "
            f"context of {limits.context_length} tokens",
        )
    if total > limits.cache_tokens:
        raise InvalidRequest(
            "max_tokens" if len(submit.prompt_ids) < limits.cache_tokens else "prompt",
            f"{len(submit.prompt_ids)} prompt tokens and max_tokens={submit.sampling.max_tokens} exceed the KV cache's "
            f"{limits.cache_tokens} tokens (kvCacheMemory)",
        )


def _check_tokens(submit: Submit, limits: Limits) -> None:
    if not submit.prompt_ids:
        raise InvalidRequest("prompt", "is empty")
    for field, ids in (("prompt", submit.prompt_ids), ("resume_token_ids", submit.output_ids)):
        if ids and not (min(ids) >= 0 and max(ids) < limits.vocab_size):
            raise InvalidRequest(field, f"token ids have to be in [0, {limits.vocab_size})")
    if len(submit.output_ids) >= max(submit.sampling.max_tokens, 1):
        raise InvalidRequest(
            "resume_token_ids",
            f"{len(submit.output_ids)} tokens leave nothing to generate of max_tokens={submit.sampling.max_tokens}",
        )


def _check_sampling(sampling: Sampling) -> None:
    if sampling.max_tokens < 1:
        raise InvalidRequest("max_tokens", f"has to be at least 1, not {sampling.max_tokens}")
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise InvalidRequest("temperature", f"has to be at least 0 and finite, not {sampling.temperature}")
    if not 0 < sampling.top_p <= 1:
        raise InvalidRequest("top_p", f"has to be in (0, 1], not {sampling.top_p}")
    if sampling.top_k < 0:
        raise InvalidRequest("top_k", f"has to be at least 0, not {sampling.top_k}")
    if not 0 <= sampling.seed < 2**64:
        raise InvalidRequest("seed", f"has to be in [0, 2**64), not {sampling.seed}")
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= MAX_LOGPROBS:
        raise InvalidRequest("logprobs", f"has to be in [0, {MAX_LOGPROBS}], not {sampling.logprobs}")
