"""The checkpoint of `bench_memory`: 2 layers of 16 experts of 16 MiB each, random bf16."""

import sys
from pathlib import Path

NUM_LAYERS, NUM_EXPERTS, HIDDEN = 2, 16, 1024


def write_checkpoint(folder: Path) -> None:
    """Save the model with `save_pretrained`, in one file."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=HIDDEN,
        intermediate_size=2720,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=8,
        num_key_value_heads=2,
        num_local_experts=NUM_EXPERTS,
        num_experts_per_tok=2,
        max_position_embeddings=256,
    )
    torch.set_default_dtype(torch.bfloat16)
    MixtralForCausalLM(config).save_pretrained(folder, max_shard_size="8GB")


if __name__ == "__main__":
    write_checkpoint(Path(sys.argv[1]))
