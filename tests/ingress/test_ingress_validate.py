"""Every field of a request, in and out of its range."""

import math
from typing import Any

import pytest

from flexpert_proto import generation_pb2 as pb
from flexpert_workers.errors import InvalidRequest
from flexpert_workers.ingress.model import ServedModel
from flexpert_workers.ingress.validate import UnknownModel, check_request

CONTEXT_LENGTH = 256


def request(text: str = "import os", **parameters: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(text=text, parameters=pb.SamplingParameters(**parameters))


def check(message: pb.GenerateRequest, model: ServedModel) -> Any:
    return check_request(message, model, draw_seed=lambda: 77)


def test_defaults(model: ServedModel) -> None:
    checked = check(request(), model)
    sampling = checked.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (16, 1.0, 1.0, 0)
    assert (sampling.seed, sampling.logprobs, sampling.stop_token_ids) == (77, None, (0,))
    assert checked.prompt_ids == tuple(model.tokenizer.encode("import os").ids)


def test_what_the_client_says_counts(model: ServedModel) -> None:
    given = {"max_tokens": 3, "temperature": 0.0, "top_p": 0.5, "top_k": 7, "seed": 0, "logprobs": 0}
    checked = check(request(**given, ignore_eos=True, stop=["a", "b"]), model)
    sampling = checked.sampling
    assert {name: getattr(sampling, name) for name in given} == given
    assert sampling.stop_token_ids == ()
    assert checked.stops == ("a", "b")


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"temperature": -0.1}, "parameters.temperature"),
        ({"temperature": math.nan}, "parameters.temperature"),
        ({"temperature": math.inf}, "parameters.temperature"),
        ({"top_p": 0.0}, "parameters.top_p"),
        ({"top_p": 1.01}, "parameters.top_p"),
        ({"top_p": math.nan}, "parameters.top_p"),
        ({"logprobs": 21}, "parameters.logprobs"),
        ({"max_tokens": CONTEXT_LENGTH}, "parameters.max_tokens"),
        ({"stop": ["a"] * 5}, "parameters.stop"),
        ({"stop": ["a", ""]}, "parameters.stop[1]"),
        ({"stop": ["a" * 257]}, "parameters.stop[0]"),
    ],
)
def test_a_parameter_out_of_range_is_named(model: ServedModel, parameters: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(request(**parameters), model)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.GenerateRequest(), "text"),
        (pb.GenerateRequest(text=""), "text"),
        (pb.GenerateRequest(token_ids=pb.TokenIds()), "token_ids"),
        (pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 2000])), "token_ids[1]"),
        (pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1] * CONTEXT_LENGTH)), "token_ids"),
        (pb.GenerateRequest(text="x y " * CONTEXT_LENGTH), "text"),
        (pb.GenerateRequest(text="a", resume_token_ids=[9999]), "resume_token_ids[0]"),
        (pb.GenerateRequest(text="a", resume_token_ids=[1] * 17), "resume_token_ids"),
    ],
)
def test_an_impossible_prompt_is_named(model: ServedModel, message: pb.GenerateRequest, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(message, model)
    assert caught.value.field == field


def test_a_text_longer_than_any_that_fits_is_not_even_tokenised(model: ServedModel) -> None:
    with pytest.raises(InvalidRequest, match="characters"):
        check(request("x" * (model.longest_token * CONTEXT_LENGTH + 1)), model)


def test_the_output_keeps_within_the_context(model: ServedModel) -> None:
    ids = pb.TokenIds(ids=[1] * (CONTEXT_LENGTH - 10))
    message = pb.GenerateRequest(token_ids=ids, parameters=pb.SamplingParameters(max_tokens=100))
    assert check(message, model).sampling.max_tokens == 10


def test_top_k_beyond_the_vocabulary_is_all_of_it(model: ServedModel) -> None:
    assert check(request(top_k=2**31), model).sampling.top_k == model.vocabulary


def test_only_the_served_model_answers(model: ServedModel) -> None:
    message = request()
    message.model = "tiny"
    check(message, model)
    message.model = "other"
    with pytest.raises(UnknownModel, match="tiny"):
        check(message, model)
