"""OpenAI's interface by OpenAI's client, synchronous and asynchronous, whole and streamed; and what goes wrong."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from ingress_fake_engine import expected_token
from ingress_fake_pool import FakePool
from tokenizers import Tokenizer

from flexpert_workers.ingress import Ingress

Start = Callable[..., Any]
MESSAGES: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "import "}, {"type": "text", "text": "os"}]},
]


def base_url(ingress: Ingress) -> str:
    return f"http://127.0.0.1:{ingress.http_port}/v1"


@asynccontextmanager
async def client_of(ingress: Ingress) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=base_url(ingress), api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def tokenizer(model_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model_folder / "tokenizer.json"))


def said(tokenizer: Tokenizer, prompt: list[int], seed: int, count: int) -> str:
    return str(tokenizer.decode([expected_token(prompt, seed, n) for n in range(count)]))


async def test_models_are_listed(pool: FakePool, start_engine: Start, start_ingress: Start) -> None:
    pool.set_engines({"a": start_engine().endpoint})
    async with start_ingress(model_name="tiny") as ingress, client_of(ingress) as client:
        models = [model async for model in client.models.list()]
        one = await client.models.retrieve("tiny")
        with pytest.raises(openai.NotFoundError, match="'another' is not served here"):
            await client.models.retrieve("another")
    assert [(model.id, model.object) for model in models] == [("tiny", "model")]
    assert one == models[0]


async def test_the_synchronous_client_completes(
    pool: FakePool, start_engine: Start, start_ingress: Start, tokenizer: Tokenizer
) -> None:
    pool.set_engines({"a": start_engine().endpoint})

    def use(url: str) -> tuple[Any, str]:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            whole = client.completions.create(model="tiny", prompt="import os", max_tokens=5, seed=3)
            chunks = client.completions.create(model="tiny", prompt="import os", max_tokens=5, seed=3, stream=True)
            return whole, "".join(chunk.choices[0].text for chunk in chunks)

    async with start_ingress() as ingress:
        whole, streamed = await asyncio.to_thread(use, base_url(ingress))
    prompt = tokenizer.encode("import os").ids
    assert whole.choices[0].text == streamed == said(tokenizer, prompt, 3, 5)
    assert whole.choices[0].finish_reason == "length"
    assert (whole.object, whole.model) == ("text_completion", "tiny")
    assert whole.usage.prompt_tokens == len(prompt)
    assert whole.usage.completion_tokens == 5
    assert whole.usage.total_tokens == len(prompt) + 5
    assert whole.usage.prompt_tokens_details.cached_tokens == 3


async def test_prompts_and_choices_multiply(
    pool: FakePool, start_engine: Start, start_ingress: Start, tokenizer: Tokenizer
) -> None:
    pool.set_engines({"a": start_engine().endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        whole = await client.completions.create(
            model="", prompt=[[1, 2], [3, 4, 5]], n=2, max_tokens=4, seed=9, temperature=0.5
        )
        texts = ["", "", "", ""]
        stream = await client.completions.create(
            model="",
            prompt=[[1, 2], [3, 4, 5]],
            n=2,
            max_tokens=4,
            seed=9,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        for chunk in chunks[:-1]:
            texts[chunk.choices[0].index] += chunk.choices[0].text
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in whole.choices] == texts
    assert texts[0] == said(tokenizer, [1, 2], 9, 4)
    assert texts[2] == said(tokenizer, [3, 4, 5], 9, 4)
    assert texts[0] != texts[1]
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (5, 16)
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


async def test_log_probabilities_of_completions(pool: FakePool, start_engine: Start, start_ingress: Start) -> None:
    pool.set_engines({"a": start_engine(script=(400, 401)).endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        whole = await client.completions.create(model="tiny", prompt=[1], max_tokens=2, logprobs=2)
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["word400 ", "word401 "]
    assert logprobs.token_logprobs == [-0.5, -0.5]
    assert logprobs.text_offset == [0, 8]
    assert logprobs.top_logprobs is not None
    assert sorted(logprobs.top_logprobs[0].values()) == [-2.0, -1.0, -0.5]


async def test_chat_writes_the_models_template(
    pool: FakePool, start_engine: Start, start_ingress: Start, tokenizer: Tokenizer
) -> None:
    engine = start_engine()
    pool.set_engines({"a": engine.endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        whole = await client.chat.completions.create(model="tiny", messages=MESSAGES, max_completion_tokens=6, seed=1)
        stream = await client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=6, seed=1, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    prompt = tokenizer.encode("system: Be brief.<end>\nuser: import os<end>\nassistant:", add_special_tokens=False)
    assert list(engine.submitted[0].prompt_ids) == prompt.ids
    assert 0 in prompt.ids, "the template's special tokens are tokens, not letters"
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].message.content == said(tokenizer, prompt.ids, 1, 6)
    assert whole.choices[0].finish_reason == "length"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1


async def test_log_probabilities_of_chat(pool: FakePool, start_engine: Start, start_ingress: Start) -> None:
    pool.set_engines({"a": start_engine(script=(400, 401, 0)).endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        whole = await client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=3, logprobs=True, top_logprobs=1
        )
    content = whole.choices[0].logprobs.content if whole.choices[0].logprobs else None
    assert content is not None
    assert [(token.token, token.logprob) for token in content] == [
        ("word400 ", -0.5),
        ("word401 ", -0.5),
        ("<end>", -0.5),
    ]
    assert bytes(content[0].bytes or ()) == b"word400 "
    assert [top.logprob for top in content[0].top_logprobs] == [-1.0]
    assert whole.choices[0].finish_reason == "stop"


async def test_without_a_limit_chat_may_fill_the_context(
    pool: FakePool, start_engine: Start, start_ingress: Start
) -> None:
    pool.set_engines({"a": start_engine().endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        whole = await client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert whole.usage is not None
    assert whole.usage.total_tokens == 256


async def test_stop_strings_end_the_text(pool: FakePool, start_engine: Start, start_ingress: Start) -> None:
    pool.set_engines({"a": start_engine(script=tuple(range(400, 420))).endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        whole = await client.completions.create(model="tiny", prompt=[1], max_tokens=20, stop=["d404 wo", "d406"])
        one = await client.completions.create(model="tiny", prompt=[1], max_tokens=20, stop="d401")
    assert whole.choices[0].text == "word400 word401 word402 word403 wor"
    assert whole.choices[0].finish_reason == "stop"
    assert one.choices[0].text == "word400 wor"


COMPLETION = "/completions"
CHAT = "/chat/completions"
USER = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        (COMPLETION, {"prompt": "a", "logit_bias": {"1": 5}}, "logit_bias", "not supported"),
        (COMPLETION, {"prompt": "a", "echo": True}, "echo", "not supported"),
        (COMPLETION, {"prompt": "a", "best_of": 3}, "best_of", "not supported"),
        (COMPLETION, {"prompt": "a", "presence_penalty": 0.5}, "presence_penalty", "not supported"),
        (COMPLETION, {"prompt": "a", "beam_width": 2}, "beam_width", "not supported"),
        (COMPLETION, {"max_tokens": 1}, "prompt", "missing"),
        (COMPLETION, {"prompt": None}, "prompt", "has to be"),
        (COMPLETION, {"prompt": []}, "prompt", "not empty"),
        (COMPLETION, {"prompt": [1, "a", [2]]}, "prompt", "has to be"),
        (COMPLETION, {"prompt": [5000]}, "prompt[0]", "vocabulary"),
        (COMPLETION, {"prompt": [-1]}, "prompt", "no token id"),
        (COMPLETION, {"prompt": [True]}, "prompt", "has to be"),
        (COMPLETION, {"prompt": "x y " * 400}, "prompt", "context"),
        (COMPLETION, {"prompt": "a", "max_tokens": "many"}, "max_tokens", "expected `int"),
        (COMPLETION, {"prompt": "a", "max_tokens": 0}, "max_tokens", ">= 1"),
        (COMPLETION, {"prompt": "a", "max_tokens": 100000}, "max_tokens", "context"),
        (COMPLETION, {"prompt": "a", "temperature": 3}, "temperature", "<= 2"),
        (COMPLETION, {"prompt": "a", "top_p": 0}, "top_p", "> 0"),
        (COMPLETION, {"prompt": "a", "n": 1000}, "n", "<= 128"),
        (COMPLETION, {"prompt": ["a"] * 65, "n": 2}, "n", "128 choices"),
        (COMPLETION, {"prompt": "a", "logprobs": 21}, "logprobs", "<= 20"),
        (COMPLETION, {"prompt": "a", "stop": ["a"] * 5}, "stop", "more than 4"),
        (COMPLETION, {"prompt": "a", "stop": ["b", ""]}, "stop[1]", "characters"),
        (COMPLETION, {"prompt": "a", "stream_options": {}}, "stream_options", "only allowed"),
        (COMPLETION, {"prompt": "a", "stream": True, "stream_options": {"x": 1}}, "stream_options.x", "not supported"),
        (COMPLETION, {"prompt": "a", "seed": 2**70}, "seed", ""),
        (CHAT, {"messages": []}, "messages", "empty"),
        (CHAT, {"messages": "hi"}, "messages", "expected `array`"),
        (CHAT, {"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "has to be one of"),
        (CHAT, {"messages": [{"role": "user", "content": None}]}, "messages[0].content", "has to be"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]", "text"),
        (
            CHAT,
            {"messages": [{"role": "assistant", "content": "a", "tool_calls": [1]}]},
            "messages[0].tool_calls",
            "not",
        ),
        (CHAT, {"messages": [{"role": "user", "content": "forbidden"}]}, "messages", "not this word"),
        (CHAT, {"messages": USER, "tools": [{"type": "function"}]}, "tools", "not supported"),
        (CHAT, {"messages": USER, "response_format": {"type": "json_object"}}, "response_format", "not supported"),
        (CHAT, {"messages": USER, "top_logprobs": 2}, "top_logprobs", "only allowed"),
        (CHAT, {"messages": USER, "max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "the same"),
    ],
)
async def test_a_wrong_parameter_is_refused_by_name(
    running_ingress: Ingress, path: str, body: dict[str, Any], param: str, words: str
) -> None:
    async with client_of(running_ingress) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.post(path, body={"model": "tiny", **body}, cast_to=object)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert words in caught.value.message


@pytest.fixture
async def running_ingress(pool: FakePool, start_engine: Start, start_ingress: Start) -> AsyncIterator[Ingress]:
    pool.set_engines({"a": start_engine().endpoint})
    async with start_ingress() as ingress:
        yield ingress


async def test_values_that_ask_for_nothing_are_taken(running_ingress: Ingress) -> None:
    async with client_of(running_ingress) as client:
        await client.completions.create(
            model="tiny", prompt="a", max_tokens=1, echo=False, best_of=1, frequency_penalty=0, logit_bias={}, user="me"
        )
        await client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=1, tools=[], response_format={"type": "text"}, store=False
        )


async def raw(ingress: Ingress, data: bytes, path: str = "/v1/completions", method: str = "POST") -> tuple[int, Any]:
    """One request by hand; returns the status and the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", ingress.http_port)
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    answer = await reader.read()
    writer.close()
    status, _, body = answer.partition(b"\r\n\r\n")
    return int(status.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"a"',
        b"\xff\xfe{}",
        b'{"prompt": "\xc3"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\\ud800 and more text"}',
        b"[" * 100_000,
        b'{"a":' * 90_000,
    ],
)
async def test_a_body_that_is_no_request_is_the_callers_fault(running_ingress: Ingress, data: bytes) -> None:
    status, body = await raw(running_ingress, data)
    assert status == 400
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["param"] in ("body", "prompt", "a")


