"""The paged KV cache's tensors: what each attention layer hands over, token by token, in blocks allocated once.

It stands where transformers expects `past_key_values`: modules call `update`, our attention function `gather`s.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Never

import torch

from flexpert_workers.errors import CapacityError


class LayerShape(NamedTuple):
    """What one layer keeps of a token: [heads, head size] of key and value, which may differ (MLA: latent and rotary).

    Attributes:
        num_heads: Of the queries.
        expanded_bytes: Bytes of one token's keys and values once a latent is expanded for attention, else 0.
    """

    key: tuple[int, int]
    value: tuple[int, int]
    dtype: torch.dtype
    num_heads: int
    expanded_bytes: int = 0

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in this layer."""
        return (self.key[0] * self.key[1] + self.value[0] * self.value[1]) * self.dtype.itemsize

    @property
    def gathered_bytes(self) -> int:
        """Bytes that attention takes for a token of this layer while it computes: gathered, expanded, in float32."""
        used = self.expanded_bytes or self.token_bytes
        widened = 0 if self.dtype.itemsize == 4 else used * 4 // self.dtype.itemsize
        return self.token_bytes + self.expanded_bytes + widened


def bytes_per_token(shapes: Mapping[int, LayerShape]) -> int:
    """Bytes of one token over all layers."""
    return sum(shape.token_bytes for shape in shapes.values())


class CachePlan(NamedTuple):
    """How a budget is spent.

    Attributes:
        num_blocks: Blocks of each layer, the padding block included.
        gather_tokens: Most tokens of one layer that attention gathers at once (one longer request excepted).
    """

    num_blocks: int
    gather_tokens: int


MIN_GATHER_TOKENS = 16384


def plan_cache(
    shapes: Mapping[int, LayerShape], budget_bytes: int, block_tokens: int, context_length: int
) -> CachePlan:
    """Divide the budget between the blocks of all layers and the workspace in which attention gathers one layer. Pure.

    The workspace has to hold the longest request there can be; it holds `MIN_GATHER_TOKENS` where the cache is larger
    than that, so that many short requests are gathered together.

    Raises:
        CapacityError: The budget does not hold two blocks.
    """
    gathered = max(shape.gathered_bytes for shape in shapes.values())
    kept = bytes_per_token(shapes)
    most_gathered = max(context_length, MIN_GATHER_TOKENS)
    num_blocks = budget_bytes // ((kept + gathered) * block_tokens)
    if num_blocks * block_tokens > most_gathered:
        num_blocks = (budget_bytes - most_gathered * gathered) // (kept * block_tokens)
    if num_blocks < 2:
        raise CapacityError(
            f"kvCacheMemory of {budget_bytes} bytes is too little: a block of {block_tokens} tokens takes "
            f"{(kept + gathered) * block_tokens} bytes and two are the least; raise it"
        )
    return CachePlan(num_blocks, min(most_gathered, num_blocks * block_tokens))


class PagedCache:
    """Keys and values of every layer, `[blocks, block_tokens, heads, head size]`, zero at first.

    Attributes:
        slots: [rows] int64, set before each pass: where the pass's rows go (block * block_tokens + offset).
    """

    is_compileable = False

    def __init__(self, shapes: Mapping[int, LayerShape], num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.slots = torch.zeros(0, dtype=torch.int64)
        # Zeros, so that what masks hide is finite; the kernel hands out the pages only when they are written.
        self._keys = {
            layer: torch.zeros((num_blocks, block_tokens, *shape.key), dtype=shape.dtype)
            for layer, shape in shapes.items()
        }
        self._values = {
            layer: torch.zeros((num_blocks, block_tokens, *shape.value), dtype=shape.dtype)
            for layer, shape in shapes.items()
        }

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensors in (self._keys, self._values) for tensor in tensors.values())

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the pass's rows, `[1, heads, rows, head size]`, at `slots`; what came in is handed back as it is."""
        for store, rows in ((self._keys[layer_idx], key), (self._values[layer_idx], value)):
            store.flatten(0, 1).index_copy_(0, self.slots, rows[0].transpose(0, 1))
        return key, value

    def layer(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, all blocks."""
        return self._keys[layer_idx], self._values[layer_idx]

    def gather(self, layer_idx: int, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the blocks in `table` `[requests, blocks]`, as `[requests, heads, tokens, head size]`."""
        flat = table.reshape(-1)
        num_requests = table.shape[0]
        keys, values = (
            store.index_select(0, flat).view(num_requests, -1, *store.shape[2:]).transpose(1, 2)
            for store in (self._keys[layer_idx], self._values[layer_idx])
        )
        return keys, values

    def scrub(self, blocks: list[int]) -> None:
        """Zero blocks whose content must not reach anybody else (a request whose numbers were not finite)."""
        for stores in (self._keys, self._values):
            for store in stores.values():
                store[blocks] = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are always given, so no module needs the length."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Masks are not built, so no mask needs the offset."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """(keys, offset) of a mask that is not built."""
        return query_length, 0

    def __getattr__(self, name: str) -> Never:
        # Convolution states, recurrent states, indexers: state that is not paged. Refused at load, by the probe.
        raise AttributeError(f"the paged KV cache has no {name!r}")


class ShapeRecorder:
    """Stands for the cache in the first pass of the probe: notes what each layer hands over."""

    is_compileable = False

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Note `[1, heads, rows, head size]` of key and value."""
        self.shapes[layer_idx] = LayerShape(
            (key.shape[1], key.shape[3]), (value.shape[1], value.shape[3]), key.dtype, 0
        )
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """As of `PagedCache`."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Masks are not built, so no mask needs the offset."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """(keys, offset) of a mask that is not built."""
        return query_length, 0
