"""Faster matrix products for the dense weights on a CPU: the experts' own kernels in place of torch's.

`dense` calls it once, at load. On processors without 16-bit arithmetic torch takes four times as long for a bfloat16
product as for a float32 one; the kernels widen the weights in registers. A row's result does not depend on the rows it
shares a pass with, so neither does a sampled text. It works through `__torch_function__`: a weight that is a
`QuickWeight` answers `linear` itself, whichever module calls it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.functional import linear

from flexpert_workers.expert.kernels import NativeGroupedLinear, grouped_linear

MOST_ROWS = 128
"""Passes of more rows multiply widened weights in torch: then a product is bound by arithmetic, not by reading them."""


class QuickWeight(torch.nn.Parameter):
    """A matrix [out, in] that multiplies by a kernel when `linear` is called with it."""

    kernel: NativeGroupedLinear

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute `linear` by the kernel, and everything else as for any parameter."""
        with torch._C.DisableTorchFunctionSubclass():
            if func is linear:
                return _linear(*args, **(kwargs or {}))
            return func(*args, **(kwargs or {}))


def quicken(model: torch.nn.Module, num_threads: int) -> int:
    """Make the 16-bit matrices of a CPU model `QuickWeight`s, as far as the kernel takes their shape; how many are."""
    kernels: dict[torch.dtype, NativeGroupedLinear | None] = {}
    quick: dict[int, QuickWeight] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not _is_slow(parameter):
                continue
            if parameter.dtype not in kernels:
                kernels[parameter.dtype] = _kernel(parameter, num_threads)
            kernel = kernels[parameter.dtype]
            if kernel is None or not kernel.takes(parameter.shape):
                continue
            if id(parameter) not in quick:  # tied weights stay tied
                quick[id(parameter)] = _quick(parameter, kernel)
            setattr(module, name, quick[id(parameter)])
    return len(quick)


def _is_slow(parameter: torch.nn.Parameter) -> bool:
    is_16_bit = parameter.dtype in (torch.bfloat16, torch.float16)
    return is_16_bit and parameter.ndim == 2 and parameter.device.type == "cpu" and parameter.is_contiguous()


def _kernel(parameter: torch.nn.Parameter, num_threads: int) -> NativeGroupedLinear | None:
    kernel = grouped_linear([parameter.shape], parameter.dtype, False, num_threads)
    return kernel if isinstance(kernel, NativeGroupedLinear) else None


def _quick(parameter: torch.nn.Parameter, kernel: NativeGroupedLinear) -> QuickWeight:
    weight = QuickWeight(parameter.detach(), requires_grad=False)
    weight.kernel = kernel
    return weight


def _linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    rows = inputs.reshape(-1, inputs.shape[-1]).float()
    if isinstance(weight, QuickWeight) and 0 < len(rows) <= MOST_ROWS:
        output = weight.kernel(rows.contiguous(), [weight], np.array([len(rows)]))
    else:
        output = linear(rows, weight.float())
    if bias is not None:
        output += bias
    return output.to(inputs.dtype).view(*inputs.shape[:-1], weight.shape[0])
