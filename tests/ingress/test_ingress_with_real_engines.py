"""The whole token path with real parts: client → ingress → engines → expert worker, on the tiny model.

One engine is a process, to be killed; the other, and the worker, live in this one.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import openai
import pytest
import torch
from ingress_fake_pool import FakePool
from transformers import AutoModelForCausalLM, GenerationConfig

from flexpert_proto import generation_pb2 as pb
from flexpert_proto.client import AsyncGenerationClient, Completion
from flexpert_workers import threads
from flexpert_workers.checkpoint import Checkpoint, open_checkpoint
from flexpert_workers.engine import EngineConfig, EngineService
from flexpert_workers.expert import ExpertWorker, WorkerConfig
from flexpert_workers.expert.control_client import ControlClient
from flexpert_workers.ingress import Ingress, IngressConfig
from flexpert_workers.messages import control
from flexpert_workers.routing import Epoch, Replica, RoutingTable, WorkerAddress

TINY_MOE = Path(__file__).parents[2] / "examples" / "models" / "tiny-moe"
SOURCE = f"file://{TINY_MOE}"
PROMPTS = ("def ", "import os\n", "class Reader(", "for i in range(")
MAX_TOKENS = 24
WAIT_S = 60


def config_of(engine: str, pool: FakePool) -> EngineConfig:
    return EngineConfig(
        engine, "u", SOURCE, dtype="Float32", kv_cache_bytes=1 << 26, threads=1, pool_control=pool.address
    )


@pytest.fixture
def worker() -> Iterator[ExpertWorker]:
    worker = ExpertWorker(WorkerConfig("w", "u", SOURCE, "Float32", 1 << 28, 1, "127.0.0.1", "pod", "node", ""))
    worker.start()
    yield worker
    worker.stop()


def fill(worker: ExpertWorker, checkpoint: Checkpoint) -> RoutingTable:
    """Make every expert resident in the worker; returns the table that says so."""
    pairs = [(layer, index) for layer in range(checkpoint.num_layers) for index in range(checkpoint.num_experts)]
    client = ControlClient(worker.control_endpoint)
    client.request(control.Prepare("op", tuple((*pair, ()) for pair in pairs)), WAIT_S)
    while not (status := client.request(control.AskPrepare("op"), WAIT_S)).done:
        pass
    client.close()
    assert not status.error
    address = WorkerAddress("w", worker.incarnation, worker.endpoint, worker.control_endpoint)
    row = ((Replica(0, 1.0),),) * checkpoint.num_experts
    return RoutingTable("u", checkpoint.digest, Epoch(1, 1), "op", (address,), (row,) * checkpoint.num_layers)


@pytest.fixture
async def engine_pool(worker: ExpertWorker) -> AsyncIterator[FakePool]:
    pool = FakePool(SOURCE, 1024)
    pool.routing_table = fill(worker, open_checkpoint(SOURCE, "Float32")).encode()
    await pool.start()
    yield pool
    await pool.stop()


@pytest.fixture
def engine_process(engine_pool: FakePool) -> Iterator["subprocess.Popen[str]"]:
    config = msgspec.json.encode(config_of("process", engine_pool)).decode()
    command = [sys.executable, "-m", "flexpert_workers.engine", "--config", config]
    environment = os.environ | threads.environment(1)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        yield process
        process.kill()


@pytest.fixture
async def engine(engine_pool: FakePool) -> AsyncIterator[EngineService]:
    service = EngineService(config_of("thread", engine_pool))
    await asyncio.to_thread(service.start)
    yield service
    await asyncio.to_thread(service.stop)


@pytest.fixture
async def ingress(
    engine_process: "subprocess.Popen[str]", engine: EngineService, engine_pool: FakePool
) -> AsyncIterator[Ingress]:
    """An ingress that is connected to both engines."""
    assert engine_process.stdout is not None
    assert "endpoint" in json.loads(await asyncio.to_thread(engine_process.stdout.readline))
    ingress = Ingress(IngressConfig(pool_control=engine_pool.address))
    await ingress.start()
    try:
        await reach(ingress, "ingress_engines", 2)
        yield ingress
    finally:
        await ingress.stop()


async def reach(ingress: Ingress, metric: str, value: float) -> None:
    while (ingress.figures().counters | ingress.figures().gauges)[metric] < value:  # noqa: ASYNC110 - counters are polled, as Prometheus does
        await asyncio.sleep(0.005)


async def complete_all(client: AsyncGenerationClient, temperature: float) -> list[Completion]:
    calls = (
        client.generate(prompt, max_tokens=120, temperature=temperature, seed=n, ignore_eos=True)
        for n, prompt in enumerate(PROMPTS * 2)
    )
    return await asyncio.gather(*calls)


async def test_log_probabilities_are_the_models(ingress: Ingress) -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY_MOE, dtype=torch.float32)
    url = f"http://127.0.0.1:{ingress.http_port}/v1"
    async with (
        AsyncGenerationClient(f"127.0.0.1:{ingress.grpc_port}") as client,
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as openai_client,
    ):
        prompt = await client.tokenize(PROMPTS[0])
        grpc_side = await client.generate(
            PROMPTS[0], max_tokens=8, temperature=0.7, seed=5, logprobs=3, ignore_eos=True
        )
        http_side = await openai_client.completions.create(
            model="",
            prompt=PROMPTS[0],
            max_tokens=8,
            temperature=0.7,
            seed=5,
            logprobs=3,
            extra_body={"ignore_eos": True},
        )
    ids = torch.tensor([[*prompt, *grpc_side.token_ids]])
    with torch.inference_mode():
        reference = model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    chosen = reference.gather(1, ids[0, len(prompt) :, None])[:, 0]
    said = [token.logprob for token in grpc_side.tokens]
    assert said == pytest.approx(chosen.tolist(), abs=1e-3)
    best = reference.topk(3)
    for row, token in enumerate(grpc_side.tokens):
        assert [top.logprob for top in token.top] == pytest.approx(best.values[row].tolist(), abs=1e-3)
    choice = http_side.choices[0]
    assert choice.text == grpc_side.text, "one seed, one text, whatever the protocol"
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == pytest.approx(said, abs=1e-5)


async def test_text_is_the_references_and_survives_the_death_of_an_engine(
    ingress: Ingress, engine_process: "subprocess.Popen[str]"
) -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY_MOE, dtype=torch.float32)
    config = GenerationConfig(max_new_tokens=MAX_TOKENS, do_sample=False, eos_token_id=0, pad_token_id=0)
    async with AsyncGenerationClient(f"127.0.0.1:{ingress.grpc_port}") as client:
        for prompt in PROMPTS:
            ids = await client.tokenize(prompt)
            completion = await client.generate(prompt, max_tokens=MAX_TOKENS, temperature=0)
            expected = model.generate(torch.tensor([ids]), generation_config=config)[0, len(ids) :]
            assert completion.token_ids == tuple(expected.tolist())

        undisturbed = await complete_all(client, temperature=0.8)
        assert all(completion.finish_reason == pb.FINISH_LENGTH for completion in undisturbed)
        work = asyncio.create_task(complete_all(client, temperature=0.8))
        said = ingress.figures().counter("ingress_tokens")
        await reach(ingress, "ingress_tokens", said + 100)
        engine_process.kill()
        disturbed = await work
    assert ingress.figures().counter("ingress_resubmissions") > 0
    assert [c.token_ids for c in disturbed] == [c.token_ids for c in undisturbed]
    assert [c.text for c in disturbed] == [c.text for c in undisturbed]
