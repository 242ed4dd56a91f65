"""The CPU kernels compute what torch computes: attention over pages, and products with 16-bit weights."""

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from flexpert_workers.engine.batch import PagedRows
from flexpert_workers.engine.cache import LayerShape
from flexpert_workers.engine.linear import QuickWeight, quicken
from flexpert_workers.engine.paged import PagedAttention, fits

LENGTHS = np.array([1, 2, 3, 5, 16, 17, 33, 40, 61])
NUM_BLOCKS = 40
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def reference(query, keys, values, rows, scaling, sinks):
    """Attention of each request by itself, in float32."""
    outputs = []
    for row, (first, length) in enumerate(zip(rows.firsts, rows.lengths, strict=True)):
        shared = query.shape[1] // keys.shape[2]
        seen_keys, seen_values = (
            store[rows.tables[row]].flatten(0, 1)[first:length].float().repeat_interleave(shared, 1)
            for store in (keys, values)
        )
        scores = torch.einsum("hd,thd->ht", query[row].float(), seen_keys) * scaling
        if sinks is not None:
            scores = torch.cat([scores, sinks[:, None]], dim=1)
        weights = torch.softmax(scores, dim=-1)[:, : length - first]
        outputs.append(torch.einsum("ht,thd->hd", weights, seen_values))
    return torch.stack(outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("key_heads", "shared", "key_size", "value_size", "block_tokens"),
    [(2, 4, 64, 64, 16), (2, 1, 32, 16, 8), (1, 7, 128, 48, 4)],
)
def test_paged_attention_equals_softmax_attention(dtype, key_heads, shared, key_size, value_size, block_tokens):
    torch.manual_seed(0)
    num_heads = key_heads * shared
    shape = LayerShape((key_heads, key_size), (key_heads, value_size), dtype, num_heads)
    kernel = PagedAttention(shape, block_tokens, num_threads=2)
    keys = torch.randn(NUM_BLOCKS, block_tokens, key_heads, key_size).to(dtype)
    values = torch.randn(NUM_BLOCKS, block_tokens, key_heads, value_size).to(dtype)
    query = torch.randn(len(LENGTHS), num_heads, key_size).to(dtype)
    width = -(-int(LENGTHS.max()) // block_tokens)
    tables = np.random.default_rng(0).integers(0, NUM_BLOCKS, (len(LENGTHS), width))
    for window in (None, 7):
        firsts = np.zeros_like(LENGTHS) if window is None else np.maximum(LENGTHS - window, 0)
        rows = PagedRows(tables, np.arange(len(LENGTHS)), firsts, LENGTHS)
        for sinks in (None, torch.randn(num_heads)):
            result = kernel(query, keys, values, rows, 0.3, sinks)
            expected = reference(query, keys, values, rows, 0.3, sinks)
            torch.testing.assert_close(result.float(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_a_row_of_paged_attention_depends_on_no_other_row():
    torch.manual_seed(0)
    kernel = PagedAttention(LayerShape((2, 32), (2, 32), torch.bfloat16, 4), 16, num_threads=1)
    keys, values = torch.randn(NUM_BLOCKS, 16, 2, 32).bfloat16(), torch.randn(NUM_BLOCKS, 16, 2, 32).bfloat16()
    query = torch.randn(3, 4, 32).bfloat16()
    tables = np.arange(1, 13).reshape(3, 4)
    firsts, lengths = np.zeros(3, dtype=np.int64), np.array([50, 7, 64])
    together = kernel(query, keys, values, PagedRows(tables, np.arange(3), firsts, lengths), 0.2, None)
    for row in range(3):
        one = slice(row, row + 1)
        alone = kernel(
            query[one], keys, values, PagedRows(tables, np.array([row]), firsts[one], lengths[one]), 0.2, None
        )
        assert torch.equal(alone, together[one])


def test_what_is_behind_a_request_does_not_reach_it():
    kernel = PagedAttention(LayerShape((1, 16), (1, 16), torch.float32, 1), 8, num_threads=1)
    keys, values = torch.ones(2, 8, 1, 16), torch.ones(2, 8, 1, 16)
    keys[1, 3:] = values[1, 3:] = torch.nan
    rows = PagedRows(np.array([[1]]), np.array([0]), np.array([0]), np.array([3]))
    assert torch.equal(kernel(torch.ones(1, 1, 16), keys, values, rows, 1.0, None), torch.ones(1, 1, 16))
    beyond = PagedRows(np.array([[1]]), np.array([0]), np.array([0]), np.array([4]))
    assert kernel(torch.ones(1, 1, 16), keys, values, beyond, 1.0, None).isnan().all()


def test_layers_that_the_kernel_does_not_fit():
    assert fits(LayerShape((2, 64), (2, 32), torch.bfloat16, 8), 16)
    assert not fits(LayerShape((2, 60), (2, 60), torch.bfloat16, 8), 16)
    assert not fits(LayerShape((1, 512), (1, 64), torch.bfloat16, 8, expanded_bytes=10_000), 16)
    assert not fits(LayerShape((2, 64), (2, 64), torch.float64, 8), 16)


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(40, 64)
        self.inner = torch.nn.Linear(64, 64)
        self.head = torch.nn.Linear(64, 40, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.inner(self.embedding(ids)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_rows", [0, 1, 5, 300])
def test_quick_weights_multiply_as_torch_does(dtype, num_rows):
    torch.manual_seed(0)
    model = Tied().to(dtype).requires_grad_(False)
    ids = torch.randint(0, 40, (1, num_rows))
    expected = model(ids)
    router = linear(model.embedding(ids), model.inner.weight)
    assert quicken(model, num_threads=1) == 2
    assert isinstance(model.inner.weight, QuickWeight)
    assert model.head.weight is model.embedding.weight
    torch.testing.assert_close(model(ids), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    torch.testing.assert_close(linear(model.embedding(ids), model.inner.weight), router, atol=1e-2, rtol=1e-2)
    assert type(model.inner.weight.float() + 1) is torch.Tensor


def test_float32_weights_stay_as_they_are():
    model = Tied().requires_grad_(False)
    assert quicken(model, num_threads=1) == 0
