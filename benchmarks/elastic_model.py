"""The checkpoint of `bench_elastic`: a Qwen3-MoE with random weights, small but for its experts, and a tokenizer."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

NUM_LAYERS, HIDDEN, EXPERT_WIDTH, VOCABULARY = 4, 1024, 704, 1024
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 8, 2, 64
EXPERT_BYTES = 3 * HIDDEN * EXPERT_WIDTH * 2
SPREAD = 0.02


def config_of(num_experts: int) -> dict[str, object]:
    """`config.json` of the checkpoint with `num_experts` a layer."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "dtype": "bfloat16",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "moe_intermediate_size": EXPERT_WIDTH,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_KV_HEADS,
        "head_dim": HEAD_DIM,
        "num_experts": num_experts,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "eos_token_id": None,
        "bos_token_id": None,
    }


def dense_shapes(layer: int, num_experts: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of what is no expert in a layer."""
    prefix = f"model.layers.{layer}"
    yield f"{prefix}.input_layernorm.weight", (HIDDEN,)
    yield f"{prefix}.post_attention_layernorm.weight", (HIDDEN,)
    yield f"{prefix}.self_attn.q_proj.weight", (NUM_HEADS * HEAD_DIM, HIDDEN)
    yield f"{prefix}.self_attn.k_proj.weight", (NUM_KV_HEADS * HEAD_DIM, HIDDEN)
    yield f"{prefix}.self_attn.v_proj.weight", (NUM_KV_HEADS * HEAD_DIM, HIDDEN)
    yield f"{prefix}.self_attn.o_proj.weight", (HIDDEN, NUM_HEADS * HEAD_DIM)
    yield f"{prefix}.self_attn.q_norm.weight", (HEAD_DIM,)
    yield f"{prefix}.self_attn.k_norm.weight", (HEAD_DIM,)
    yield f"{prefix}.mlp.gate.weight", (num_experts, HIDDEN)


def expert_shapes(layer: int, expert: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of an expert's weights."""
    prefix = f"model.layers.{layer}.mlp.experts.{expert}"
    yield f"{prefix}.gate_proj.weight", (EXPERT_WIDTH, HIDDEN)
    yield f"{prefix}.up_proj.weight", (EXPERT_WIDTH, HIDDEN)
    yield f"{prefix}.down_proj.weight", (HIDDEN, EXPERT_WIDTH)


def write_checkpoint(folder: Path, num_experts: int) -> int:
    """Write the checkpoint, a file a layer; returns the bytes of its experts."""
    import torch
    from safetensors.torch import save_file

    def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=torch.bfloat16)
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, SPREAD, generator=generator)

    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True)
    files: dict[str, str] = {}
    outer = [("model.embed_tokens.weight", (VOCABULARY, HIDDEN)), ("model.norm.weight", (HIDDEN,))]
    for part in range(NUM_LAYERS + 1):
        shapes: list[tuple[str, tuple[int, ...]]] = [*outer]
        if part < NUM_LAYERS:
            experts = (pair for expert in range(num_experts) for pair in expert_shapes(part, expert))
            shapes = [*dense_shapes(part, num_experts), *experts]
        file = f"model-{part + 1:05}-of-{NUM_LAYERS + 1:05}.safetensors"
        save_file({name: weight(name, shape) for name, shape in shapes}, folder / file, {"format": "pt"})
        files |= {name: file for name, _ in shapes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (folder / "config.json").write_text(json.dumps(config_of(num_experts)))
    write_tokenizer(folder)
    return NUM_LAYERS * num_experts * EXPERT_BYTES


def write_tokenizer(folder: Path) -> None:
    """A word for every id: what the text says is of no interest here."""
    from tokenizers import Tokenizer, models

    words = {f"w{number}": number for number in range(VOCABULARY)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))


def main() -> None:
    """Write it where the arguments say and print the bytes of the experts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--experts", type=int, required=True, help="experts of each layer")
    options = parser.parse_args()
    print(write_checkpoint(options.folder, options.experts))


if __name__ == "__main__":
    main()
