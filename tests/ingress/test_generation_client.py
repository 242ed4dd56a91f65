"""The Python client against an ingress that follows a script: what it resumes, what it raises, and when it gives up."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

from flexpert_proto import generation_pb2 as pb
from flexpert_proto import generation_pb2_grpc
from flexpert_proto.client import (
    AsyncGenerationClient,
    Completion,
    GenerationClient,
    GenerationFailed,
    InvalidArgument,
    Overloaded,
    Unavailable,
    UnknownModel,
    make_request,
)
from flexpert_proto.stream import StreamState

Turn = Callable[[pb.GenerateRequest, Any], Iterator[pb.GenerateResponse]]


def tokens(*ids: int, **fields: Any) -> pb.GenerateResponse:
    text = "".join(f"<{id_}>" for id_ in ids)
    return pb.GenerateResponse(request_id="r", text=text, tokens=[pb.Token(id=id_) for id_ in ids], **fields)


def end(*ids: int) -> pb.GenerateResponse:
    return tokens(*ids, finish_reason=pb.FINISH_STOP, usage=pb.Usage(prompt_tokens=1, completion_tokens=9))


class ScriptedIngress(generation_pb2_grpc.GenerationServicer):
    """Each call takes the next turn of the script, the last one again and again."""

    def __init__(self, *turns: Turn) -> None:
        self.turns = list(turns)
        self.requests: list[pb.GenerateRequest] = []

    def Generate(self, request: pb.GenerateRequest, context: Any) -> Iterator[pb.GenerateResponse]:  # noqa: N802
        self.requests.append(request)
        turn = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
        yield from turn(request, context)

    def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:  # noqa: N802
        return pb.TokenizeResponse(ids=[len(request.text)])


def says(*responses: pb.GenerateResponse) -> Turn:
    return lambda request, context: iter(responses)


def breaks(code: grpc.StatusCode, *responses: pb.GenerateResponse, retry_after_ms: int | None = None) -> Turn:
    def turn(request: pb.GenerateRequest, context: Any) -> Iterator[pb.GenerateResponse]:
        yield from responses
        if retry_after_ms is not None:
            context.set_trailing_metadata((("retry-after-ms", str(retry_after_ms)),))
        context.abort(code, "as the script says")

    return turn


@pytest.fixture
def serve() -> Iterator[Callable[[ScriptedIngress], str]]:
    servers = []

    def start(ingress: ScriptedIngress) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(2))
        generation_pb2_grpc.add_GenerationServicer_to_server(ingress, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


Generate = Callable[..., "AsyncIterator[Completion]"]


@pytest.fixture(params=["blocking", "asyncio"])
def generate(request: pytest.FixtureRequest) -> Any:
    """`await generate(address, …)` with either client."""

    async def with_asyncio(address: str, tries: int = 4, **parameters: Any) -> Completion:
        async with AsyncGenerationClient(address, tries=tries) as client:
            return await client.generate("p", **parameters)

    async def blocking(address: str, tries: int = 4, **parameters: Any) -> Completion:
        with GenerationClient(address, tries=tries) as client:
            return client.generate("p", **parameters)

    return blocking if request.param == "blocking" else with_asyncio


async def test_an_end_without_a_finish_reason_is_resumed_with_tokens_and_seed(serve: Any, generate: Any) -> None:
    ingress = ScriptedIngress(says(tokens(1, 2, seed=55), tokens(3)), says(end(4)))
    done = await generate(serve(ingress), max_tokens=9, temperature=0.5)
    assert (done.text, done.token_ids, done.seed, done.resumed) == ("<1><2><3><4>", (1, 2, 3, 4), 55, 1)
    first, second = ingress.requests
    assert not first.parameters.HasField("seed")
    assert (list(second.resume_token_ids), second.parameters.seed) == ([1, 2, 3], 55)
    assert second.parameters.temperature == 0.5


async def test_a_broken_connection_is_resumed(serve: Any, generate: Any) -> None:
    unavailable = breaks(grpc.StatusCode.UNAVAILABLE, tokens(1, seed=5))
    ingress = ScriptedIngress(unavailable, breaks(grpc.StatusCode.UNAVAILABLE), says(end(2)))
    done = await generate(serve(ingress), seed=8)
    assert (done.token_ids, done.resumed, done.seed) == ((1, 2), 2, 8)


async def test_the_tries_are_bounded(serve: Any, generate: Any) -> None:
    ingress = ScriptedIngress(breaks(grpc.StatusCode.UNAVAILABLE))
    with pytest.raises(Unavailable, match="as the script says"):
        await generate(serve(ingress), tries=3)
    assert len(ingress.requests) == 3


async def test_overload_is_told_at_the_start_and_waited_for_in_mid_stream(serve: Any, generate: Any) -> None:
    overloaded = breaks(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms=20)
    with pytest.raises(Overloaded) as caught:
        await generate(serve(ScriptedIngress(overloaded)))
    assert caught.value.retry_after_s == 0.02
    ingress = ScriptedIngress(says(tokens(1, seed=5)), overloaded, says(end(2)))
    assert (await generate(serve(ingress))).token_ids == (1, 2)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidArgument),
        (grpc.StatusCode.NOT_FOUND, UnknownModel),
        (grpc.StatusCode.UNIMPLEMENTED, GenerationFailed),
    ],
)
async def test_what_cannot_get_better_is_not_repeated(
    serve: Any, generate: Any, code: grpc.StatusCode, error: type[Exception]
) -> None:
    ingress = ScriptedIngress(breaks(code))
    with pytest.raises(error, match="as the script says"):
        await generate(serve(ingress))
    assert len(ingress.requests) == 1


async def test_an_error_at_the_end_of_a_stream_is_raised(serve: Any, generate: Any) -> None:
    failed = pb.GenerateResponse(finish_reason=pb.FINISH_ERROR, error="NaN")
    with pytest.raises(GenerationFailed, match="NaN"):
        await generate(serve(ScriptedIngress(says(tokens(1), failed))))


async def test_the_time_out_bounds_the_whole_stream(serve: Any, generate: Any) -> None:
    over = threading.Event()

    def stalls(request: pb.GenerateRequest, context: Any) -> Iterator[pb.GenerateResponse]:
        yield tokens(1)
        context.add_callback(over.set)
        over.wait(10)

    with pytest.raises(GenerationFailed, match="DEADLINE_EXCEEDED"):
        await generate(serve(ScriptedIngress(stalls)), timeout_s=0.2)


def test_each_connection_asks_for_the_address_again(serve: Any) -> None:
    gone = ScriptedIngress(says(tokens(1, seed=5)))
    addresses = iter([serve(gone), serve(ScriptedIngress(says(end(2))))])
    with GenerationClient(lambda: next(addresses)) as client:
        assert client.generate("p").token_ids == (1, 2)


def test_closing_the_iterator_cancels_the_call(serve: Any) -> None:
    cancelled = threading.Event()

    def goes_on(request: pb.GenerateRequest, context: Any) -> Iterator[pb.GenerateResponse]:
        context.add_callback(cancelled.set)
        yield tokens(1)
        cancelled.wait(10)

    with GenerationClient(serve(ScriptedIngress(goes_on))) as client:
        pieces = client.generate_stream("p")
        next(pieces)
        pieces.close()
        assert cancelled.wait(10)


def test_tokenize(serve: Any) -> None:
    with GenerationClient(serve(ScriptedIngress(says(end())))) as client:
        assert client.tokenize("four") == (4,)


def test_a_value_that_fits_no_field_is_named() -> None:
    with pytest.raises(InvalidArgument, match="max_tokens"):
        make_request("p", max_tokens=-1)


def test_a_prompt_of_token_ids_and_a_model_travel() -> None:
    request = make_request([1, 2], model="m", stop=["x"], logprobs=0)
    assert list(request.token_ids.ids) == [1, 2]
    assert (request.model, list(request.parameters.stop)) == ("m", ["x"])
    assert request.parameters.HasField("logprobs")
    assert not request.parameters.HasField("temperature")


def test_waits_grow_and_are_forgotten_once_something_comes() -> None:
    state = StreamState(make_request("p"), tries=10, timeout_s=None, now_s=0.0)
    waits = [state.delay_after(None) for _ in range(6)]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    state.take(tokens(1))
    assert state.delay_after(None) == 0.1
