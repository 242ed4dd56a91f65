"""The matrix kernels against products in float64, and the properties that their callers rely on."""

import functools

import numpy as np
import pytest
import torch

from flexpert_workers.expert.kernels import NativeGroupedLinear, TorchGroupedLinear, grouped_linear

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@functools.cache
def native(dtype, is_transposed, num_threads=1):
    return NativeGroupedLinear(dtype, is_transposed, num_threads)


def problem(dtype, is_transposed, counts, num_in=96, num_out=80, seed=3):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_in, num_out) if is_transposed else (num_out, num_in)
    weights = [torch.randn(shape, generator=generator).to(dtype) for _ in counts]
    inputs = torch.randn(int(sum(counts)), num_in, generator=generator)
    return inputs, weights, np.array(counts)


def exact(inputs, weights, counts, is_transposed):
    groups = inputs.double().split(counts.tolist())
    return torch.cat([g @ (w if is_transposed else w.t()).double() for g, w in zip(groups, weights, strict=True)])


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_accumulated_in_float32(dtype, is_transposed):
    inputs, weights, counts = problem(dtype, is_transposed, [1, 2, 3, 4, 5, 6, 7, 13, 30])
    linear = native(dtype, is_transposed, 1)
    answer = linear(inputs, weights, counts)
    torch.testing.assert_close(answer.double(), exact(inputs, weights, counts, is_transposed), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("num_out", [1, 3, 17, 50])
def test_columns_that_do_not_fill_a_tile(num_out):
    inputs, weights, counts = problem(torch.bfloat16, False, [5, 9], num_out=num_out)
    answer = native(torch.bfloat16, False, 1)(inputs, weights, counts)
    torch.testing.assert_close(answer.double(), exact(inputs, weights, counts, False), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("num_in", [1, 2, 3, 7])
def test_inputs_that_do_not_fill_an_update(num_in):
    inputs, weights, counts = problem(torch.float32, True, [5, 9], num_in=num_in)
    answer = native(torch.float32, True, 1)(inputs, weights, counts)
    torch.testing.assert_close(answer.double(), exact(inputs, weights, counts, True), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_row_does_not_depend_on_its_company(is_transposed):
    inputs, weights, counts = problem(torch.bfloat16, is_transposed, [23])
    linear = native(torch.bfloat16, is_transposed, 1)
    together = linear(inputs, weights, counts)
    for row in range(23):
        alone = linear(inputs[row : row + 1].contiguous(), weights, np.array([1]))
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("num_threads", [2, 3, 8])
def test_threads_change_nothing(is_transposed, num_threads):
    inputs, weights, counts = problem(torch.bfloat16, is_transposed, [3, 11])
    one = native(torch.bfloat16, is_transposed, 1)(inputs, weights, counts)
    several = native(torch.bfloat16, is_transposed, num_threads)(inputs, weights, counts)
    assert torch.equal(one, several)


@pytest.mark.parametrize("is_transposed", [False, True])
def test_torch_computes_the_same(is_transposed):
    inputs, weights, counts = problem(torch.bfloat16, is_transposed, [3, 11])
    answer = TorchGroupedLinear(is_transposed)(inputs, weights, counts)
    torch.testing.assert_close(answer.double(), exact(inputs, weights, counts, is_transposed), atol=1e-4, rtol=1e-5)


def test_shapes_that_do_not_fill_vectors_go_to_torch():
    assert isinstance(grouped_linear([(80, 96)], torch.float32, False, 1), NativeGroupedLinear)
    assert isinstance(grouped_linear([(80, 97)], torch.float32, False, 1), TorchGroupedLinear)
