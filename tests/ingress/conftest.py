"""What the ingress's tests stand on: a small tokenizer, a fake pool controller, fake engines, a running ingress."""

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import ingress_fake_engine
import pytest
from ingress_fake_engine import FakeEngine, Options
from ingress_fake_pool import FakePool
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from flexpert_workers.ingress import Ingress, IngressConfig
from flexpert_workers.ingress.model import ServedModel, load_model

CONTEXT_LENGTH = 256
CHAT_TEMPLATE = """\
{%- for message in messages %}
{%- if message.role == "user" and "forbidden" in message.content %}{{ raise_exception("not this word") }}{% endif %}
{{ message.role }}: {{ message.content }}{{ eos_token }}
{% endfor %}
{%- if add_generation_prompt %}assistant:{% endif %}"""
TEXTS = ["def main():\n    return 'grüße, 世界 🙂'\n", "import os\nclass Something(object):\n    pass\n"]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder without weights: token 0 ends a text, the others are bytes and merges."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = ingress_fake_engine.VOCABULARY
    tokenizer.add_tokens([f"word{n} " for n in range(tokenizer.get_vocab_size(), vocabulary)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"vocab_size": vocabulary, "max_position_embeddings": CONTEXT_LENGTH, "eos_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<end>"}, "chat_template": CHAT_TEMPLATE})
    )
    return folder


@pytest.fixture
def model(model_folder: Path) -> ServedModel:
    return load_model(f"file://{model_folder}", frozenset({"tiny"}), CONTEXT_LENGTH)


@pytest.fixture
async def pool(model_folder: Path) -> AsyncIterator[FakePool]:
    fake = FakePool(f"file://{model_folder}", CONTEXT_LENGTH)
    await fake.start()
    yield fake
    await fake.stop()


StartEngine = Callable[..., FakeEngine]


@pytest.fixture
def start_engine() -> Iterator[StartEngine]:
    """Starts fake engines in threads; they end with the test."""
    stopping = threading.Event()
    threads = []

    def start(**options: Any) -> FakeEngine:
        engine = FakeEngine(Options(**options))

        def run() -> None:
            while not stopping.is_set() and not engine.turn(0.02):
                pass
            engine.close()

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return engine

    yield start
    stopping.set()
    for thread in threads:
        thread.join()


class EngineProcess:
    """A fake engine as a process, to be killed."""

    def __init__(self, **options: Any) -> None:
        command = [sys.executable, ingress_fake_engine.__file__, json.dumps(options)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.endpoint = self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


StartProcess = Callable[..., EngineProcess]


@pytest.fixture
def start_engine_process() -> Iterator[StartProcess]:
    started: list[EngineProcess] = []

    def start(**options: Any) -> EngineProcess:
        started.append(EngineProcess(**options))
        return started[-1]

    yield start
    for engine in started:
        engine.kill()


StartIngress = Callable[..., "contextlib.AbstractAsyncContextManager[Ingress]"]


@pytest.fixture
def start_ingress(pool: FakePool) -> StartIngress:
    """Makes a context manager that runs an ingress; by default it waits until it is ready."""

    @contextlib.asynccontextmanager
    async def start(*, wait: bool = True, **options: Any) -> AsyncIterator[Ingress]:
        defaults: dict[str, Any] = {"engine_wait_s": 20.0, "drain_grace_s": 5.0}
        ingress = Ingress(IngressConfig(pool_control=pool.address, **(defaults | options)))
        await ingress.start()
        try:
            while wait and not ingress.ready:  # noqa: ASYNC110 - readiness is polled, as Kubernetes does
                await asyncio.sleep(0.005)
            yield ingress
        finally:
            await ingress.stop()

    return start
