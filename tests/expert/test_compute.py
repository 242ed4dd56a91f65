"""The computation against the eager forward of architectures' own experts classes, all variants of the interface."""

import functools

import numpy as np
import pytest
import torch
from transformers import GptOssConfig, MixtralConfig
from transformers.integrations.moe import use_experts_implementation
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from flexpert_workers.errors import UnsupportedArchitecture
from flexpert_workers.expert.compute import ExpertCompute, sort_pairs
from flexpert_workers.expert.kernels import TorchGroupedLinear, grouped_linear
from flexpert_workers.expert.store import ResidentExpert

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_local_experts": 6}


def mixtral():
    return MixtralExperts(MixtralConfig(**SIZES))


def gpt_oss():
    return GptOssExperts(GptOssConfig(**SIZES))


@use_experts_implementation(has_gate=False)
class PlainExperts(torch.nn.Module):
    """Experts without a gate, as a few architectures have them."""

    def __init__(self, config):
        super().__init__()
        self.num_experts = config.num_local_experts
        self.up_proj = torch.nn.Parameter(torch.empty(self.num_experts, config.intermediate_size, config.hidden_size))
        self.down_proj = torch.nn.Parameter(torch.empty(self.num_experts, config.hidden_size, config.intermediate_size))
        self.act_fn = torch.nn.functional.relu

    def forward(self, hidden, top_k_index, top_k_weights):
        total = torch.zeros_like(hidden)
        for row, (indices, weights) in enumerate(zip(top_k_index, top_k_weights, strict=True)):
            for index, weight in zip(indices, weights, strict=True):
                inner = self.act_fn(self.up_proj[index] @ hidden[row])
                total[row] += weight * (self.down_proj[index] @ inner)
        return total


def plain():
    return PlainExperts(MixtralConfig(**SIZES))


@use_experts_implementation(has_post_expert_norm=True)
class NormedExperts(MixtralExperts):
    """Experts with a norm behind them that has no weights."""

    def post_expert_norm(self, outputs):
        return outputs * torch.rsqrt(outputs.pow(2).mean(-1, keepdim=True) + 1e-6)


def randomise(module):
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    module.config._experts_implementation = "eager"
    return module


def resident(module, index, dtype=torch.float32):
    tensors = {name: parameter[index].detach().to(dtype) for name, parameter in module.named_parameters()}
    return ResidentExpert(tensors)


@functools.cache
def native_linear(dtype, is_transposed):
    return grouped_linear([(32, 48), (96, 32), (48, 32)], dtype, is_transposed, 1)


def compute(module, hidden, top_k_index, top_k_weights, linear=None, dtype=torch.float32):
    k = top_k_index.shape[1]
    flat = top_k_index.reshape(-1).numpy()
    pairs = np.stack([np.arange(len(flat)) // k, flat], axis=1).astype(np.int32)
    ordered = sort_pairs(pairs, module.num_experts)
    linear = linear or native_linear(dtype, module.is_transposed)
    experts = [resident(module, index, dtype) for index in ordered.indices.tolist()]
    return ExpertCompute(module, linear)(experts, ordered, hidden, top_k_weights.reshape(-1))


def routed(rows=9, k=2, seed=2):
    generator = torch.Generator().manual_seed(seed)
    weights, index = torch.rand(rows, 6, generator=generator).topk(k)
    return torch.randn(rows, 32, generator=generator), index, weights


@pytest.mark.parametrize("make", [mixtral, gpt_oss, plain])
@pytest.mark.parametrize("native", [True, False])
def test_the_architectures_own_forward(make, native):
    module = randomise(make())
    linear = None if native else TorchGroupedLinear(module.is_transposed)
    with torch.no_grad():
        expected = module(*routed())
    torch.testing.assert_close(compute(module, *routed(), linear), expected, atol=1e-5, rtol=1e-5)


def test_a_norm_behind_the_experts_is_applied():
    module = randomise(NormedExperts(MixtralConfig(**SIZES)))
    hidden, index, weights = routed()
    each = [
        (
            module.post_expert_norm(
                compute(plainly(module), hidden[row : row + 1], index[row : row + 1, i : i + 1], ones)
            )
        )
        * weights[row, i]
        for row in range(len(hidden))
        for i in range(2)
        for ones in [torch.ones(1, 1)]
    ]
    expected = torch.cat(each).view(len(hidden), 2, -1).sum(1)
    torch.testing.assert_close(compute(module, hidden, index, weights), expected, atol=1e-5, rtol=1e-5)


def plainly(module):
    plain_module = mixtral()
    plain_module.load_state_dict(module.state_dict())
    return plain_module


def test_a_norm_whose_weights_no_page_carries_is_refused():
    @use_experts_implementation(has_post_expert_norm=True)
    class Weighted(MixtralExperts):
        def __init__(self, config):
            super().__init__(config)
            self.post_expert_norm = torch.nn.RMSNorm(32)

    with pytest.raises(UnsupportedArchitecture, match="Weighted"):
        ExpertCompute(Weighted(MixtralConfig(**SIZES)), TorchGroupedLinear(False))


def test_bfloat16_weights_are_no_less_exact_than_the_architecture_itself():
    module = randomise(mixtral())
    hidden, index, weights = routed(rows=40)
    rounded = randomise(mixtral()).to(torch.bfloat16)
    with torch.no_grad():
        own = rounded(hidden.bfloat16(), index, weights.bfloat16()).float()
        exact = rounded.double()(hidden.bfloat16().double(), index, weights.double())
    ours = compute(module, hidden.bfloat16(), index, weights, dtype=torch.bfloat16)
    assert (ours - exact).abs().max() < 0.02 * (own - exact).abs().max()


def test_a_row_does_not_depend_on_the_others():
    module = randomise(mixtral())
    hidden, index, weights = routed(rows=30)
    together = compute(module, hidden, index, weights)
    for row in range(30):
        part = slice(row, row + 1)
        assert torch.equal(compute(module, hidden[part], index[part], weights[part])[0], together[row])
