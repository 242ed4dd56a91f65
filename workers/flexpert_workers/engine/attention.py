"""Attention over the paged cache: by a kernel where it lies, or gathered, by torch.

Called by the runner in each attention layer of each pass. Memory for gathered keys and values is that of one layer,
bounded by `cache.CachePlan`; scores are tiled, so they never grow with the square of the context.
"""

from typing import NamedTuple, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from flexpert_workers.engine.batch import Batch, Chunk, DecodeGroup
from flexpert_workers.engine.cache import PagedCache
from flexpert_workers.engine.paged import PagedAttention

QUERY_TILE = 256
"""Query rows of a chunk that attend in one call."""


class Expander(Protocol):
    """An attention module that caches a latent: `expand_kv` turns it into keys and values of every head."""

    def expand_kv(self, latent: torch.Tensor, rotary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[requests, 1, tokens, …]` twice to keys and values `[requests, heads, tokens, …]`."""


class Variant(NamedTuple):
    """How a layer's attention differs from plain causal attention.

    Attributes:
        window: It sees this many last tokens, its own included; None is all.
        sinks: [heads] logits that take part in the softmax and carry no value (gpt-oss).
        softcap: Scores are squashed to ± this by a tanh.
    """

    scaling: float
    window: int | None = None
    sinks: torch.Tensor | None = None
    softcap: float | None = None


def attend(
    cache: PagedCache,
    batch: Batch,
    layer_idx: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    variant: Variant,
    expander: Expander | None,
    kernel: PagedAttention | None,
) -> torch.Tensor:
    """Attention of a packed pass.

    `query` is [1, heads, rows, head size]; `key` and `value` are the pass's own rows, in as many heads or fewer.
    `expander` is the module when the cache holds its latent; `kernel` the layer's own, where there is one.

    Returns:
        [1, rows, heads, head size of the values], contiguous: some models view it in another shape.
    """
    outputs = []
    if kernel is not None and variant.softcap is None:
        chunks = batch.long_chunks
        rows = query[0, :, : batch.num_short_rows].transpose(0, 1)
        seen = batch.rows(variant.window)
        outputs.append(kernel(rows, *cache.layer(layer_idx), seen, variant.scaling, variant.sinks))
    else:
        chunks = batch.chunks
        for group in batch.decode_groups(variant.window):
            keys, values = _gather(cache, layer_idx, group.table, group.num_tokens, expander)
            outputs.append(_decode(query[0, :, group.start : group.stop], keys, values, group, variant))
    for chunk in chunks:
        own = slice(chunk.start, chunk.stop)
        if chunk.position == 0:  # nothing cached: the pass's own rows are all there is
            keys, values = key[:, :, own], value[:, :, own]
        else:
            keys, values = _gather(cache, layer_idx, chunk.table, chunk.position + chunk.stop - chunk.start, expander)
        outputs.append(_prefill(query[:, :, own], keys, values, chunk, variant))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).contiguous()[None]


def _gather(
    cache: PagedCache, layer_idx: int, table: torch.Tensor, num_tokens: int, expander: Expander | None
) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = cache.gather(layer_idx, table)
    keys, values = keys[:, :, :num_tokens], values[:, :, :num_tokens]
    return expander.expand_kv(keys, values) if expander is not None else (keys, values)


def _decode(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: DecodeGroup, variant: Variant
) -> torch.Tensor:
    """`query` [heads, requests, size] to [requests, heads, size]: the heads that share a key are its query rows."""
    num_heads, num_requests, size = query.shape
    shared = query.transpose(0, 1).reshape(num_requests, keys.shape[1], -1, size)
    sinks = None if variant.sinks is None else variant.sinks.view(1, keys.shape[1], -1, 1)
    output = _softmax_attention(shared, keys, values, group.mask, variant, sinks)
    return output.reshape(num_requests, num_heads, -1)


def _prefill(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, chunk: Chunk, variant: Variant
) -> torch.Tensor:
    """`query` [1, heads, rows, size] to [rows, heads, size], a tile of rows after the other."""
    keys, values = keys.float(), values.float()
    outputs = []
    for start in range(0, query.shape[2], QUERY_TILE):
        tile = query[:, :, start : start + QUERY_TILE]
        first = chunk.position + start
        last = first + tile.shape[2]
        low = 0 if variant.window is None else max(0, first - variant.window + 1)
        mask = _causal_mask(first, last, low, variant.window)
        outputs.append(_tile(tile, keys[:, :, low:last], values[:, :, low:last], mask, variant))
    return torch.cat(outputs, dim=2)[0].transpose(0, 1)


def _tile(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, variant: Variant
) -> torch.Tensor:
    """`query` [1, heads, rows, size]; heads that share a key are folded into rows, so that no key is copied."""
    _, num_heads, num_rows, size = query.shape
    num_shared = num_heads // keys.shape[1]
    folded = query.reshape(1, keys.shape[1], num_shared * num_rows, size)
    if mask is not None and num_shared > 1:
        mask = mask.repeat(1, 1, num_shared, 1)
    sinks = variant.sinks
    if sinks is not None:
        sinks = sinks.view(1, keys.shape[1], num_shared).repeat_interleave(num_rows, dim=2)[..., None]
    output = _softmax_attention(folded, keys, values, mask, variant, sinks)
    return output.reshape(1, num_heads, num_rows, -1)


def _causal_mask(first: int, last: int, low: int, window: int | None) -> torch.Tensor | None:
    """[1, 1, queries, keys] for queries at `first` … `last` - 1 and keys from `low` on."""
    if last - first == 1:
        return None
    rows = torch.arange(first, last)[:, None]
    columns = torch.arange(low, last)[None]
    mask = columns <= rows
    if window is not None:
        mask &= columns > rows - window
    return mask[None, None]


def _softmax_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    variant: Variant,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """[n, heads, rows, size] attention, computed in float32; `sinks` broadcast to [n, heads, rows, 1]."""
    dtype = query.dtype
    query, keys, values = query.float(), keys.float(), values.float()
    if sinks is None and variant.softcap is None:
        output = scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=variant.scaling)
        return output.to(dtype)
    scores = torch.matmul(query, keys.transpose(2, 3)) * variant.scaling
    if variant.softcap is not None:
        scores = torch.tanh(scores / variant.softcap) * variant.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().expand(*scores.shape[:-1], 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1)
    if sinks is not None:
        weights = weights[..., :-1]
    return torch.matmul(weights, values).to(dtype)
