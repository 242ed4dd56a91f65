"""Text piece by piece: whole characters, stop strings, and the same after a resumption as without."""

import random

import pytest

from flexpert_workers.ingress.caller import Caller
from flexpert_workers.ingress.model import ServedModel
from flexpert_workers.ingress.streams import Stream, TokenGap
from flexpert_workers.ingress.text import Detokenizer, StopMatcher
from flexpert_workers.ingress.validate import CheckedRequest
from flexpert_workers.messages.generation import Finish, Sampling, TokenOutput

TEXT = "def grüße(世界):\n    return '🙂🙂' + \"\N{REPLACEMENT CHARACTER}\" # naïve\n"


def pieces_of(ids: list[int], model: ServedModel) -> list[str]:
    detokenizer = Detokenizer(model.tokenizer)
    return [*(detokenizer.add(token) for token in ids), detokenizer.flush()]


def test_pieces_join_to_the_text_and_hold_whole_characters(model: ServedModel) -> None:
    ids = model.tokenizer.encode(TEXT).ids
    pieces = pieces_of(ids, model)
    assert "".join(pieces) == TEXT
    assert "" in pieces[:-1], "a character of four bytes takes several tokens"
    for piece in pieces:
        assert piece.count("\N{REPLACEMENT CHARACTER}") <= TEXT.count("\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize("seed", range(20))
def test_any_tokens_join_to_what_the_tokenizer_makes_of_them(model: ServedModel, seed: int) -> None:
    draw = random.Random(seed)
    ids = [draw.choice([draw.randrange(300), draw.randrange(1, 257), 0]) for _ in range(60)]
    assert "".join(pieces_of(ids, model)) == model.tokenizer.decode(ids)


def test_an_incomplete_character_at_the_end_becomes_a_replacement(model: ServedModel) -> None:
    ids = model.tokenizer.encode("🙂").ids
    assert pieces_of(ids[:-1], model)[-1] == model.tokenizer.decode(ids[:-1])


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("stops", "text", "said", "matched"),
    [
        (("\n\n",), "a\nb\n\nc", "a\nb", True),
        (("END",), "the EN and E of ENDING", "the EN and E of ", True),
        (("abc", "b"), "xxabd", "xxa", True),
        (("zz",), "pizza", "pi", True),
        (("zz",), "jazz", "ja", True),
        (("zz",), "a z", "a z", False),
        ((), "anything", "anything", False),
        (("aab",), "aaaab", "aa", True),
    ],
)
def test_text_ends_before_a_stop_string(stops: tuple[str, ...], text: str, said: str, matched: bool, size: int) -> None:
    matcher = StopMatcher(stops)
    out = ""
    for start in range(0, len(text), size):
        out += matcher.feed(text[start : start + size])
        assert said.startswith(out), "nothing is said that may belong to a stop string"
        if matcher.matched:
            break
    else:
        out += matcher.flush()
    assert (out, matcher.matched) == (said, matched)


def stream_of(model: ServedModel, stops: tuple[str, ...] = (), resume: tuple[int, ...] = ()) -> Stream:
    sampling = Sampling(max_tokens=1000, stop_token_ids=(0,))
    return Stream(CheckedRequest(model, (1,), resume, sampling, stops), Caller("c", "r"))


def whole(stream: Stream, ids: list[int]) -> str:
    text = ""
    for position, token in list(enumerate(ids))[len(stream.output_ids) :]:
        finish = Finish.LENGTH if position == len(ids) - 1 else None
        text += stream.take(TokenOutput(1, (token,), position, finish=finish)).text
        if stream.finish:
            break
    return text


@pytest.mark.parametrize("stops", [(), ("'🙂🙂' +",), ("naïvely",)])
def test_a_resumed_stream_goes_on_at_the_very_character(model: ServedModel, stops: tuple[str, ...]) -> None:
    ids = model.tokenizer.encode(TEXT).ids
    complete = whole(stream_of(model, stops), ids)
    assert complete == (TEXT.split(stops[0])[0] if stops else TEXT)
    for cut in range(len(ids)):
        first = stream_of(model, stops)
        said = "".join(first.take(TokenOutput(1, (token,), n)).text for n, token in enumerate(ids[:cut]))
        if first.finish is not None:
            break
        second = stream_of(model, stops, tuple(ids[:cut]))
        assert second.resume() is None
        assert said + whole(second, ids) == complete


def test_one_batch_says_what_single_tokens_say(model: ServedModel) -> None:
    ids = model.tokenizer.encode(TEXT).ids
    batched = stream_of(model, ("naïvely",)).take(TokenOutput(1, tuple(ids[:-3]), 0)).text
    single = stream_of(model, ("naïvely",))
    assert batched == "".join(single.take(TokenOutput(1, (token,), n)).text for n, token in enumerate(ids[:-3]))


def test_nothing_follows_a_stop_within_a_batch(model: ServedModel) -> None:
    stream = stream_of(model)
    delta = stream.take(TokenOutput(1, (400, 0, 401), 0))
    assert (delta.text, [token.id for token in delta.tokens], delta.finish) == ("word400 ", [400, 0], Finish.STOP)


def test_known_tokens_are_dropped_and_missing_ones_noticed(model: ServedModel) -> None:
    stream = stream_of(model)
    stream.take(TokenOutput(1, (400, 401), 0))
    assert [token.id for token in stream.take(TokenOutput(1, (401, 402), 1)).tokens] == [402]
    assert stream.take(TokenOutput(1, (400,), 0)).tokens == ()
    with pytest.raises(TokenGap):
        stream.take(TokenOutput(1, (404,), 4))
