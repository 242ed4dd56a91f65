"""A tiny random-weight model of any architecture: its configuration, shrunk, and its weights, seeded.

The walk and the tests write such models with `save_pretrained` and serve them. Sizes are chosen by field name, since
the configurations of transformers agree on names; what an architecture needs beyond that stands in `_OVERRIDES`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

VOCABULARY = 96
WINDOW = 8
TWO_KINDS = ["sliding_attention", "full_attention"]
_LAYERS = 2

_SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "unpadded_vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    # dense, shared and expert MLPs
    "intermediate_size": 48,
    "dense_intermediate_size": 48,
    "prefix_dense_intermediate_size": 48,
    "moe_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    # which layers are dense
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "moe_layer_start_index": 1,
    "mlp_layer_types": ["dense", "sparse"],
    # attention
    "sliding_window": WINDOW,
    "sliding_window_size": WINDOW,
    "use_sliding_window": True,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
_TOKENS: Mapping[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_LAYER_LISTS = ("layer_types", "mlp_layer_types")

_OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    "DeepseekV4ForCausalLM": {"mlp_layer_types": None},
    "Dots1ForCausalLM": {"layer_types": TWO_KINDS},
    "FlintForCausalLM": {"mlp_only_layers": [0]},
    "Gemma4ForCausalLM": {"enable_moe_block": True, "hidden_size_per_layer_input": 8, "global_head_dim": 16},
    "GraniteMoeHybridForCausalLM": {"mamba_n_heads": 2, "mamba_d_head": 32},
    "LagunaForCausalLM": {"layer_types": TWO_KINDS},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"]},
    "MellumForCausalLM": {"layer_types": TWO_KINDS},
    "PhimoeForCausalLM": {"sliding_window": _SIZES["max_position_embeddings"]},
    "Qwen2MoeForCausalLM": {"use_sliding_window": False},
    "ZayaForCausalLM": {"num_experts_per_tok": 1},
}
"""By architecture, what the sizes above get wrong, or leave untried."""


def tiny_config(model_class: Any, **changes: Any) -> Any:
    """The shrunk configuration of a model class, with `changes` on top.

    It keeps the kinds of layers that the class has by default: two layers where those are full and sliding attention,
    and its own depth where there are others, which are not served.
    """
    config_class = model_class.config_class
    fields = {field.name for field in dataclasses.fields(config_class)}
    values = {name: value for name, value in {**_SIZES, **_TOKENS}.items() if name in fields}
    if "kv_lora_rank" in fields:
        values["num_key_value_heads"] = _SIZES["num_attention_heads"]
    values.update(_OVERRIDES.get(model_class.__name__, {}), **changes)
    if "layer_types" in values:
        return config_class(**values)
    deep = config_class(
        **{name: value for name, value in values.items() if name not in ("num_hidden_layers", *_LAYER_LISTS)}
    )
    kinds = set(getattr(deep, "layer_types", None) or ())
    if kinds == set(TWO_KINDS):
        values["layer_types"] = TWO_KINDS
    return deep if kinds - set(TWO_KINDS) else config_class(**values)


def tiny_model(model_class: Any, **changes: Any) -> Any:
    """The model of `tiny_config`, in fp32, with the same random weights every time.

    Weights are drawn wider than the architectures' own initialisation and vectors are not constant, so that the text
    depends on every part of the model.
    """
    model = model_class(tiny_config(model_class, **changes)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * (1.2 / parameter.shape[-1] ** 0.5))
            else:
                parameter.add_(noise, alpha=0.1)
    return model
