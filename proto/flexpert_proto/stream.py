"""What both clients of `client.py` share: parameters, pieces, errors, and a stream across its connections."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import grpc
import grpc.aio

from flexpert_proto import generation_pb2 as pb

DEFAULT_TRIES = 6
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 2.0

_BROKEN = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED}
)


class GenerationError(Exception):
    """Root of the tree."""


class InvalidArgument(GenerationError):
    """The request can never be served; the message names the field."""


class UnknownModel(GenerationError):
    """Another model is served here."""


class Overloaded(GenerationError):
    """The ingress's bounded queue is full.

    Attributes:
        retry_after_s: Predicted wait in seconds.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(GenerationError):
    """No ingress or no engine answered within the tries."""


class GenerationFailed(GenerationError):
    """The request itself failed, or ran past its time-out."""


@dataclass(frozen=True)
class Piece:
    """Part of a stream.

    Attributes:
        text: New text; may be empty while tokens do not yet make up whole characters or may begin a stop string.
        tokens: New tokens, with log-probabilities when asked for.
        finish_reason: None but in the last piece: `pb.FINISH_STOP`, `pb.FINISH_LENGTH` or `pb.FINISH_CANCELLED`.
        usage: In the last piece.
        seed: The seed that the stream is drawn with.
    """

    request_id: str
    text: str
    tokens: tuple[pb.Token, ...]
    finish_reason: pb.FinishReason.ValueType | None
    usage: pb.Usage | None
    seed: int

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids of the new tokens."""
        return tuple(token.id for token in self.tokens)


@dataclass(frozen=True)
class Completion:
    """A whole stream.

    Attributes:
        resumed: How many times the stream broke and was resumed.
    """

    text: str
    tokens: tuple[pb.Token, ...]
    finish_reason: pb.FinishReason.ValueType
    usage: pb.Usage
    seed: int
    resumed: int

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids of all tokens."""
        return tuple(token.id for token in self.tokens)


class Parameters(TypedDict, total=False):
    """How to generate; `generation.proto` gives each parameter's range.

    Attributes:
        model: Name of the MoEDeployment; "" for whatever is served.
        max_tokens: 0 for the ingress's default (16).
        temperature: 0 is greedy; None for 1.
        top_p: In (0, 1]; None for 1.
        top_k: 0 for all.
        stop: At most 4; the text ends before the first of them.
        seed: Fixes what is drawn; None lets the ingress draw one, which each piece tells.
        logprobs: 0 for the chosen token's, n for the n most likely ones' too (at most 20), None for none.
        ignore_eos: Go on behind the end-of-text token.
    """

    model: str
    max_tokens: int
    temperature: float | None
    top_p: float | None
    top_k: int
    stop: Sequence[str]
    seed: int | None
    logprobs: int | None
    ignore_eos: bool


def make_request(prompt: str | Sequence[int], **parameters: Unpack[Parameters]) -> pb.GenerateRequest:
    """The wire form of a request: `prompt` as text or token ids.

    Raises:
        InvalidArgument: A value does not fit into its field at all (a negative count, say).
    """
    fields: dict[str, Any] = {**parameters}
    request = pb.GenerateRequest(model=fields.pop("model", ""))
    for name, value in fields.items():
        try:
            request.parameters.MergeFrom(pb.SamplingParameters(**{name: value}))
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"parameters.{name}: {error}") from error
    if isinstance(prompt, str):
        request.text = prompt
        return request
    try:
        request.token_ids.ids.extend(prompt)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"token_ids: {error}") from error
    request.token_ids.SetInParent()
    return request


class StreamState:
    """One stream across the connections it takes: what came so far, and how to go on. No I/O; used by both clients."""

    def __init__(self, request: pb.GenerateRequest, tries: int, timeout_s: float | None, now_s: float) -> None:
        self._request = request
        self._tries = tries
        self._deadline_s = None if timeout_s is None else now_s + timeout_s
        self._failures = 0
        self.num_breaks = 0
        self.token_ids: list[int] = list(request.resume_token_ids)
        self.finished = False

    def next_request(self) -> pb.GenerateRequest:
        """The request to send on a new connection: it carries the tokens that were already delivered."""
        request = pb.GenerateRequest()
        request.CopyFrom(self._request)
        del request.resume_token_ids[:]
        request.resume_token_ids.extend(self.token_ids)
        return request

    def remaining_s(self, now_s: float) -> float | None:
        """Seconds until the time-out, or None without one."""
        return None if self._deadline_s is None else max(0.001, self._deadline_s - now_s)

    def take(self, response: pb.GenerateResponse) -> Piece:
        """Note what a response delivers.

        Raises:
            GenerationFailed: It ends the stream with an error.
        """
        self._failures = 0
        if not self._request.parameters.HasField("seed"):
            self._request.parameters.seed = response.seed
        self.token_ids.extend(token.id for token in response.tokens)
        self.finished = response.finish_reason != pb.FINISH_REASON_UNSPECIFIED
        if response.finish_reason == pb.FINISH_ERROR:
            raise GenerationFailed(response.error or "the request failed at the engine")
        return Piece(
            request_id=response.request_id,
            text=response.text,
            tokens=tuple(response.tokens),
            finish_reason=response.finish_reason if self.finished else None,
            usage=response.usage if response.HasField("usage") else None,
            seed=self._request.parameters.seed,
        )

    def delay_after(self, error: grpc.RpcError | None) -> float:
        """Seconds to wait before the next connection, after `error`, or after an end without a finish reason.

        Raises:
            GenerationError: It makes no sense to try again, or the tries are used up.
        """
        translated = translate(error)
        may_retry = isinstance(translated, Unavailable) or (isinstance(translated, Overloaded) and self.token_ids)
        self._failures += 1
        self.num_breaks += 1
        if not may_retry or self._failures >= self._tries:
            raise translated from error
        if isinstance(translated, Overloaded):
            return translated.retry_after_s
        return float(min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (self._failures - 1)))


def translate(error: grpc.RpcError | None) -> GenerationError:
    """What a failed call means; None stands for a stream that ended without a finish reason."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return Unavailable("the stream ended without a finish reason; is the ingress being replaced?")
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        trailers = {str(key): value for key, value in error.trailing_metadata() or ()}
        return Overloaded(details, int(trailers.get("retry-after-ms", 1000)) / 1000)
    if code in _BROKEN:
        return Unavailable(f"{code.name}: {details}")
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidArgument(details)
    if code is grpc.StatusCode.NOT_FOUND:
        return UnknownModel(details)
    return GenerationFailed(f"{code.name}: {details}")


def collect(pieces: Sequence[Piece], state: StreamState) -> Completion:
    """The completion that all pieces of a stream make up."""
    last = pieces[-1]
    assert last.finish_reason is not None, "a stream ends with a finish reason or raises"
    return Completion(
        text="".join(piece.text for piece in pieces),
        tokens=tuple(token for piece in pieces for token in piece.tokens),
        finish_reason=last.finish_reason,
        usage=last.usage or pb.Usage(),
        seed=last.seed,
        resumed=state.num_breaks,
    )
