"""The record of a stream: its request, the tokens so far, and the text they make. No I/O.

`balancer.py` submits it to engines, as often as it takes; `intake.py` makes it and hands on what it says.
"""

from dataclasses import dataclass

from flexpert_proto.tracing import Span
from flexpert_workers.ingress.caller import Caller
from flexpert_workers.ingress.text import Detokenizer, StopMatcher
from flexpert_workers.ingress.validate import CheckedRequest
from flexpert_workers.messages.generation import Finish, Submit, TokenOutput


class TokenGap(Exception):
    """An engine skipped tokens; the attempt cannot be used."""


@dataclass(frozen=True)
class NewToken:
    """A token to tell the client.

    Attributes:
        logprob: None when not asked for.
        top: (id, logprob) of the most likely tokens, when asked for.
    """

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Delta:
    """What is new in a stream; the last one has a finish."""

    tokens: tuple[NewToken, ...]
    text: str
    finish: Finish | None


class Stream:
    """A request while it runs.

    Attributes:
        output_ids: The tokens so far, resumed ones first.
        cached_tokens: Prompt tokens that the first engine had in its prefix cache.
        finish: Why it ended, or None.
        arrived_at: When its request came, by the clock of `IngressMeter`.
        first_at: When the first new tokens came; then it had `first_output`.
        span: Where the request is traced.
    """

    def __init__(self, request: CheckedRequest, caller: Caller) -> None:
        self.request = request
        self.caller = caller
        self.output_ids: list[int] = []
        self.cached_tokens = 0
        self.finish: Finish | None = None
        self.arrived_at = 0.0
        self.first_at: float | None = None
        self.first_output = 0
        self.span: Span | None = None
        self._detokenizer = Detokenizer(request.model.tokenizer)
        self._matcher = StopMatcher(request.stops)

    def resume(self) -> Delta | None:
        """Take in the tokens that an earlier stream delivered, saying nothing: the client has their text.

        Returns:
            The end of the stream, if those tokens already end it.
        """
        for token in self.request.resume_ids:
            self._add(token)
            if self.finish is not None:
                break
        if self.finish is None and len(self.output_ids) >= self.request.sampling.max_tokens:
            self.finish = Finish.LENGTH
        return None if self.finish is None else Delta((), self._rest(), self.finish)

    def submission(self, number: int) -> Submit:
        """What to send to an engine to go on from here."""
        request = self.request
        traceparent = self.caller.traceparent if self.span is None else self.span.traceparent
        output_ids, request_id = tuple(self.output_ids), self.caller.request_id
        return Submit(number, request.prompt_ids, output_ids, request.sampling, request_id, traceparent)

    def take(self, output: TokenOutput) -> Delta:
        """Take in what an engine sent; tokens that are already there are dropped.

        Raises:
            TokenGap: Tokens are missing before these.
        """
        known = len(self.output_ids) - output.position
        if known < 0:
            raise TokenGap(f"position {output.position} follows token {len(self.output_ids)}")
        if not self.output_ids:
            self.cached_tokens = output.cached_tokens
        tokens: list[NewToken] = []
        text = ""
        for index in range(known, len(output.token_ids)):
            text += self._add(output.token_ids[index])
            tokens.append(_new_token(output, index))
            if self.finish is not None:
                break
        if self.finish is None:
            self.finish = output.finish
        return Delta(tuple(tokens), text + self._rest(), self.finish)

    def _add(self, token: int) -> str:
        """Append a token; returns the text it lets out."""
        self.output_ids.append(token)
        if token in self.request.sampling.stop_token_ids:
            self.finish = Finish.STOP
            return ""
        text = self._matcher.feed(self._detokenizer.add(token))
        if self._matcher.matched:
            self.finish = Finish.STOP
        return text

    def _rest(self) -> str:
        """At the end, the text that was held back."""
        if self.finish is None or self._matcher.matched:
            return ""
        return self._matcher.feed(self._detokenizer.flush()) + ("" if self._matcher.matched else self._matcher.flush())


def merge(deltas: list[Delta]) -> Delta:
    """Several deltas of a stream, in order, as one."""
    tokens = tuple(token for delta in deltas for token in delta.tokens)
    return Delta(tokens, "".join(delta.text for delta in deltas), deltas[-1].finish)


def _new_token(output: TokenOutput, index: int) -> NewToken:
    logprob = output.logprobs[index] if index < len(output.logprobs) else None
    return NewToken(output.token_ids[index], logprob, output.top[index] if index < len(output.top) else ())
