"""What is answered: bodies and chunks of both interfaces, from the deltas of their streams. Pure.

One `Answer` is made for each request; `endpoints.py` feeds it deltas and sends what it gives.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from flexpert_workers.ingress.model import ServedModel
from flexpert_workers.ingress.openai.asks import Ask
from flexpert_workers.ingress.streams import Delta, NewToken, Stream

Body = dict[str, Any]


class Answer(ABC):
    """The answer to one request, as a whole or in chunks."""

    id_prefix: ClassVar[str]
    whole: ClassVar[str]
    chunk: ClassVar[str]

    def __init__(self, ask: Ask, streams: Sequence[Stream], created: int) -> None:
        model = streams[0].request.model
        self._ask = ask
        self._streams = streams
        self._head = {
            "id": f"{self.id_prefix}-{streams[0].caller.request_id}",
            "created": created,
            "model": ask.requests[0].model or model.own_name,
            "system_fingerprint": model.fingerprint,
        }
        self._offsets = [0] * len(streams)

    def chunks(self, index: int, delta: Delta) -> list[Body]:
        """What to send of a delta of a choice; nothing where it says nothing yet."""
        if not (delta.text or delta.finish or (self._ask.logprobs and delta.tokens)):
            return []
        return [self._with_choices([choice]) for choice in self._pieces(index, delta)]

    def usage_chunk(self) -> Body:
        """The last chunk of a stream that asked for the usage."""
        return {**self._head, "object": self.chunk, "choices": [], "usage": self.usage()}

    def body(self, deltas: Sequence[Delta]) -> Body:
        """The whole answer, from each choice's whole delta."""
        choices = [self._choice(index, delta) for index, delta in enumerate(deltas)]
        return {**self._head, "object": self.whole, "choices": choices, "usage": self.usage()}

    def usage(self) -> Body:
        """Tokens of the prompts, each counted once, and of all choices."""
        prompts = self._streams[:: self._ask.copies]
        prompt = sum(len(stream.request.prompt_ids) for stream in prompts)
        completion = sum(len(stream.output_ids) for stream in self._streams)
        cached = sum(stream.cached_tokens for stream in prompts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _with_choices(self, choices: list[Body]) -> Body:
        body = {**self._head, "object": self.chunk, "choices": choices}
        return {**body, "usage": None} if self._ask.include_usage else body

    @abstractmethod
    def _pieces(self, index: int, delta: Delta) -> list[Body]:
        """The choices of a delta's chunks."""

    @abstractmethod
    def _choice(self, index: int, delta: Delta) -> Body:
        """A choice of the whole answer."""


class CompletionAnswer(Answer):
    """`/v1/completions`."""

    id_prefix = "cmpl"
    whole = chunk = "text_completion"

    def _pieces(self, index: int, delta: Delta) -> list[Body]:
        return [self._choice(index, delta)]

    def _choice(self, index: int, delta: Delta) -> Body:
        return {
            "index": index,
            "text": delta.text,
            "logprobs": self._logprobs(index, delta.tokens) if self._ask.logprobs else None,
            "finish_reason": delta.finish,
        }

    def _logprobs(self, index: int, tokens: Sequence[NewToken]) -> Body:
        model = self._streams[index].request.model
        names = [_name(token.id, model) for token in tokens]
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(model.token_text(token.id))
        return {
            "tokens": names,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [_best(token, name, model) for token, name in zip(tokens, names, strict=True)],
            "text_offset": offsets,
        }


class ChatAnswer(Answer):
    """`/v1/chat/completions`."""

    id_prefix = "chatcmpl"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def __init__(self, ask: Ask, streams: Sequence[Stream], created: int) -> None:
        super().__init__(ask, streams, created)
        self._begun: set[int] = set()

    def _pieces(self, index: int, delta: Delta) -> list[Body]:
        pieces = []
        if index not in self._begun:
            self._begun.add(index)
            pieces.append(_chat_piece(index, {"role": "assistant", "content": "", "refusal": None}, None, None))
        if delta.text or (self._ask.logprobs and delta.tokens):
            logprobs = self._logprobs(index, delta.tokens) if self._ask.logprobs else None
            pieces.append(_chat_piece(index, {"content": delta.text}, logprobs, None))
        if delta.finish:
            pieces.append(_chat_piece(index, {}, None, delta.finish))
        return pieces

    def _choice(self, index: int, delta: Delta) -> Body:
        return {
            "index": index,
            "message": {"role": "assistant", "content": delta.text, "refusal": None},
            "logprobs": self._logprobs(index, delta.tokens) if self._ask.logprobs else None,
            "finish_reason": delta.finish,
        }

    def _logprobs(self, index: int, tokens: Sequence[NewToken]) -> Body:
        model = self._streams[index].request.model
        content = [
            {
                **_token(token.id, token.logprob, model),
                "top_logprobs": [_token(id_, logprob, model) for id_, logprob in token.top],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}


def model_body(name: str, model: ServedModel) -> Body:
    """A model as `/v1/models` describes it."""
    return {"id": name, "object": "model", "created": model.loaded_at, "owned_by": "flexpert"}


def _chat_piece(index: int, delta: Mapping[str, Any], logprobs: Body | None, finish: str | None) -> Body:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _token(token: int, logprob: float | None, model: ServedModel) -> Body:
    return {"token": model.token_text(token), "logprob": logprob, "bytes": list(model.token_bytes(token))}


def _name(token: int, model: ServedModel) -> str:
    r"""A token's text; one that is a part of a character is named by its bytes, as OpenAI does: `bytes:\xe2\x82`."""
    raw = model.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _best(token: NewToken, name: str, model: ServedModel) -> dict[str, float | None]:
    """The likeliest tokens, and the chosen one if it is not among them."""
    return {**{_name(id_, model): logprob for id_, logprob in token.top}, name: token.logprob}
