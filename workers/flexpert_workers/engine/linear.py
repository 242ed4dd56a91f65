"""Faster matrix products for the dense weights on a CPU: the experts' own kernels in place of torch's.

Called once, at load. On processors without 16-bit arithmetic torch takes four times as long for a bfloat16 product as for
a float32 one; the kernels widen the weights in registers. A row's result does not depend on the rows it shares a pass
with, so a sampled text does not either.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import linear

from flexpert_workers.expert.kernels import GroupedLinear, NativeGroupedLinear, grouped_linear

MOST_ROWS = 256
"""Passes of more rows multiply widened weights in torch: then a product is bound by arithmetic, not by reading them."""


def quicken(model: torch.nn.Module, num_threads: int) -> int:
    """Give the 16-bit `Linear` modules of a CPU model the native kernel; how many got it.

    Modules whose shape it does not take keep torch's.
    """
    kernels: dict[torch.dtype, GroupedLinear] = {}
    count = 0
    for module in model.modules():
        if type(module) is not torch.nn.Linear or not _is_slow(module.weight):
            continue
        dtype = module.weight.dtype
        if dtype not in kernels:
            kernels[dtype] = grouped_linear([module.weight.shape], dtype, False, num_threads)
        kernel = kernels[dtype]
        if isinstance(kernel, NativeGroupedLinear) and kernel.takes(module.weight.shape):
            module.forward = _forward(module, kernel)  # type: ignore[method-assign]
            count += 1
    return count


def _is_slow(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16) and weight.is_contiguous()


def _forward(module: torch.nn.Linear, kernel: GroupedLinear) -> Callable[[torch.Tensor], torch.Tensor]:
    weights, bias = [module.weight], module.bias
    num_out = module.weight.shape[0]

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1])
        if len(rows) > MOST_ROWS:
            output = linear(rows.float(), weights[0].float())
        else:
            output = kernel(rows.float().contiguous(), weights, np.array([len(rows)]))
        if bias is not None:
            output += bias
        return output.to(inputs.dtype).view(*inputs.shape[:-1], num_out)

    return forward


