"""A model without weights (on meta), and what can be read off it: its experts, its dense bytes, its KV bytes.

`checkpoint.open_checkpoint` builds it once; nothing here reads a weight.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig
from transformers.activations import ACT2FN
from transformers.integrations import moe

from flexpert_workers.checkpoint.files import CONFIG_FILE
from flexpert_workers.checkpoint.form import ACTIVATIONS, ExpertsForm
from flexpert_workers.errors import CorruptCheckpoint, UnsupportedArchitecture

_EXPERTS_FLAGS = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "is_concatenated")
"""What transformers' `use_experts_implementation` sets on every instance of a class it decorates."""

_TOP_K_FIELDS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "top_k")


@dataclass(frozen=True)
class ExpertsModule:
    """The experts of one MoE layer: the path of their module in the model, and the module itself (on meta)."""

    path: str
    module: torch.nn.Module


def load_config(path: Path) -> Any:
    """The configuration of a checkpoint folder, as transformers reads it; custom code is never run.

    Raises:
        UnsupportedArchitecture: transformers does not know the model type.
        CorruptCheckpoint: The configuration contradicts itself.
    """
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise UnsupportedArchitecture(
            f"{path / CONFIG_FILE}: transformers {transformers.__version__} cannot read it: {error}"
        ) from error
    except (TypeError, AttributeError, OSError) as error:
        raise CorruptCheckpoint(f"{path / CONFIG_FILE} is not a usable configuration: {error}") from error


def model_class(architecture: str) -> Any:
    """The model class of that name.

    Raises:
        UnsupportedArchitecture: transformers has none.
    """
    found = getattr(transformers, architecture, None)
    if not isinstance(found, type):
        raise UnsupportedArchitecture(
            f"{architecture}: transformers {transformers.__version__} has no such class; only its own are served"
        )
    return found


def build_skeleton(config: Any, architecture: str) -> Any:
    """The model of `config` on meta.

    Raises:
        CorruptCheckpoint: The class cannot be built from the configuration.
    """
    try:
        with torch.device("meta"):
            return model_class(architecture)(config).eval()
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ZeroDivisionError, RuntimeError) as error:
        raise CorruptCheckpoint(
            f"{architecture} cannot be built from its configuration: {type(error).__name__}: {error}"
        ) from error


def experts_modules(model: torch.nn.Module) -> Iterator[ExpertsModule]:
    """The modules whose class implements transformers' experts interface, in layer order."""
    for path, module in model.named_modules():
        if all(hasattr(module, flag) for flag in _EXPERTS_FLAGS):
            yield ExpertsModule(path, module)


def parameter_shapes(experts: torch.nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(name, shape without the leading dimension of experts) of every parameter, in the class's order."""
    return tuple((name, tuple(parameter.shape[1:])) for name, parameter in experts.named_parameters())


def form_of(experts: torch.nn.Module) -> ExpertsForm | None:
    """What the experts compute between their products; None when only their class can tell."""
    module: Any = experts
    own = type(getattr(module, "act_fn", None))
    activation = next((name for name in ACTIVATIONS if own is type(ACT2FN[name])), None)
    own_gate = module.has_gate and type(module)._apply_gate.__module__ != moe.__name__
    if activation is None or own_gate or module.has_post_expert_norm:
        return None
    return ExpertsForm(module.has_gate, module.has_bias, module.is_transposed, activation)


def experts_per_token(config: Any, architecture: str) -> int:
    """To how many experts the router sends a token.

    Raises:
        UnsupportedArchitecture: No known field of the configuration tells.
    """
    for field in _TOP_K_FIELDS:
        value = getattr(config, field, None)
        if isinstance(value, list) and value:
            value = max(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    raise UnsupportedArchitecture(f"{architecture}: its configuration does not tell the number of experts per token")


def context_length(config: Any, architecture: str) -> int:
    """Tokens, prompt and output together, up to which the model's positions are its own affair.

    Rotary embeddings of type "dynamic" and "longrope" change for a whole pass once its longest sequence exceeds the
    length the model was first trained for; a request's text would then depend on who shares its passes.

    Raises:
        UnsupportedArchitecture: The configuration does not tell.
    """
    longest = getattr(config, "max_position_embeddings", None)
    if not isinstance(longest, int):
        raise UnsupportedArchitecture(f"{architecture} is not served: its configuration tells no context length")
    changing = (rope for rope in _rotary_embeddings(config) if rope.get("rope_type") in ("dynamic", "longrope"))
    return min([longest, *(int(rope.get("original_max_position_embeddings") or longest) for rope in changing)])


def _rotary_embeddings(config: Any) -> list[dict[str, Any]]:
    """Parameters of the rotary embedding, or of each kind of layer where they differ."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or [parameters]


def dense_bytes(model: torch.nn.Module, dtype: torch.dtype) -> int:
    """Bytes of all weights but the experts', each counted once, at `dtype` (a few that an architecture keeps in fp32,
    such as a router's bias, are counted so too).
    """
    inside = {id(parameter) for experts in experts_modules(model) for parameter in experts.module.parameters()}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in inside) * dtype.itemsize


def kv_bytes_per_token(model: torch.nn.Module, config: Any, dtype: torch.dtype) -> int:
    """Bytes that one token takes in the KV cache over all layers: keys and values, or MLA's latent where there is one.

    Read off the attention modules' projections; where a module names them otherwise, off the configuration.
    """
    return sum(_cached_elements(module, config) for module in attention_modules(model)) * dtype.itemsize


def attention_modules(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules that hand keys and values to a cache, in layer order."""
    return [module for module in model.modules() if hasattr(module, "layer_idx") and _is_attention(module)]


def _is_attention(module: torch.nn.Module) -> bool:
    return any(hasattr(module, name) for name in ("k_proj", "kv_a_proj_with_mqa", "o_proj", "dense"))


def _cached_elements(attention: Any, config: Any) -> int:
    if hasattr(attention, "expand_kv"):
        return int(attention.kv_lora_rank + attention.qk_rope_head_dim)
    if hasattr(attention, "k_proj") and hasattr(attention, "v_proj"):
        return int(attention.k_proj.out_features + attention.v_proj.out_features)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * heads * head_dim)
