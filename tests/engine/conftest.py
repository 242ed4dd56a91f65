"""Tiny random checkpoints of the eight families, engines over them, and experts computed in-process."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import GenerationConfig

from flexpert_workers.checkpoint import Checkpoint, open_checkpoint
from flexpert_workers.engine import Engine, EngineConfig
from flexpert_workers.messages.generation import Finish, Rejected, Sampling, Submit, TokenOutput

torch.set_num_threads(1)

_COMMON = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.1,
}
_MLA = {
    **_COMMON,
    "num_key_value_heads": 4,
    "intermediate_size": 128,
    "moe_intermediate_size": 48,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
_SPARSE = {**_COMMON, "intermediate_size": 128, "moe_intermediate_size": 48, "num_experts_per_tok": 2}


def _configs() -> dict[str, Any]:
    return {
        "mixtral": transformers.MixtralConfig(
            **_COMMON, intermediate_size=96, num_local_experts=8, num_experts_per_tok=2, tie_word_embeddings=True
        ),
        "olmoe": transformers.OlmoeConfig(**_COMMON, intermediate_size=96, num_experts=8, num_experts_per_tok=2),
        "qwen2_moe": transformers.Qwen2MoeConfig(**_SPARSE, shared_expert_intermediate_size=64, num_experts=8),
        "qwen3_moe": transformers.Qwen3MoeConfig(**_SPARSE, head_dim=16, num_experts=8),
        "deepseek_v2": transformers.DeepseekV2Config(**_MLA, q_lora_rank=None),
        "deepseek_v3": transformers.DeepseekV3Config(**_MLA, q_lora_rank=32, n_group=2, topk_group=1),
        "gpt_oss": transformers.GptOssConfig(
            **_COMMON,
            head_dim=16,
            intermediate_size=64,
            num_local_experts=8,
            num_experts_per_tok=2,
            sliding_window=32,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        "glm4_moe": transformers.Glm4MoeConfig(
            **_SPARSE, head_dim=16, n_routed_experts=8, n_shared_experts=1, first_k_dense_replace=1
        ),
    }


FAMILIES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "glm4_moe")


class LocalDispatcher:
    """Computes experts in-process, with the reference model's own experts modules; can be told to fail.

    Attributes:
        failures: Raised, one a call, before anything is computed.
        calls: (layer, rows) of every dispatch.
    """

    def __init__(self, model: Any, paths: tuple[str, ...]) -> None:
        self._experts = [model.get_submodule(path) for path in paths]
        self.failures: list[Exception] = []
        self.poison: Any = None
        self.calls: list[tuple[int, int]] = []

    def dispatch(self, layer, hidden, top_k_index, top_k_weights):
        self.calls.append((layer, hidden.shape[0]))
        if self.failures:
            raise self.failures.pop(0)
        experts = self._experts[layer]
        output = type(experts).forward.__wrapped__(experts, hidden.float(), top_k_index, top_k_weights.float())
        output = output.to(hidden.dtype)
        return self.poison(layer, hidden, output) if self.poison is not None else output


@dataclass(frozen=True)
class Family:
    """A checkpoint on disk and the library's own model of it."""

    path: Path
    checkpoint: Checkpoint
    reference: Any
    _greedy: dict[tuple[tuple[int, ...], int], list[int]] = field(default_factory=dict)

    @property
    def source(self) -> str:
        return f"file://{self.path}"

    def greedy(self, prompt: list[int], max_tokens: int) -> list[int]:
        """What transformers' `generate` gives."""
        key = (tuple(prompt), max_tokens)
        if key not in self._greedy:
            config = GenerationConfig(max_new_tokens=max_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
            output = self.reference.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), generation_config=config
            )
            self._greedy[key] = output[0, len(prompt) :].tolist()
        return self._greedy[key]

    def dispatcher(self) -> LocalDispatcher:
        return LocalDispatcher(self.reference, self.checkpoint.moe_layer_modules)


@dataclass
class Answer:
    """All that came for one request."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    finish: Finish | None = None
    cached_tokens: int = 0
    rejected: Rejected | None = None

    def add(self, reply: TokenOutput | Rejected) -> None:
        if isinstance(reply, Rejected):
            self.rejected = reply
            return
        self.positions += range(reply.position, reply.position + len(reply.token_ids))
        self.tokens += reply.token_ids
        self.logprobs += reply.logprobs
        self.top += reply.top
        self.finish = reply.finish
        self.cached_tokens = reply.cached_tokens


class Bench:
    """An engine with in-process experts."""

    def __init__(self, family: Family, dtype: str = "Float32", **config: Any) -> None:
        self.family = family
        self.dispatcher = family.dispatcher()
        checkpoint = family.checkpoint if dtype == "Float32" else open_checkpoint(family.source, dtype)
        self.engine = Engine(checkpoint, EngineConfig("engine", "pool", family.source, **config), self.dispatcher)
        self.answers: dict[int, Answer] = {}

    @property
    def scheduler(self) -> Any:
        return self.engine._scheduler

    @property
    def blocks(self) -> Any:
        return self.scheduler.blocks

    def add(self, number: int, prompt: list[int], output: list[int] | None = None, **sampling: Any) -> None:
        options = {"max_tokens": 16, "temperature": 0.0, **sampling}
        self.answers[number] = Answer()
        self.engine.add_request(Submit(number, tuple(prompt), tuple(output or ()), Sampling(**options)))

    def step(self) -> None:
        for reply in self.engine.step().get(b"", []):
            self.answers[reply.request].add(reply)

    def run(self) -> dict[int, Answer]:
        while self.engine.has_work:
            self.step()
        return self.answers


def prompt_of(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(1, 256, (length,), generator=generator).tolist()


@pytest.fixture(scope="session")
def make_prompt():
    return prompt_of


@pytest.fixture(scope="session")
def families(tmp_path_factory):
    """Family by name; each is written and loaded at its first use."""
    return _Families(tmp_path_factory)


class _Families(dict[str, Family]):
    def __init__(self, tmp_path_factory: Any) -> None:
        super().__init__()
        self._tmp_path_factory = tmp_path_factory

    def __missing__(self, name: str) -> Family:
        transformers.utils.logging.disable_progress_bar()
        logging.getLogger("transformers").setLevel(logging.ERROR)
        path = self._tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        reference = transformers.AutoModelForCausalLM.from_config(_configs()[name]).eval()
        with torch.no_grad():
            for tensor_name, tensor in (*reference.named_parameters(), *reference.named_buffers()):
                if "bias" in tensor_name:  # zero at first, which would hide one that is not added
                    tensor.normal_(std=0.2)
        reference.save_pretrained(path)
        self[name] = Family(path, open_checkpoint(f"file://{path}", "Float32"), reference)
        return self[name]


@pytest.fixture(params=FAMILIES)
def family(request, families):
    return families[request.param]


@pytest.fixture
def bench(families):
    """Makes an engine over Mixtral, or another family, with in-process experts."""

    def make(name: str = "mixtral", **config: Any) -> Bench:
        return Bench(families[name], **config)

    return make


@pytest.fixture
def bench_of():
    return Bench
