"""What one expert worker computes for one dispatch: the weighted sum of its experts' outputs, per row.

The expert server's compute thread calls `ExpertCompute`. The arithmetic between the two matrix products is the
architecture's own: its `_apply_gate`, `act_fn`, `post_expert_norm`, biases and layout flags, taken from its experts
class, so every variant of the library computes as the library does. The products themselves go through a
`GroupedLinear`: all experts of a dispatch in one call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from flexpert_workers.errors import PageError, UnsupportedArchitecture
from flexpert_workers.expert.kernels import GroupedLinear
from flexpert_workers.expert.store import ResidentExpert

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SortedPairs:
    """The (row, expert) pairs of a dispatch, sorted by expert.

    Attributes:
        indices: [experts] the distinct experts.
        counts: [experts] pairs of each.
        rows: [pairs] row of each pair.
        order: [pairs] position of each pair as it came.
    """

    indices: IntArray
    counts: IntArray
    rows: IntArray
    order: IntArray


def sort_pairs(pairs: npt.NDArray[np.int32], num_experts: int) -> SortedPairs:
    """Sort `pairs` [pairs, 2] of (row, expert index) by expert; the index `num_experts` means none and is left out."""
    experts = pairs[:, 1]
    order = np.argsort(experts, kind="stable")
    counts = np.bincount(experts, minlength=num_experts + 1)[:num_experts]
    order = order[: counts.sum()]
    indices = np.flatnonzero(counts)
    return SortedPairs(indices, counts[indices], pairs[order, 0].astype(np.int64), order)


class ExpertCompute:
    """The forward pass of some experts of one architecture.

    Args:
        module: The architecture's experts class on the meta device; only its functions and flags are used.
        linear: How products are computed.
        device: Where the experts are, as torch calls it; rows and sums are the host's.

    Raises:
        UnsupportedArchitecture: The experts share weights that do not travel in pages.
    """

    def __init__(self, module: torch.nn.Module, linear: GroupedLinear, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._module = cast(Any, module)
        if any(name.startswith("post_expert_norm.") for name, _ in module.named_parameters()):
            raise UnsupportedArchitecture(
                f"{type(module).__name__}: a norm with weights behind its experts is not served"
            )
        self._linear = linear
        self._up = "gate_up_proj" if module.has_gate else "up_proj"

    @torch.inference_mode()
    def __call__(
        self, experts: Sequence[ResidentExpert], pairs: SortedPairs, hidden: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Compute the weighted sum of the experts' outputs for every row.

        Args:
            experts: The experts that `pairs.indices` names, in that order.
            pairs: Which rows they compute.
            hidden: [rows, hidden].
            weights: [pairs] float32 routing weights, as the pairs came.

        Returns:
            [rows, hidden] float32; zero for a row without a pair. Nothing is under way on the device any more.
        """
        if not experts:
            return torch.zeros(hidden.shape, dtype=torch.float32)
        try:
            return self._sum(experts, pairs, hidden.to(self._device), weights.to(self._device)).cpu()
        except BaseException:
            if self._device.type != "cpu":
                torch.cuda.synchronize(self._device)  # the experts may be taken away as soon as this returns
            raise

    def try_out(self, expert: ResidentExpert, hidden_size: int) -> None:
        """Put one row through an expert, as a dispatch would. For any thread: nothing is kept between two calls.

        Raises:
            PageError: What comes out is not finite.
        """
        row = torch.linspace(-1.0, 1.0, hidden_size).unsqueeze(0)
        one, zero = np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        sums = self((expert,), SortedPairs(zero, one, zero, zero), row, torch.ones(1))
        if not torch.isfinite(sums).all():
            raise PageError("a row through it gives infinities or no numbers; its weights are damaged")

    def _sum(
        self, experts: Sequence[ResidentExpert], pairs: SortedPairs, hidden: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        rows = torch.from_numpy(pairs.rows).to(self._device)
        inputs = hidden.index_select(0, rows).float()
        inner = self._activate(self._project(self._up, inputs, experts, pairs.counts))
        outputs = self._project("down_proj", inner, experts, pairs.counts)
        if self._module.has_post_expert_norm:
            outputs = self._module.post_expert_norm(outputs)
        outputs *= weights[torch.from_numpy(pairs.order).to(self._device)].unsqueeze(1)
        sums = torch.zeros(hidden.shape, dtype=torch.float32, device=self._device)
        return sums.index_add_(0, rows, outputs)

    def _project(
        self, name: str, inputs: torch.Tensor, experts: Sequence[ResidentExpert], counts: IntArray
    ) -> torch.Tensor:
        weights = [expert.tensors[name] for expert in experts]
        outputs = self._linear(inputs, weights, counts)
        if self._module.has_bias:
            biases = torch.stack([expert.tensors[f"{name}_bias"] for expert in experts]).to(outputs.dtype)
            outputs += biases.repeat_interleave(torch.from_numpy(counts).to(self._device), dim=0)
        return outputs

    def _activate(self, projected: torch.Tensor) -> torch.Tensor:
        activated: torch.Tensor = (
            self._module._apply_gate(projected) if self._module.has_gate else self._module.act_fn(projected)
        )
        return activated.contiguous()
