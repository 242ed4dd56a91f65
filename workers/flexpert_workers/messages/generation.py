"""Ingress ↔ engine: framed, batched, one MessagePack list of tagged structs a ZeroMQ message.

The ingress (DEALER) connects to the engine (ROUTER). It submits and cancels; the engine answers with batches, one a
step, of what every request of that ingress got. A request is known by the ingress's own number for it.
"""

import enum

import msgspec


class Sampling(msgspec.Struct, frozen=True):
    """How to draw tokens.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 is all.
        seed: With the absolute position it fixes the noise of each draw.
        logprobs: None for none; n for the chosen token's and the n most likely ones'.
        stop_token_ids: Ids that end the text; empty when EOS is ignored.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    logprobs: int | None = None
    stop_token_ids: tuple[int, ...] = ()


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Run a request: `prompt_ids` and the `output_ids` it already has (when resumed), of `sampling.max_tokens`.

    Attributes:
        request_id: The client's name for it, for logs.
        traceparent: Of the span that it belongs to, where it is traced.
    """

    request: int
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    sampling: Sampling
    request_id: str = ""
    traceparent: str = ""


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Forget a request and free its pages; no further output comes for it."""

    request: int


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Ask for a `Pong`, to know that the engine's loop runs."""


GenerationRequest = Submit | Cancel | Ping


class Finish(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class TokenOutput(msgspec.Struct, frozen=True, tag=True):
    """New tokens of a request, in order.

    Attributes:
        token_ids: The tokens; a stop token is included.
        position: How many output tokens came before these: a gap or repetition shows.
        logprobs: Of each token, when asked for.
        top: Of each token, the (id, logprob) most likely, when asked for.
        cached_tokens: Prompt tokens served from the prefix cache.
    """

    request: int
    token_ids: tuple[int, ...]
    position: int
    logprobs: tuple[float, ...] = ()
    top: tuple[tuple[tuple[int, float], ...], ...] = ()
    finish: Finish | None = None
    cached_tokens: int = 0


class Rejected(msgspec.Struct, frozen=True, tag=True):
    """A request that was not let in, or failed by itself.

    Attributes:
        kind: "invalid" (never resubmit; `field` names it), "overloaded" (elsewhere or later), "draining"
            (elsewhere), "error" (this request broke; the message says how).
    """

    request: int
    kind: str
    message: str
    field: str = ""


class Pong(msgspec.Struct, frozen=True, tag=True):
    """The engine's loop runs."""

    running: int
    waiting: int


GenerationReply = TokenOutput | Rejected | Pong
