"""Matrix products for experts: `grouped_linear` gives the fastest way that this machine has."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from flexpert_workers.expert.kernels.native import NativeGroupedLinear

__all__ = ["GroupedLinear", "NativeGroupedLinear", "TorchGroupedLinear", "grouped_linear"]


class GroupedLinear(Protocol):
    """Products of consecutive groups of rows with one matrix each."""

    def __call__(
        self, inputs: torch.Tensor, weights: Sequence[torch.Tensor], counts: npt.NDArray[np.int64]
    ) -> torch.Tensor:
        """Multiply.

        Args:
            inputs: [rows, in] float32, contiguous, group after group.
            weights: Per group a contiguous matrix, [out, in], or [in, out] when made for transposed ones.
            counts: [groups] rows of each group, none of them 0.

        Returns:
            [rows, out] float32, accumulated in float32.
        """
        ...


class TorchGroupedLinear:
    """`GroupedLinear` with torch alone, on any device and for any shape."""

    def __init__(self, is_transposed: bool) -> None:
        self._is_transposed = is_transposed

    def __call__(
        self, inputs: torch.Tensor, weights: Sequence[torch.Tensor], counts: npt.NDArray[np.int64]
    ) -> torch.Tensor:
        """See `GroupedLinear`."""
        num_out = weights[0].shape[1 if self._is_transposed else 0]
        outputs = inputs.new_empty(inputs.shape[0], num_out)
        start = 0
        for weight, count in zip(weights, counts.tolist(), strict=True):
            group = slice(start, start + count)
            matrix = weight.to(inputs.dtype)
            torch.mm(inputs[group], matrix if self._is_transposed else matrix.t(), out=outputs[group])
            start += count
        return outputs


def grouped_linear(
    shapes: Sequence[Sequence[int]], dtype: torch.dtype, is_transposed: bool, num_threads: int
) -> GroupedLinear:
    """The fastest `GroupedLinear` for CPU matrices of these shapes, computing with `num_threads` threads."""
    native = NativeGroupedLinear(dtype, is_transposed, num_threads)
    return native if all(native.takes(shape) for shape in shapes) else TorchGroupedLinear(is_transposed)
