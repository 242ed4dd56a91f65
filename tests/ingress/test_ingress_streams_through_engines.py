"""Whole streams: client → ingress → fake engines, with engines that die, drain, refuse and come back."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from ingress_fake_engine import expected_token
from ingress_fake_pool import FakePool
from tokenizers import Tokenizer

from flexpert_proto import generation_pb2 as pb
from flexpert_proto import pool_pb2
from flexpert_proto.client import (
    AsyncGenerationClient,
    Completion,
    GenerationFailed,
    InvalidArgument,
    Overloaded,
    Unavailable,
    UnknownModel,
)
from flexpert_workers.ingress import Ingress

PROMPT = (5, 6, 7)
Start = Callable[..., Any]


def client_of(ingress: Ingress, **options: Any) -> AsyncGenerationClient:
    return AsyncGenerationClient(f"127.0.0.1:{ingress.grpc_port}", **options)


def expected(prompt: tuple[int, ...], seed: int, count: int) -> tuple[int, ...]:
    return tuple(expected_token(prompt, seed, position) for position in range(count))


def text_of(folder: Path, ids: tuple[int, ...]) -> str:
    return str(Tokenizer.from_file(str(folder / "tokenizer.json")).decode(list(ids)))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for happens in other threads and processes
        await asyncio.sleep(0.005)


async def test_a_stream_ends_with_reason_usage_and_the_text_of_its_tokens(
    pool: FakePool, start_engine: Start, start_ingress: Start, model_folder: Path
) -> None:
    pool.set_engines({"a": start_engine().endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        pieces = [piece async for piece in client.generate_stream(PROMPT, model="tiny", max_tokens=20, seed=9)]
    ids = tuple(token for piece in pieces for token in piece.token_ids)
    assert ids == expected(PROMPT, 9, 20)
    assert "".join(piece.text for piece in pieces) == text_of(model_folder, ids)
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == pb.FINISH_LENGTH
    assert pieces[-1].usage == pb.Usage(prompt_tokens=3, completion_tokens=20, cached_tokens=3)
    assert len({piece.request_id for piece in pieces}) == 1


async def test_a_text_prompt_is_tokenised_and_a_seed_is_drawn(
    pool: FakePool, start_engine: Start, start_ingress: Start, model_folder: Path
) -> None:
    engine = start_engine()
    pool.set_engines({"a": engine.endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        first = await client.generate("import os", max_tokens=4)
        second = await client.generate("import os", max_tokens=4)
        ids = await client.tokenize("import os")
    assert engine.submitted[0].prompt_ids == ids
    assert text_of(model_folder, ids) == "import os"
    assert first.seed != second.seed
    assert first.token_ids == expected(ids, first.seed, 4)


async def test_end_of_text_token_stops_the_stream_and_has_no_text(
    pool: FakePool, start_engine: Start, start_ingress: Start
) -> None:
    pool.set_engines({"a": start_engine(script=(400, 401, 0, 402)).endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        done = await client.generate(PROMPT, max_tokens=4)
        ignoring = await client.generate(PROMPT, max_tokens=4, ignore_eos=True)
    assert (done.text, done.token_ids, done.finish_reason) == ("word400 word401 ", (400, 401, 0), pb.FINISH_STOP)
    assert (ignoring.text, ignoring.finish_reason) == ("word400 word401 word402 ", pb.FINISH_LENGTH)


async def test_a_stop_string_ends_the_text_before_it_and_cancels_at_the_engine(
    pool: FakePool, start_engine: Start, start_ingress: Start
) -> None:
    engine = start_engine(script=tuple(range(400, 500)), delay_s=0.002)
    pool.set_engines({"a": engine.endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        pieces = [p async for p in client.generate_stream(PROMPT, max_tokens=100, stop=("d404 wo", "d406"))]
        await until(lambda: bool(engine.cancelled))
    assert "".join(piece.text for piece in pieces) == "word400 word401 word402 word403 wor"
    assert pieces[-1].finish_reason == pb.FINISH_STOP
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.completion_tokens == sum(len(piece.tokens) for piece in pieces) == 6


async def test_logprobs_come_with_token_texts(pool: FakePool, start_engine: Start, start_ingress: Start) -> None:
    pool.set_engines({"a": start_engine(script=(400, 401)).endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        done = await client.generate(PROMPT, max_tokens=2, logprobs=2)
        chosen_only = await client.generate(PROMPT, max_tokens=2, logprobs=0)
    assert [token.logprob for token in done.tokens] == [-0.5, -0.5]
    assert [(t.token_id, t.logprob) for t in done.tokens[0].top] == [(1, -1.0), (2, -2.0)]
    assert all(len(t.text) == 1 for t in done.tokens[0].top)
    assert [token.logprob for token in chosen_only.tokens] == [-0.5, -0.5]
    assert not chosen_only.tokens[0].top


async def generate_many(client: AsyncGenerationClient, count: int, max_tokens: int) -> list[Completion]:
    calls = (client.generate((1, 2, n), max_tokens=max_tokens, seed=n) for n in range(count))
    return await asyncio.gather(*calls)


def check_all(completions: list[Completion], max_tokens: int) -> None:
    for n, completion in enumerate(completions):
        assert completion.token_ids == expected((1, 2, n), n, max_tokens)
        assert completion.finish_reason == pb.FINISH_LENGTH
        assert completion.resumed == 0, "the ingress hides the loss of an engine from its clients"


async def test_nothing_is_lost_or_repeated_when_an_engine_is_killed_under_its_streams(
    pool: FakePool, start_engine_process: Start, start_ingress: Start
) -> None:
    engines = {name: start_engine_process(delay_s=0.01) for name in ("a", "b")}
    pool.set_engines({name: engine.endpoint for name, engine in engines.items()})
    async with start_ingress() as ingress, client_of(ingress) as client:
        await until(lambda: ingress.figures().gauge("ingress_engines") == 2)
        work = asyncio.create_task(generate_many(client, 8, 40))
        await until(lambda: ingress.figures().counter("ingress_tokens") > 60)
        engines["a"].kill()
        check_all(await work, 40)
        assert ingress.figures().counter("ingress_resubmissions") == 4


async def test_streams_wait_for_the_only_engine_to_come_back_at_another_address(
    pool: FakePool, start_engine_process: Start, start_ingress: Start
) -> None:
    engine = start_engine_process(delay_s=0.01)
    pool.set_engines({"a": engine.endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        work = asyncio.create_task(generate_many(client, 4, 30))
        await until(lambda: ingress.figures().counter("ingress_tokens") > 20)
        engine.kill()
        await until(lambda: ingress.figures().gauge("ingress_engines") == 0)
        assert ingress.ready, "intake goes on without an engine"
        late = asyncio.create_task(client.generate(PROMPT, max_tokens=3, seed=1))
        pool.set_engines({"a": start_engine_process().endpoint})
        check_all(await work, 30)
        assert (await late).token_ids == expected(PROMPT, 1, 3)


async def test_an_engine_that_comes_back_at_the_same_address_is_used_again(
    pool: FakePool, start_engine_process: Start, start_ingress: Start, tmp_path: Path
) -> None:
    endpoint = f"ipc://{tmp_path}/e"
    engine = start_engine_process(delay_s=0.01, endpoint=endpoint)
    pool.set_engines({"a": endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        work = asyncio.create_task(generate_many(client, 4, 30))
        await until(lambda: ingress.figures().counter("ingress_tokens") > 20)
        engine.kill()
        await until(lambda: ingress.figures().gauge("ingress_engines") == 0)
        start_engine_process(endpoint=endpoint)
        check_all(await work, 30)


async def test_an_engine_that_dies_again_and_again_still_makes_progress(
    pool: FakePool, start_engine_process: Start, start_ingress: Start, tmp_path: Path
) -> None:
    endpoint = f"ipc://{tmp_path}/e"
    pool.set_engines({"a": endpoint})
    async with start_ingress(wait=False) as ingress, client_of(ingress) as client:
        work = asyncio.create_task(generate_many(client, 1, 12))
        while not work.done():
            engine = start_engine_process(endpoint=endpoint, die_after=5)
            dying = asyncio.create_task(asyncio.to_thread(engine.process.wait))
            await asyncio.wait({work, dying}, return_when=asyncio.FIRST_COMPLETED)
            engine.kill()
            await dying
        check_all(await work, 12)


async def test_a_request_that_kills_every_engine_is_given_up(
    pool: FakePool, start_engine: Start, start_ingress: Start
) -> None:
    pool.set_engines({"a": start_engine(skip_at=0).endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        with pytest.raises(GenerationFailed, match="8 engines in a row"):
            await client.generate(PROMPT, max_tokens=3)


async def test_tokens_that_an_engine_repeats_are_dropped(
    pool: FakePool, start_engine: Start, start_ingress: Start
) -> None:
    pool.set_engines({"a": start_engine(repeat_last=True).endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        done = await client.generate(PROMPT, max_tokens=10, seed=2, logprobs=0)
    assert done.token_ids == expected(PROMPT, 2, 10)


async def test_tokens_that_an_engine_skips_are_asked_for_again(
    pool: FakePool, start_engine: Start, start_ingress: Start
) -> None:
    pool.set_engines({"a": start_engine(skip_at=4).endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        done = await client.generate(PROMPT, max_tokens=10, seed=2)
    assert done.token_ids == expected(PROMPT, 2, 10)


async def test_a_draining_engine_is_passed_over(pool: FakePool, start_engine: Start, start_ingress: Start) -> None:
    draining, other = start_engine(draining=True), start_engine()
    pool.set_engines({"a": draining.endpoint, "b": other.endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        await until(lambda: ingress.figures().gauge("ingress_engines") == 2)
        check_all(await generate_many(client, 6, 5), 5)
    assert len(draining.submitted) <= 6
    assert len(other.submitted) == 6


async def test_engines_that_the_pool_drains_get_nothing_new(
    pool: FakePool, start_engine: Start, start_ingress: Start
) -> None:
    engine = start_engine()
    pool.set_engines({"a": engine.endpoint})
    async with start_ingress(engine_wait_s=0.2) as ingress, client_of(ingress) as client:
        await client.generate(PROMPT, max_tokens=1)
        pool.set_engines({"a": engine.endpoint}, pool_pb2.Engine.DRAINING)
        while True:
            try:
                await client.generate(PROMPT, max_tokens=1)
            except Overloaded:
                break


async def test_requests_beyond_an_engines_room_wait_their_turn(
    pool: FakePool, start_engine: Start, start_ingress: Start
) -> None:
    pool.set_engines({"a": start_engine(max_running=2, delay_s=0.001).endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        check_all(await generate_many(client, 6, 5), 5)


async def test_a_full_queue_answers_resource_exhausted_with_a_wait(
    pool: FakePool, start_engine: Start, start_ingress: Start
) -> None:
    pool.set_engines({"a": start_engine(max_running=1, delay_s=0.01).endpoint})
    async with start_ingress(max_streams=2, max_waiting=1) as ingress, client_of(ingress) as client:
        results = await asyncio.gather(
            *(client.generate(PROMPT, max_tokens=20) for _ in range(4)), return_exceptions=True
        )
    refused = [result for result in results if isinstance(result, Overloaded)]
    assert len(refused) == 2
    assert all(0.1 <= error.retry_after_s <= 30 for error in refused)
    assert all("2 streams are open" in str(error) for error in refused)


async def test_overload_ends_after_a_bounded_wait(pool: FakePool, start_engine: Start, start_ingress: Start) -> None:
    pool.set_engines({"a": start_engine(max_running=0).endpoint})
    async with start_ingress(engine_wait_s=0.3) as ingress, client_of(ingress) as client:
        with pytest.raises(Overloaded, match="no engine had room"):
            await client.generate(PROMPT, max_tokens=1)


async def test_without_an_engine_the_wait_is_bounded(pool: FakePool, start_ingress: Start) -> None:
    async with start_ingress(wait=False, engine_wait_s=0.2) as ingress, client_of(ingress, tries=1) as client:
        with pytest.raises(Unavailable, match=r"no engine came within 0\.2 s"):
            await client.generate(PROMPT, max_tokens=1)
        assert not ingress.ready


async def test_cancelling_a_call_cancels_at_the_engine(
    pool: FakePool, start_engine: Start, start_ingress: Start
) -> None:
    engine = start_engine(delay_s=0.01)
    pool.set_engines({"a": engine.endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        pieces = client.generate_stream(PROMPT, max_tokens=200)
        await anext(pieces)
        await pieces.aclose()
        await until(lambda: engine.cancelled == [engine.submitted[0].request])
        await until(lambda: ingress.figures().gauge("ingress_streams") == 0)
        assert ingress.counts.ended["cancelled"] == 1


async def test_cancelling_a_call_that_waits_leaves_the_queue(pool: FakePool, start_ingress: Start) -> None:
    async with start_ingress(wait=False) as ingress, client_of(ingress) as client:
        waiting = asyncio.create_task(client.generate(PROMPT, max_tokens=1))
        await until(lambda: ingress.figures().gauge("ingress_waiting") == 1)
        waiting.cancel()
        await until(lambda: ingress.figures().gauge("ingress_waiting") == 0)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"invalid_field": "parameters.max_tokens"}, InvalidArgument, "parameters.max_tokens: does not fit"),
        ({"broken": True}, GenerationFailed, "NaN"),
    ],
)
async def test_what_an_engine_refuses_for_good_is_not_repeated(
    pool: FakePool,
    start_engine: Start,
    start_ingress: Start,
    options: dict[str, Any],
    error: type[Exception],
    match: str,
) -> None:
    engine = start_engine(**options)
    pool.set_engines({"a": engine.endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        with pytest.raises(error, match=match):
            await client.generate(PROMPT, max_tokens=1)
    assert len(engine.submitted) == 1


async def test_bad_requests_name_the_field(pool: FakePool, start_engine: Start, start_ingress: Start) -> None:
    pool.set_engines({"a": start_engine().endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        with pytest.raises(InvalidArgument, match=r"parameters\.top_p"):
            await client.generate(PROMPT, top_p=1.5)
        with pytest.raises(UnknownModel, match="what is: tiny"):
            await client.generate(PROMPT, model="another")
        with pytest.raises(InvalidArgument, match="text: the prompt has"):
            await client.generate("x y " * 200)


async def test_a_client_resumes_at_another_ingress_when_its_own_is_gone(
    pool: FakePool, start_engine: Start, start_ingress: Start, model_folder: Path
) -> None:
    pool.set_engines({"a": start_engine(delay_s=0.005).endpoint})
    async with start_ingress() as second:
        async with start_ingress(drain_grace_s=0.0) as first:
            addresses = [f"127.0.0.1:{first.grpc_port}"]
            client = AsyncGenerationClient(lambda: addresses[-1])
            pieces = client.generate_stream(PROMPT, max_tokens=60)
            seen = [await anext(pieces) for _ in range(5)]
            addresses.append(f"127.0.0.1:{second.grpc_port}")
        seen += [piece async for piece in pieces]
        await client.close()
    ids = tuple(token for piece in seen for token in piece.token_ids)
    assert ids == expected(PROMPT, seen[0].seed, 60)
    assert "".join(piece.text for piece in seen) == text_of(model_folder, ids)


async def test_resumed_tokens_that_already_end_the_text_need_no_engine(
    pool: FakePool, start_engine: Start, start_ingress: Start
) -> None:
    engine = start_engine()
    pool.set_engines({"a": engine.endpoint})
    request = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=PROMPT),
        parameters=pb.SamplingParameters(max_tokens=5),
        resume_token_ids=[400, 0],
    )
    async with (
        start_ingress() as ingress,
        grpc.aio.insecure_channel(f"127.0.0.1:{ingress.grpc_port}") as channel,
    ):
        generate = channel.unary_stream(
            "/flexpert.v1.Generation/Generate",
            request_serializer=pb.GenerateRequest.SerializeToString,
            response_deserializer=pb.GenerateResponse.FromString,
        )
        responses = [response async for response in generate(request)]
    assert [response.finish_reason for response in responses] == [pb.FINISH_STOP]
    assert responses[0].usage.completion_tokens == 2
    assert engine.submitted == []
