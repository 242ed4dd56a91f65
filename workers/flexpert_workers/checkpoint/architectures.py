"""Which architectures are served: decided from facts of the configuration and the class.

`checkpoint.open_checkpoint` asks before it looks at any weight, so that a model that cannot be served is refused when
it is applied, by name and with the reason.
"""

from typing import Any

from flexpert_workers.errors import UnsupportedArchitecture

_SERVED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


def check_config(config: Any, architecture: str) -> None:
    """Refuse what the configuration alone rules out.

    Raises:
        UnsupportedArchitecture: Naming the architecture and why.
    """
    reason = _refusal(config, architecture)
    if reason is not None:
        raise UnsupportedArchitecture(f"{architecture} is not served: {reason}")


def check_model(experts: tuple[Any, ...], architecture: str) -> None:
    """Refuse a model whose experts cannot be taken apart.

    Raises:
        UnsupportedArchitecture: Naming the architecture and why.
    """
    if not experts:
        raise UnsupportedArchitecture(
            f"{architecture} is not served: this checkpoint has no mixture-of-experts layer that implements "
            f"transformers' experts interface"
        )
    for name, _ in experts[0].named_buffers():
        raise UnsupportedArchitecture(f"{architecture} is not served: its experts keep a buffer {name!r}")
    for name, parameter in experts[0].named_parameters():
        if parameter.shape[0] != experts[0].num_experts:
            raise UnsupportedArchitecture(f"{architecture} is not served: all experts share the parameter {name!r}")


def _refusal(config: Any, architecture: str) -> str | None:
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        return f"its weights are quantised ({method or quantization}); give a checkpoint in BF16, F16 or F32"
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder model"
    if not architecture.endswith("ForCausalLM"):
        return "only text models (…ForCausalLM) are served, and it takes more than token ids"
    unknown = sorted(set(getattr(config, "layer_types", None) or ()) - _SERVED_LAYER_TYPES)
    if unknown:
        return f"its layers of type {', '.join(unknown)} keep a state that the paged KV cache does not hold"
    return None
