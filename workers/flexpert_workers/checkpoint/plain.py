"""Experts that gate with a common activation and do nothing else, as most architectures' do.

A worker computes with `PlainExperts` in place of their class, whose import brings the model library and takes longer
than all the rest of the worker's start.
"""

import torch

from flexpert_workers.checkpoint.form import ExpertsForm


class PlainExperts(torch.nn.Module):
    """Computes between the products as any experts class of that form does."""

    has_post_expert_norm = False

    def __init__(self, form: ExpertsForm) -> None:
        super().__init__()
        self.has_gate = form.has_gate
        self.has_bias = form.has_bias
        self.is_transposed = form.is_transposed
        self.act_fn = getattr(torch.nn.functional, form.activation)

    def _apply_gate(self, projected: torch.Tensor) -> torch.Tensor:
        """The first half of [pairs, 2 * inner] through the activation, times the second half."""
        gate, up = projected.chunk(2, dim=-1)
        activated: torch.Tensor = self.act_fn(gate)
        return activated * up
