"""The checkpoint of `bench_engine`: 108 M random parameters in bf16, nine tenths of them experts."""

import sys
from pathlib import Path

NUM_LAYERS, NUM_EXPERTS, EXPERTS_PER_TOKEN, VOCABULARY = 8, 16, 2, 8192


def write_checkpoint(folder: Path) -> int:
    """Save the model with `save_pretrained` and return its number of parameters."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1024,
        moe_intermediate_size=512,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=NUM_EXPERTS,
        num_experts_per_tok=EXPERTS_PER_TOKEN,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
    )
    model = Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return int(sum(parameter.numel() for parameter in model.parameters()))


if __name__ == "__main__":
    print(write_checkpoint(Path(sys.argv[1])))
