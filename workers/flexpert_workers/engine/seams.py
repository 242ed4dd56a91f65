"""The public seams of transformers through which an engine drives a model: attention, mask and experts interfaces.

`install` registers our three functions under one name, once a process. A model is driven by the `PassHooks` that `bind`
puts on its modules; nothing is kept in this module. Which keyword arguments attention understands is decided here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from transformers import AttentionInterface
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.masking_utils import AttentionMaskInterface

from flexpert_workers.engine.attention import Expander, Variant
from flexpert_workers.errors import UnsupportedArchitecture

SERVING = "flexpert"
"""Name of our implementations in transformers' registries."""
PROBING = "flexpert_probe"
"""The same attention with a mask function that describes the mask asked for, instead of leaving it out."""

ALL_TOKENS = 0
OTHER_MASK = -1
"""What `describe_mask` answers besides the size of a window."""

_FAR = 1 << 17  # beyond any sliding window; probed once per mask and load

_USED = frozenset({"scaling", "sliding_window", "s_aux", "softcap"})
_NEUTRAL = frozenset({"position_ids", "use_cache", "position_embeddings", "cache_position"})


class ExpertDispatcher(Protocol):
    """Where hidden rows become the weighted sums of their experts' outputs: `dispatch.DispatchClient`."""

    def dispatch(
        self, layer: int, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Weighted sums, [rows, hidden] in `hidden.dtype`.

        Args:
            layer: MoE layer, 0-based among the MoE layers.
            hidden: [rows, hidden].
            top_k_index: [rows, k] expert indices; `num_experts` means no expert.
            top_k_weights: [rows, k].

        Raises:
            PassAbandoned: No worker answered for some experts in time.
        """


class Attend(Protocol):
    """Attention of the present pass."""

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        arguments: Mapping[str, Any],
    ) -> torch.Tensor:
        """[1, rows, heads, value size] for a query of [1, heads, rows, size]."""


class PassHooks(NamedTuple):
    """What the modules of one model call."""

    attend: Attend
    dispatch: Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def install() -> None:
    """Register our functions with transformers; doing it again changes nothing."""
    for name in (SERVING, PROBING):
        AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(SERVING, no_mask)
    AttentionMaskInterface.register(PROBING, describe_mask)
    ALL_EXPERTS_FUNCTIONS.register(SERVING, experts_forward)


def bind(model: torch.nn.Module, hooks: PassHooks, moe_layer_modules: Sequence[str]) -> None:
    """Make every module of the model call these hooks; `moe_layer_modules` are the paths of the experts, in order."""
    for module in model.modules():
        module.flexpert_hooks = hooks  # type: ignore[assignment]
    for layer, path in enumerate(moe_layer_modules):
        model.get_submodule(path).flexpert_layer = layer  # type: ignore[assignment]


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **arguments: object,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention interface."""
    hooks = cast(PassHooks, module.flexpert_hooks)
    return hooks.attend(module, query, key, value, attention_mask, arguments), None


def no_mask(*args: object, **kwargs: object) -> None:
    """Transformers' mask interface: causality and windows are attention's own business here."""


def describe_mask(
    batch_size: int,
    q_length: int,
    mask_function: Callable[..., torch.Tensor],
    **kwargs: object,
) -> torch.Tensor:
    """Transformers' mask interface while probing: a mask-shaped tensor filled with the window that the model asks for.

    The value is `ALL_TOKENS` for causal attention without a window, and `OTHER_MASK` for what is not causal attention.
    """
    index = torch.tensor(0)
    keys = torch.arange(2 * _FAR)
    shown = mask_function(index, index, torch.tensor(_FAR), keys).expand(keys.shape)
    window = int(shown.sum())
    is_last = bool(shown[_FAR + 1 - window : _FAR + 1].all())
    described = OTHER_MASK if not (window and is_last) else ALL_TOKENS if window > _FAR else window
    return torch.full((batch_size, 1, q_length, q_length), described)


def variant_of(arguments: Mapping[str, Any]) -> Variant:
    """How attention with these keyword arguments differs from the plain one."""
    return Variant(
        arguments["scaling"], arguments.get("sliding_window"), arguments.get("s_aux"), arguments.get("softcap")
    )


def refuse_unknown(arguments: Mapping[str, Any]) -> None:
    """Refuse keyword arguments of attention that would change its result and that we do not honour.

    Raises:
        UnsupportedArchitecture: Naming them.
    """
    unknown = sorted(name for name, value in arguments.items() if not _is_harmless(name, value))
    if unknown:
        raise UnsupportedArchitecture(f"its attention passes {', '.join(unknown)}, which this engine does not honour")
    if not isinstance(arguments.get("scaling"), float | int):
        raise UnsupportedArchitecture("its attention passes no scaling")


def _is_harmless(name: str, value: object) -> bool:
    if name in _USED | _NEUTRAL or value is None or value is False:
        return True
    return (name == "dropout" and value == 0.0) or (name == "is_causal" and value is True)


def expander_of(module: torch.nn.Module) -> Expander | None:
    """The module itself if it caches a latent."""
    return cast(Expander, module) if hasattr(module, "expand_kv") else None


def experts_forward(
    module: torch.nn.Module,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """Transformers' experts interface: hand the rows to the dispatcher, in whatever shape the model keeps them."""
    hooks = cast(PassHooks, module.flexpert_hooks)
    hidden = hidden_states.reshape(-1, hidden_states.shape[-1])
    index = top_k_index.reshape(hidden.shape[0], -1)
    weights = top_k_weights.reshape(hidden.shape[0], -1)
    if weights.shape != index.shape:  # a weight for every expert: take those of the chosen ones
        weights = weights.gather(1, index)
    output = hooks.dispatch(cast(int, module.flexpert_layer), hidden, index, weights)
    return output.reshape(hidden_states.shape)
