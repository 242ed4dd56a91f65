"""Chat by templates that models were published with, against transformers' rendering; and `Tokenize` by a client."""

import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from ingress_fake_pool import FakePool
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from flexpert_proto.client import AsyncGenerationClient

Start = Callable[..., Any]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
MARKS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TEMPLATES = {
    "ChatML": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "Mixtral": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
    "Llama 3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        "+ message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
}
MESSAGES: list[Any] = [
    {"role": "user", "content": "import os\n"},
    {"role": "assistant", "content": "done"},
    {"role": "user", "content": "  grüße 🙂 "},
]


@pytest.fixture(params=TEMPLATES)
def template(request: pytest.FixtureRequest) -> str:
    return TEMPLATES[request.param]


@pytest.fixture
def chat_folder(model_folder: Path, tmp_path: Path, template: str) -> Path:
    """The tests' checkpoint with another template, whose marks are tokens."""
    folder = tmp_path / "chat"
    shutil.copytree(model_folder, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(MARKS)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(SPECIAL | {"chat_template": template}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": tokenizer.get_vocab_size()}))
    return folder


@pytest_asyncio.fixture
async def pool(chat_folder: Path) -> AsyncIterator[FakePool]:
    fake = FakePool(f"file://{chat_folder}", 256)
    await fake.start()
    yield fake
    await fake.stop()


async def test_a_prompt_is_what_transformers_makes_of_it(
    pool: FakePool, start_engine: Start, start_ingress: Start, chat_folder: Path, template: str
) -> None:
    engine = start_engine()
    pool.set_engines({"a": engine.endpoint})
    reference = PreTrainedTokenizerFast(
        tokenizer_file=str(chat_folder / "tokenizer.json"), chat_template=template, **SPECIAL
    )
    text = reference.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    expected = reference(text, add_special_tokens=False)["input_ids"]
    async with (
        start_ingress() as ingress,
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{ingress.http_port}/v1", api_key="none") as client,
        AsyncGenerationClient(f"127.0.0.1:{ingress.grpc_port}") as ours,
    ):
        await client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2)
        assert await ours.tokenize("import os 🙂") == tuple(reference("import os 🙂")["input_ids"])
        assert await ours.tokenize("") == ()
    assert list(engine.submitted[0].prompt_ids) == expected
