"""What an architecture's experts compute between their products, where a few words say it."""

import msgspec

ACTIVATIONS = ("silu", "gelu", "relu")
"""transformers' names of activations that are one function of torch."""


class ExpertsForm(msgspec.Struct, frozen=True):
    """Experts without a function of their own: the flags of transformers' `use_experts_implementation`.

    Attributes:
        activation: One of `ACTIVATIONS`.
    """

    has_gate: bool
    has_bias: bool
    is_transposed: bool
    activation: str