async def test_unknown_paths_methods_and_models(running_ingress: Ingress) -> None:
    status, body = await raw(running_ingress, b"", "/v1/embeddings")
    assert (status, body["error"]["code"]) == (404, "unknown_url")
    status, body = await raw(running_ingress, b"", method="GET")
    assert (status, body["error"]["type"]) == (405, "invalid_request_error")
    async with client_of(running_ingress) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.completions.create(model="another", prompt="a")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


async def test_a_large_body_is_refused(pool: FakePool, start_engine: Start, start_ingress: Start) -> None:
    pool.set_engines({"a": start_engine().endpoint})
    async with start_ingress(max_request_bytes=4096) as ingress:
        status, body = await raw(ingress, b'{"prompt": "' + b"x" * 5000 + b'"}')
    assert status == 413
    assert "4096" in body["error"]["message"]


async def test_a_full_ingress_says_when_to_come_back(pool: FakePool, start_engine: Start, start_ingress: Start) -> None:
    engine = start_engine(delay_s=0.01)
    pool.set_engines({"a": engine.endpoint})
    async with start_ingress(max_streams=1) as ingress, client_of(ingress) as client:
        stream = await client.completions.create(model="tiny", prompt=[1], max_tokens=200, stream=True)
        await anext(aiter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            await client.completions.create(model="tiny", prompt=[1])
        await stream.close()
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert float(caught.value.response.headers["retry-after-ms"]) > 0
    assert caught.value.code == "rate_limit_exceeded"


async def test_a_client_that_leaves_cancels_at_the_engine(
    pool: FakePool, start_engine: Start, start_ingress: Start
) -> None:
    engine = start_engine(delay_s=0.01)
    pool.set_engines({"a": engine.endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        stream = await client.completions.create(model="tiny", prompt=[1], max_tokens=250, stream=True)
        await anext(aiter(stream))
        await stream.close()
        await cancelled(engine, 1)
        waiting = asyncio.create_task(client.completions.create(model="tiny", prompt=[1, 2], n=2, max_tokens=250))
        async with asyncio.timeout(30):
            while len(engine.submitted) < 3:  # noqa: ASYNC110 - it happens in another thread
                await asyncio.sleep(0.005)
        waiting.cancel()
        await cancelled(engine, 3)
        assert ingress.counts.ended["cancelled"] == 3


async def cancelled(engine: Any, count: int) -> None:
    async with asyncio.timeout(30):
        while len(engine.cancelled) < count:  # noqa: ASYNC110 - it happens in another thread
            await asyncio.sleep(0.005)


async def test_an_engine_that_breaks_over_a_request_is_a_server_error(
    pool: FakePool, start_engine: Start, start_ingress: Start
) -> None:
    pool.set_engines({"a": start_engine(broken=True).endpoint})
    async with start_ingress() as ingress, client_of(ingress) as client:
        with pytest.raises(openai.InternalServerError, match="NaN") as caught:
            await client.completions.create(model="tiny", prompt=[1], stream=True)
    assert caught.value.type == "server_error"


async def complete_for_ever(client: openai.AsyncOpenAI) -> None:
    while True:
        await client.completions.create(model="tiny", prompt=[1], max_tokens=1)


async def test_draining_lets_open_answers_end(
    pool: FakePool, start_engine: Start, start_ingress: Start, tokenizer: Tokenizer
) -> None:
    pool.set_engines({"a": start_engine(delay_s=0.005).endpoint})
    async with start_ingress(drain_grace_s=60.0) as ingress, client_of(ingress) as client:
        stream = await client.completions.create(model="tiny", prompt=[1, 2], max_tokens=80, seed=3, stream=True)
        chunks = aiter(stream)
        text = (await anext(chunks)).choices[0].text
        stopping = asyncio.create_task(ingress.stop())
        with pytest.raises(openai.APIConnectionError):
            await complete_for_ever(client)
        text += "".join([chunk.choices[0].text async for chunk in chunks])
        await stopping
    assert text == said(tokenizer, [1, 2], 3, 80)
