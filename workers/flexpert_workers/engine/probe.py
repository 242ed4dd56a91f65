"""Asks a model, at load, whether this engine can serve it, and what its layers keep of a token.

Two questions, each answered by running it. First pass: which keyword arguments and masks do its attention layers use,
and what do they hand to the cache? Then: does a sequence get the same logits alone and packed behind another one, whole
and in chunks? State that lives outside attention (convolutions, recurrences) shows there. What fails is refused.
"""

from collections.abc import Mapping
from typing import Any

import torch

from flexpert_workers.checkpoint import Checkpoint
from flexpert_workers.engine.cache import CachePlan, LayerShape, ShapeRecorder
from flexpert_workers.engine.request import Request, RequestKey
from flexpert_workers.engine.runner import Runner
from flexpert_workers.engine.scheduler import Scheduled
from flexpert_workers.engine.seams import (
    ALL_TOKENS,
    OTHER_MASK,
    PROBING,
    SERVING,
    PassHooks,
    bind,
    expander_of,
    refuse_unknown,
)
from flexpert_workers.errors import UnsupportedArchitecture
from flexpert_workers.messages.generation import Sampling, Submit

_BLOCK = 4


def probe(model: Any, checkpoint: Checkpoint) -> dict[int, LayerShape]:
    """What each attention layer keeps of a token.

    Raises:
        UnsupportedArchitecture: The engine would not compute what the model means; the message says why.
    """
    try:
        shapes = _shapes(model, checkpoint)
        _check_packing(model, checkpoint, shapes)
    except UnsupportedArchitecture as error:
        raise UnsupportedArchitecture(f"{checkpoint.architecture} is not served: {error}") from error
    except (AttributeError, TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
        raise UnsupportedArchitecture(
            f"{checkpoint.architecture} is not served: it does not run over a paged cache "
            f"({type(error).__name__}: {error})"
        ) from error
    return shapes


def context_length(checkpoint: Checkpoint) -> int:
    """Tokens up to which no request's positions depend on who shares its batch.

    Rotary embeddings of type "dynamic" and "longrope" change with the longest sequence of a pass once it exceeds the
    length the model was first trained for; up to there they do not.
    """
    rope = getattr(checkpoint.config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        original = rope.get("original_max_position_embeddings") or checkpoint.context_length
        return min(checkpoint.context_length, int(original))
    return checkpoint.context_length


class PassThrough:
    """Stands for the experts while probing: every row comes back, times the sum of its weights."""

    def dispatch(
        self, layer: int, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """As of `seams.ExpertDispatcher`."""
        return (hidden * top_k_weights.sum(dim=-1, keepdim=True)).to(hidden.dtype)


@torch.inference_mode()
def _shapes(model: Any, checkpoint: Checkpoint) -> dict[int, LayerShape]:
    recorder = ShapeRecorder()

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        arguments: Mapping[str, Any],
    ) -> torch.Tensor:
        refuse_unknown(arguments)
        _check_window(mask, arguments.get("sliding_window"), checkpoint.context_length)
        layer: int = module.layer_idx  # type: ignore[assignment]
        if layer not in recorder.shapes:
            raise UnsupportedArchitecture(f"attention layer {layer} keeps nothing in the cache")
        recorder.shapes[layer] = recorder.shapes[layer]._replace(num_heads=query.shape[1])
        if expander_of(module) is not None:
            expanded = key[0, :, 0].nbytes + value[0, :, 0].nbytes
            recorder.shapes[layer] = recorder.shapes[layer]._replace(expanded_bytes=expanded)
        elif (key.shape[1], key.shape[3]) != recorder.shapes[layer].key:
            raise UnsupportedArchitecture(f"attention layer {layer} changes its keys after it has cached them")
        return query.new_zeros((1, query.shape[2], query.shape[1], value.shape[3]))

    bind(model, PassHooks(attend, PassThrough().dispatch), checkpoint.moe_layer_modules)
    model.set_attn_implementation(PROBING)
    try:
        ids = torch.arange(3)[None] % model.config.get_text_config().vocab_size
        model(
            input_ids=ids,
            position_ids=torch.arange(3)[None],
            past_key_values=recorder,
            use_cache=True,
            logits_to_keep=torch.tensor([2]),
        )
    finally:
        model.set_attn_implementation(SERVING)
    if not recorder.shapes:
        raise UnsupportedArchitecture("none of its layers uses transformers' attention interface")
    return recorder.shapes


def _check_window(mask: torch.Tensor | None, window: int | None, context_tokens: int) -> None:
    """What the mask shows and what the attention layer says it sees have to agree, as far as the context goes."""
    if mask is None:
        raise UnsupportedArchitecture("an attention layer asks for no mask")
    wanted = int(mask.flatten()[0])
    if wanted == OTHER_MASK:
        raise UnsupportedArchitecture("an attention layer's mask is neither causal nor a sliding window")
    if _within(wanted, context_tokens) != _within(window or ALL_TOKENS, context_tokens):
        raise UnsupportedArchitecture(
            f"an attention layer's mask shows {wanted or 'all'} tokens, but it passes sliding_window={window}"
        )


def _within(window: int, context_tokens: int) -> int:
    return ALL_TOKENS if window >= context_tokens else window


def _check_packing(model: Any, checkpoint: Checkpoint, shapes: Mapping[int, LayerShape]) -> None:
    vocabulary = int(model.config.get_text_config().vocab_size)
    plan = CachePlan(num_blocks=16, gather_tokens=16 * _BLOCK)
    runner = Runner(model, checkpoint.moe_layer_modules, shapes, plan, _BLOCK, PassThrough(), {})
    first = _request([1, 5, 9, 2, 6], vocabulary, [1, 2])
    second = _request([3, 1, 4, 1, 5, 9, 2], vocabulary, [3, 4])
    alone = _request([3, 1, 4, 1, 5, 9, 2], vocabulary, [5, 6])
    _, expected = runner.run([Scheduled(alone, 7)])
    _, packed = runner.run([Scheduled(first, 5), Scheduled(second, 3)])
    second.num_computed = 3
    first.num_computed, first.num_tokens = 5, 6
    _, packed = runner.run([Scheduled(first, 1), Scheduled(second, 4)])
    difference = float((packed[-1].float() - expected[-1].float()).abs().max())
    tolerance = 1e-3 if expected.dtype == torch.float32 else 0.1
    if not difference <= tolerance * max(1.0, float(expected.float().abs().max())):
        raise UnsupportedArchitecture(
            f"a sequence's logits change by {difference:.3g} when others share its batch: "
            "it keeps state outside attention"
        )


def _request(tokens: list[int], vocabulary: int, blocks: list[int]) -> Request:
    submit = Submit(0, tuple(token % vocabulary for token in tokens), (), Sampling(max_tokens=1))
    request = Request(RequestKey(b"", 0), submit)
    request.blocks = blocks
    return request
