"""A tiny real checkpoint for tests of page owners."""

from pathlib import Path

import torch
import transformers

from flexpert_workers.checkpoint import open_checkpoint
from flexpert_workers.messages.owner import Hello


class TinyCheckpoint:
    """A real checkpoint of 2 layers, in a folder of its own that a test may damage."""

    def __init__(self, folder, num_experts=8):
        config = transformers.MixtralConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            num_local_experts=num_experts,
            num_experts_per_tok=2,
        )
        torch.manual_seed(3)
        transformers.MixtralForCausalLM(config).save_pretrained(folder)
        self.weights = Path(folder) / "model.safetensors"
        self.source = f"file://{folder}"
        checkpoint = open_checkpoint(self.source)
        self._about = (checkpoint.digest, checkpoint.layout.page_bytes)
        self.keys = [(layer, index) for layer in range(2) for index in range(num_experts)]
        self.pages = {key: bytes(checkpoint.read_expert(*key)) for key in self.keys}

    def hello(self, borrower):
        return Hello(borrower, "pool", *self._about, len(self.keys))
